"""The line of wants: to pass over those for which nothing changed changes nothing but the time that it takes."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.bitswap import session, standing
from protocols.bitswap.line import Line
from protocols.bitswap.session import Action, Arrived, Wants
from storage.cid import Cid
from storage.keys import PeerId

PEERS = [PeerId.of(bytes([number]) * 32) for number in range(4)]
BLOCKS = [Arrived(Cid.of(b"block %d" % number), b"block %d" % number) for number in range(16)]

peers = st.lists(st.sampled_from(PEERS), max_size=4, unique=True)
numbers = st.lists(st.integers(0, len(BLOCKS) - 1), max_size=8, unique=True)
steps = st.one_of(
    st.tuples(st.just("open"), peers, numbers),
    st.tuples(st.just("want"), st.integers(0, 3), numbers),
    st.tuples(st.just("add_providers"), st.integers(0, 3), peers),
    st.tuples(st.just("close"), st.integers(0, 3)),
    st.tuples(st.sampled_from(["lost", "found"]), st.sampled_from(PEERS)),
    st.tuples(st.just("received"), st.sampled_from(PEERS), numbers, numbers, numbers, st.integers(0, 1)),
    st.tuples(st.just("give"), st.sampled_from(PEERS), st.integers(1, 4)),
    st.tuples(st.just("tick"), st.sampled_from([0.1, 1.0, 2.0, 6.0, 70.0])),
)


@pytest.fixture(autouse=True)
def narrow() -> Iterator[None]:
    """There is room for little, so that much has to stand in line."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(standing, "MAX_IN_FLIGHT", 3)
        patched.setattr(standing, "MAX_IN_FLIGHT_UNPROVEN", 2)
        patched.setattr(session, "MAX_LACKS_IN_A_ROW", 2)
        patched.setattr(session, "MAX_PROBES", 2)
        yield


class Thorough(Wants):
    """Looks at every want in line each time."""

    def _assign(self, now_s: float) -> list[Action]:
        self._line.all_changed()
        return super()._assign(now_s)


class Errands:
    """Carries the same steps out with a core of wanting."""

    def __init__(self, wants: Wants) -> None:
        self.wants = wants
        self.sessions: list[int] = []
        self.now_s = 0.0

    def do(self, step: tuple[Any, ...]) -> list[Action]:
        match step:
            case "open", names, wanted:
                self.sessions.append(self.wants.open())
                first = self.wants.add_providers(self.sessions[-1], names, self.now_s)
                return first + self._want(self.sessions[-1], wanted)
            case "want", number, wanted if number < len(self.sessions):
                return self._want(self.sessions[number], wanted)
            case "add_providers", number, names if number < len(self.sessions):
                return self.wants.add_providers(self.sessions[number], names, self.now_s)
            case "close", number if number < len(self.sessions):
                return self.wants.close(self.sessions.pop(number), self.now_s)
            case "lost" | "found" as what, name:
                found: list[Action] = getattr(self.wants, what)(name, self.now_s)
                return found
            case "received", name, given, haves, lacks, pending_bytes:
                return self._receive(name, given, haves, lacks, pending_bytes)
            case "give", name, n_blocks:
                owed = list(self.wants._peers[name].in_flight) if name in self.wants._peers else []
                cids = [block.cid.multihash for block in BLOCKS if block.cid is not None]
                return self._receive(name, [cids.index(key) for key in owed[:n_blocks]], [], [], 0)
            case "tick", spent_s:
                self.now_s += spent_s
                return self.wants.tick(self.now_s)
        return []

    def _want(self, number: int, wanted: list[int]) -> list[Action]:
        return self.wants.want(number, [cid for each in wanted if (cid := BLOCKS[each].cid)], self.now_s)

    def _receive(
        self, name: PeerId, given: list[int], haves: list[int], lacks: list[int], pending_bytes: int
    ) -> list[Action]:
        said = [[cid for each in some if (cid := BLOCKS[each].cid)] for some in (haves, lacks)]
        return self.wants.received(name, [BLOCKS[each] for each in given], *said, self.now_s, pending_bytes)


A, B = PEERS[:2]
GIVES_1, HAS_0, LACKS_0 = (
    ("received", A, [1], [], [], 0),
    ("received", A, [], [0], [], 0),
    ("received", A, [], [], [0], 0),
)


@given(st.lists(steps, max_size=40))
@example([("open", [A], [0, 1, 2, 3, 4, 5]), ("give", A, 1), ("give", A, 1)])
@example([("open", [A], [0, 1]), GIVES_1, LACKS_0, HAS_0])
@example([("open", [A], [1, 2, 0]), LACKS_0])
@example([("open", [A], [0, 1, 2]), ("open", [], [2]), ("close", 0), ("tick", 0.1)])
@example([("open", [A], [0, 1]), ("tick", 2.0), HAS_0, GIVES_1])
@example([("open", [A], [0, 1, 2, 3, 4]), ("tick", 2.0), GIVES_1])
@example([("open", [A], [0]), ("tick", 2.0), ("open", [], [0])])
@example([("open", [A], [0]), ("tick", 2.0), ("tick", 6.0)])
@example([("open", [A], [0]), ("lost", A), ("found", A)])
@example([("open", [A, B], [0, 1, 2, 3, 4]), ("received", B, [], [], [4], 0), ("received", B, [0], [], [], 0)])
def test_nothing_is_asked_otherwise_than_if_all_in_line_were_looked_at_each_time(taken: list[tuple[Any, ...]]) -> None:
    quick, thorough = Errands(Wants()), Errands(Thorough())
    for step in taken:
        assert quick.do(step) == thorough.do(step)
        assert list(quick.wants._line._keys) == list(thorough.wants._line._keys)


def test_a_want_is_looked_at_again_only_when_something_changed_for_it_or_a_giver_of_its_was_freed() -> None:
    line, giver, other = Line(), A, B
    for key in (b"one", b"two", b"three"):
        line.put(key)

    def looked_at() -> list[bytes]:
        return list(line.to_look_at(lambda name, key: name == giver and key != b"two"))

    assert looked_at() == [b"one", b"two", b"three"]
    assert looked_at() == []
    line.changed(b"two")
    line.changed(b"none")
    assert looked_at() == [b"two"]
    line.freed(other)
    assert looked_at() == []
    line.freed(giver)
    assert looked_at() == [b"one", b"three"]
    line.freed(giver)
    line.filled(giver)
    line.drop(b"one")
    line.put(b"two")
    assert looked_at() == [b"two"] and len(line) == 2
