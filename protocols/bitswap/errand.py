"""What is wanted: one block and who was asked for it, one reader's errand and who may serve it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from protocols.bitswap.standing import Peer
from protocols.sources import Giver
from storage.cid import Cid

MAX_ASKED: Final = 4  # peers in whose queues one block is waited for; the more, the more often two begin at once


@dataclass(slots=True)
class Want:
    """A block, and what each peer has to do with it."""

    cid: Cid
    sessions: set[int]
    asked: dict[Giver, None] = field(default_factory=dict)  # want-block sent, and not withdrawn
    told: set[Giver] = field(default_factory=set)  # whose wantlist carries it in any form
    lacks: set[Giver] = field(default_factory=set)
    has: dict[Giver, None] = field(default_factory=dict)  # who said so
    is_starving: bool = False

    def counted_on(self, peers: Mapping[Giver, Peer]) -> list[Giver]:
        """Who is to give it: mostly one, several where it is waited for in queues, or where one is at it for long."""
        key = self.cid.multihash
        return [name for name in self.asked if key in peers[name].in_flight]

    def may_come_of(self, name: Giver, peer: Peer) -> bool:
        """May a peer have it: does it say so, or has it lacked nothing yet?"""
        return name in self.has or not peer.is_partial

    def queues_to_join(self, peers: Mapping[Giver, Peer], now_s: float) -> list[Giver]:
        """Who else may be asked for it at no cost, as it only stands in queues: whoever has it, and has it sooner."""
        key = self.cid.multihash
        counted_on = self.counted_on(peers)
        if not counted_on or not all(peers[name].lets_wait(key, now_s) for name in counted_on):
            return []
        others = (name for name in self.has if name not in self.asked and name not in self.lacks)
        able = [name for name in others if peers[name].may_be_asked(now_s) and peers[name].has_room()]
        return able[: max(0, MAX_ASKED - len(counted_on))]


@dataclass(slots=True)
class Errand:
    """What one session wants, and of whom."""

    providers: dict[Giver, None] = field(default_factory=dict)
    wants: set[bytes] = field(default_factory=set)
    tamperers: dict[Giver, None] = field(default_factory=dict)
