"""Where peers are, as is told to others, and as others tell: of each a few addresses, and all have their turn.

Nobody can check what it is told before it dials. So what one says stands beside what others say, and never in its
place: who tells of an address where nobody is costs a dial, and keeps from no other.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from typing import Final

from protocols.net import Network
from protocols.telling import MAX_ADDRESS_CHARS, MAX_ADDRESSES, Where
from storage.keys import PeerId

PER_TELLER: Final = 4  # addresses of one peer
MAX_TELLERS: Final = 16  # of one peer: who told last stays
AT_ONCE: Final = 8  # that others told of go into one dial, which has its own time


def members_here(network: Network, members: Iterable[PeerId]) -> Iterator[Where]:
    """Where those of the members are that this node is connected to."""
    for peer in sorted(set(members) & set(network.peers())):
        texts = [text for text in network.peer_addresses(peer) if len(text) <= MAX_ADDRESS_CHARS]
        if texts:
            yield Where(peer=peer, addresses=tuple(texts[:MAX_ADDRESSES]))


class Whereabouts:
    """What others told, for one history."""

    def __init__(self) -> None:
        self._told: dict[PeerId, dict[PeerId, tuple[str, ...]]] = {}
        self._turns: dict[PeerId, int] = {}

    def note(self, teller: PeerId, peer: PeerId, addresses: Sequence[str]) -> None:
        """A peer tells where another is."""
        told = self._told.setdefault(peer, {})
        told.pop(teller, None)
        told[teller] = tuple(addresses[:PER_TELLER])
        if len(told) > MAX_TELLERS:
            del told[next(iter(told))]

    def next_of(self, peer: PeerId, own: Sequence[str] = ()) -> tuple[str, ...]:
        """Where to dial a peer now: the first of those known otherwise, then some that were told, the next time others.

        The newest first, and of each teller one before another of anybody.
        """
        newest = list(self._told.get(peer, {}).values())[::-1]
        in_turns = chain.from_iterable(zip_longest(*newest))
        told = list(dict.fromkeys(one for one in in_turns if one is not None and one not in own))
        turn = self._turns.get(peer, 0) % max(1, len(told))
        self._turns[peer] = turn + AT_ONCE if len(told) > AT_ONCE else 0
        some = (told[turn:] + told[:turn])[:AT_ONCE]
        return (*own[:AT_ONCE], *some, *own[AT_ONCE:])
