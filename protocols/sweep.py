"""Provider records kept alive by walking round the keyspace: what lies close together is told of together.

A record lives for 48 h. A sweep goes once round in CYCLE_S, at an even pace, whatever is provided: at each step the
CIDs whose keys lie on the next arc are told of again, so that a lookup serves all of them. Where the walk stands is two
numbers, which are kept: after a restart it goes on there, and what was missed meanwhile comes first.

Source: IPFS Kademlia DHT specification (keys are the SHA-256 of a CID's multihash; records live 48 h).
"""

import hashlib
from typing import Final, NamedTuple

from storage.cid import Cid

CYCLE_S: Final = 20 * 3600.0
STEP_S: Final = 900.0  # so often an arc is taken up
MAX_ARC: Final = 1 / 64  # of the keyspace, at a time: what is lost when a step is interrupted
LATE_S: Final = 6 * 3600.0  # behind its pace: then records may die before the walk comes by
KEY_BITS: Final = 256


def key_of(multihash: bytes) -> int:
    """Where a CID lies in the keyspace."""
    return int.from_bytes(hashlib.sha256(multihash).digest(), "big")


def shared_bits(one: int, other: int) -> int:
    """How many leading bits two keys have in common."""
    return KEY_BITS - (one ^ other).bit_length()


class Arc(NamedTuple):
    """A piece of the keyspace from `start` on, both as parts of 1; beyond the end it goes on from the beginning."""

    start: float
    length: float

    def holds(self, cid: Cid) -> bool:
        """Does a CID's key lie on it?"""
        place = key_of(cid.multihash) / (1 << KEY_BITS)
        return (place - self.start) % 1.0 < self.length


class State(NamedTuple):
    """Where a sweep stands: everything before `place` was told of as it should be by `unix_s`."""

    place: float
    unix_s: float


class Sweep:
    """The walk. The caller tells of what lies on an arc, then that it is done, and keeps the state."""

    def __init__(self, state: State) -> None:
        self.state = state

    def due(self, unix_s: float) -> Arc | None:
        """The next arc, if it is time for one."""
        place, at_s = self.state
        if unix_s < at_s:  # the clock was set back
            self.state = State(place, unix_s)
        elif unix_s - at_s > CYCLE_S:  # once round makes up for any absence
            self.state = State(place, unix_s - CYCLE_S)
        length = (unix_s - self.state.unix_s) / CYCLE_S
        return Arc(self.state.place, min(MAX_ARC, length)) if length * CYCLE_S >= STEP_S else None

    def done(self, arc: Arc) -> State:
        """All on an arc was told of."""
        self.state = State((arc.start + arc.length) % 1.0, self.state.unix_s + arc.length * CYCLE_S)
        return self.state

    def lag_s(self, unix_s: float) -> float:
        """How far the walk is behind its pace."""
        return max(0.0, unix_s - self.state.unix_s)
