"""Who in a mesh only takes? Peers that bring nothing are tried, and those that fail make room for others.

This stands where GossipSub has P3 and P3b, penalties for few deliveries. Those count what a peer brings in a time, and
so need a rate of messages to expect: Covey's topics are quiet for days, then busy. They blame whoever hears of
everything from us first, which is where some honest peer always stands. A trial asks for what only a peer that listens
elsewhere can do: one message is held back from it for a while. Whoever is in the mesh of others brings it meanwhile,
however slow it is; who is silent, or knows nobody but us, does not.

A message is held back from one peer at most, and only where the mesh has as many as it wants: nobody hears later for it
but the one that is tried. No clock, no IO.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from protocols.gossipsub.memory import Name
from storage.keys import PeerId

TRIAL_S: Final = 3.0  # in which a peer that hears of messages elsewhere has brought one that we have
IDLE_MESSAGES: Final = 8  # passed on since a peer was the first to bring one: then it is tried again
MAX_FAILURES: Final = 3  # in a row, of one that is in the mesh
RARE: Final = 16  # who failed and could stay, for nobody else was there, is tried with one message of so many
MAX_KNOWN: Final = 1 << 12  # peers whose failures are remembered
MEMORY_BEATS: Final = 3600  # for which they are; what a topic has seen of failures is halved every
SUSPICION_BEATS: Final = 300

Key = tuple[str, PeerId]


@dataclass(slots=True)
class _Record:
    is_proven: bool = False
    n_idle: int = 0  # messages that were passed on since it was tried, or brought one first
    n_failures: int = 0


class Held(NamedTuple):
    """A message that was held back from a peer."""

    name: Name
    framed: bytes
    due_s: float


@dataclass(slots=True)
class Trials:
    """What the peers of our meshes have brought, and what is held back from some of them."""

    _records: dict[Key, _Record] = field(default_factory=dict)
    _held: dict[Key, Held] = field(default_factory=dict)  # one of a peer and topic at a time
    _failed: OrderedDict[Key, tuple[int, int]] = field(default_factory=OrderedDict)  # how often, and in which beat
    _suspicion: dict[str, float] = field(default_factory=dict)
    _n_beats: int = 0

    def passed_on(self, topic: str, source: PeerId, others: Iterable[PeerId], *, is_full: bool) -> PeerId | None:
        """A new message came from `source` and goes to `others` of the mesh. Returns: from whom to hold it back.

        `is_full`: the mesh has as many peers as it wants; only then is somebody tried.
        """
        self.brought(topic, source)
        chosen, most = None, -1
        for peer in sorted(others):
            record = self._records.setdefault((topic, peer), _Record())
            record.n_idle += 1
            if record.n_idle > most and (topic, peer) not in self._held and _is_due(record):
                chosen, most = peer, record.n_idle
        return chosen if is_full else None

    def hold(self, topic: str, peer: PeerId, name: Name, framed: bytes, now_s: float) -> None:
        """The message is held back from this peer now."""
        self._held[topic, peer] = Held(name, framed, now_s + TRIAL_S)
        self._records.setdefault((topic, peer), _Record()).n_idle = 0

    def heard(self, topic: str, peer: PeerId, name: Name) -> None:
        """A peer brought a message that was here already: a trial may be passed by that."""
        held = self._held.get((topic, peer))
        if held is not None and held.name.own == name.own:
            del self._held[topic, peer]
            self.brought(topic, peer)

    def brought(self, topic: str, peer: PeerId) -> None:
        """A peer showed that it hears of messages elsewhere."""
        record = self._records.setdefault((topic, peer), _Record())
        record.is_proven, record.n_idle, record.n_failures = True, 0, 0
        self._failed.pop((topic, peer), None)

    def heartbeat(self, now_s: float, meshes: dict[str, set[PeerId]]) -> list[tuple[PeerId, Held]]:
        """Let time pass. Returns: what was held back long enough, for nothing; it is to be sent after all."""
        self._n_beats += 1
        late = [(key, held) for key, held in self._held.items() if held.due_s <= now_s]
        for key, _ in late:
            del self._held[key]
            record = self._records.get(key)
            if record is not None:
                record.is_proven = False
                record.n_failures += 1
                if record.n_failures == MAX_FAILURES:
                    self._note_failure(key)
        for key in [key for key in self._records if key[1] not in meshes.get(key[0], ())]:
            del self._records[key]
            self._held.pop(key, None)
        while self._failed and next(iter(self._failed.values()))[1] + MEMORY_BEATS <= self._n_beats:
            self._failed.popitem(last=False)
        if self._n_beats % SUSPICION_BEATS == 0:
            self._suspicion = {topic: n / 2 for topic, n in self._suspicion.items() if n >= 1}
        return [(peer, held) for (_, peer), held in late]

    def _note_failure(self, key: Key) -> None:
        self._suspicion[key[0]] = self._suspicion.get(key[0], 0.0) + 1
        self._failed[key] = (self._failed.get(key, (0, 0))[0] + 1, self._n_beats)
        self._failed.move_to_end(key)
        if len(self._failed) > MAX_KNOWN:
            self._failed.popitem(last=False)

    def is_proven(self, topic: str, peer: PeerId) -> bool:
        """Has a peer of the mesh shown that it hears of messages elsewhere, and not failed since?"""
        record = self._records.get((topic, peer))
        return record is not None and record.is_proven

    def is_silent(self, topic: str, peer: PeerId) -> bool:
        """Has a peer of the mesh failed so often that others may have its place?"""
        record = self._records.get((topic, peer))
        return record is not None and record.n_failures >= MAX_FAILURES

    def n_failed(self, topic: str, peer: PeerId) -> int:
        """How often a peer lost its place so, of late."""
        return self._failed.get((topic, peer), (0, 0))[0]

    def failed(self, topic: str) -> list[PeerId]:
        """Who failed of late, and has brought nothing since."""
        return [peer for name, peer in self._failed if name == topic]

    def suspicion(self, topic: str) -> float:
        """How many have failed of late."""
        return self._suspicion.get(topic, 0.0)


def _is_due(record: _Record) -> bool:
    if record.n_failures >= MAX_FAILURES:
        return record.n_idle >= RARE
    return record.n_idle >= (IDLE_MESSAGES if record.is_proven else 1)
