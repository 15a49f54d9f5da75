"""Which peers that have nothing in hand are asked, too, for what others were asked for, and may still give."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from protocols.bitswap.errand import Want
from protocols.bitswap.standing import STALL_S, Peer
from protocols.sources import Giver

CRAWL_BYTES: Final = 4 << 10  # of a message by the time at which silence is a stall: hardly better than that
QUICKER: Final = 4  # so much sooner others gave their blocks

Candidates = Callable[[Want, float], list[Giver]]
"""Who may be asked for a block now."""


def waiting(
    peers: Mapping[Giver, Peer], wants: Mapping[bytes, Want], candidates: Candidates, now_s: float
) -> Iterator[tuple[bytes, list[Giver]]]:
    """What only waits in queues, however many those are, and peers that gave blocks.

    A queue may be one for ever; the places there are kept all the same.
    """
    givers = ((name, peer) for name, peer in peers.items() if peer.block_s is not None)
    idle = [name for name, peer in givers if peer.is_idle(now_s) and not peer.is_queue(now_s)]
    queues = [peer for peer in peers.values() if idle and peer.is_queue(now_s)]
    for key in dict.fromkeys(key for peer in queues for key in peer.in_flight):
        want = wants[key]
        if all(peers[name].lets_wait(key, now_s) for name in want.counted_on(peers)):
            fit = [name for name in candidates(want, now_s) if peers[name].has_room()]
            if able := [name for name in idle if name in fit and want.may_come_of(name, peers[name])]:
                yield key, able


def lingering(
    peers: Mapping[Giver, Peer], wants: Mapping[bytes, Want], candidates: Candidates, now_s: float
) -> Iterator[tuple[bytes, list[Giver]]]:
    """What takes long, and peers that would have given it by now: who is at it has a slow link, or holds us up."""
    for key in dict.fromkeys(next(iter(peer.in_flight)) for peer in peers.values() if _lingers(peer, now_s)):
        want = wants[key]
        slow = [peers[name] for name in want.counted_on(peers)]
        if not all(_lingers(peer, now_s) for peer in slow):
            continue
        for _ in slow:  # twice as many each time, to find soon who does not linger
            if able := _quicker(peers, slow, want, candidates(want, now_s), now_s):
                yield key, able


def _quicker(
    peers: Mapping[Giver, Peer], slow: Sequence[Peer], want: Want, names: Sequence[Giver], now_s: float
) -> list[Giver]:
    """Who might give a block sooner than those who are at it: anybody, where those give next to nothing."""
    free = [name for name in names if not peers[name].in_flight and want.may_come_of(name, peers[name])]
    if all(peer.n_grown < CRAWL_BYTES for peer in slow):
        givers = [name for name in free if (block_s := peers[name].block_s) and block_s < STALL_S]
        return givers or [name for name in free if peers[name].is_proven] or free
    spent_s = min(now_s - peer.gave_s for peer in slow)
    return [name for name in free if (block_s := peers[name].block_s) and QUICKER * block_s < spent_s]


def _lingers(peer: Peer, now_s: float) -> bool:
    """Is it at a block for as long as silence may last, without saying why?"""
    return bool(peer.in_flight) and not peer.is_queue(now_s) and now_s >= peer.gave_s + STALL_S
