"""The walk of a lookup in the DHT: whom to ask next, and whom it ended at. No clock, no network.

Source: IPFS Kademlia DHT specification: k = 20 closest by XOR of SHA-256; it ends when the closest k that answer were
all asked. Who is asked names others; what a liar names costs a question each, and no more than MAX_ASKED in all.
"""

from collections.abc import Iterable
from typing import Final

from protocols.sweep import key_of
from storage.keys import PeerId

CLOSEST: Final = 20  # k of the specification
MAX_ASKED: Final = 256  # by one lookup; an honest one in a DHT of millions asks some 60
MAX_KNOWN: Final = 1024  # the farthest are forgotten


class Lookup:
    """Peers on the way to a key: known, asked, and those that answered."""

    def __init__(self, key: bytes, own: PeerId, seeds: Iterable[PeerId]) -> None:
        """`key` as it is sent: its hash is where it lies. This node itself (`own`) is never asked."""
        self._key = key_of(key)
        self._own = own
        self._distance: dict[PeerId, int] = {}
        self._asked: set[PeerId] = set()
        self._answered: set[PeerId] = set()
        self._failed: set[PeerId] = set()
        self._learn(seeds)

    def take(self) -> PeerId | None:
        """The next to ask; None while all of the closest are asked already."""
        if len(self._asked) >= MAX_ASKED:
            return None
        for peer in self._nearest():
            if peer not in self._asked:
                self._asked.add(peer)
                return peer
        return None

    def answered(self, peer: PeerId, closer: Iterable[PeerId]) -> None:
        """`peer` answered, and named these."""
        if peer in self._asked:
            self._answered.add(peer)
            self._learn(list(closer)[:CLOSEST])

    def failed(self, peer: PeerId) -> None:
        """`peer` did not answer: the next closest takes its place."""
        self._failed.add(peer)

    def closest(self) -> list[PeerId]:
        """The closest that answered, nearest first."""
        return [peer for peer in self._nearest() if peer in self._answered]

    def _nearest(self) -> list[PeerId]:
        there = (peer for peer in self._distance if peer not in self._failed)
        return sorted(there, key=self._distance.__getitem__)[:CLOSEST]

    def _learn(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            if peer != self._own and peer not in self._distance:
                self._distance[peer] = self._key ^ key_of(peer)
        if len(self._distance) > MAX_KNOWN:
            nearest = sorted(self._distance, key=self._distance.__getitem__)
            kept = {*nearest[:MAX_KNOWN], *self._asked}
            self._distance = {peer: self._distance[peer] for peer in nearest if peer in kept}
