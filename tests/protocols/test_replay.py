from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import envelope
from protocols.envelope import Purpose, Signed, seal
from protocols.errors import Expired, Replayed
from protocols.message import Message
from protocols.replay import WINDOW, TooManyAuthors, Window, admit
from storage.catalog import Catalog
from storage.catalog.database import Database
from storage.catalog.replay import SCHEMA, ReplayTable
from storage.keys import Identity


class Ping(Message, frozen=True, tag="ping"):
    pass


ALICE, BOB, CAROL = (Identity(name * 32) for name in (b"a", b"b", b"c"))
PURPOSE, OTHER = Purpose(protocol="/covey/a/1.0.0"), Purpose(protocol="/covey/b/1.0.0")
NOW = 1_700_000_000


def ping(
    sequence: int, author: Identity = ALICE, purpose: Purpose = PURPOSE, unix_s: float = NOW, ttl_s: int = 60
) -> Signed[Ping]:
    data = seal(author, purpose, Ping(), sequence=sequence, unix_s=unix_s, ttl_s=ttl_s)
    return envelope.open(data, purpose, Ping, unix_s=unix_s)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[ReplayTable]:
    catalog = Catalog.open(tmp_path / "catalog.db")
    yield catalog.replay
    catalog.close()


@pytest.fixture
def small_table(tmp_path: Path) -> Iterator[ReplayTable]:
    database = Database.open(tmp_path / "catalog.db", (SCHEMA,))
    yield ReplayTable(database, max_windows=2)
    database.close()


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=200))
def test_a_window_admits_each_sequence_once_unless_it_is_too_old_to_tell(sequences: list[int]) -> None:
    window, admitted = Window(), set[int]()
    for sequence in sequences:
        after = window.admit(sequence)
        is_new = sequence not in admitted and sequence > max(admitted, default=0) - WINDOW
        assert (after is not None) == is_new
        if after is not None:
            admitted.add(sequence)
            window = after
    assert window.highest == max(admitted, default=0)
    assert window.accepted < 1 << WINDOW


def test_the_window_is_as_wide_as_it_says() -> None:
    window = Window().admit(WINDOW + 1)
    assert window is not None
    assert window.admit(1) is None
    assert window.admit(2) is not None
    first = Window().admit(1)
    assert first is not None
    slid = first.admit(WINDOW)
    assert slid is not None
    assert slid.admit(1) is None
    assert slid.admit(2) is not None


def test_a_replay_is_refused_and_reordering_is_not(table: ReplayTable) -> None:
    for sequence in (3, 1, 2, 200, 4):
        admit(table, ping(sequence), NOW)
    for sequence in (3, 1, 2, 200, 4):
        with pytest.raises(Replayed):
            admit(table, ping(sequence), NOW)


def test_a_replay_is_refused_after_the_catalog_was_opened_again(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.db")
    admit(catalog.replay, ping((1 << 63) - 1), NOW)
    catalog.close()
    catalog = Catalog.open(tmp_path / "catalog.db")
    with pytest.raises(Replayed):
        admit(catalog.replay, ping((1 << 63) - 1), NOW)
    catalog.close()


def test_windows_of_authors_and_purposes_are_apart(table: ReplayTable) -> None:
    admit(table, ping(1), NOW)
    admit(table, ping(1, author=BOB), NOW)
    admit(table, ping(1, purpose=OTHER), NOW)
    assert len(table) == 3


def test_a_full_table_forgets_only_what_expiry_refuses_anyway(small_table: ReplayTable) -> None:
    short = seal(ALICE, PURPOSE, Ping(), sequence=1, unix_s=NOW, ttl_s=10)
    admit(small_table, envelope.open(short, PURPOSE, Ping, unix_s=NOW), NOW)
    admit(small_table, ping(1, author=BOB), NOW)
    with pytest.raises(TooManyAuthors):
        admit(small_table, ping(1, author=CAROL), NOW + 9.9)
    admit(small_table, ping(2, author=BOB), NOW + 9.9)
    admit(small_table, ping(1, author=CAROL, unix_s=NOW + 10), NOW + 10)
    assert len(small_table) == 2
    with pytest.raises(Expired):
        envelope.open(short, PURPOSE, Ping, unix_s=NOW + 10)
    with pytest.raises(Replayed):
        admit(small_table, ping(1, author=BOB), NOW + 10)


def test_a_window_lives_as_long_as_its_longest_message(small_table: ReplayTable) -> None:
    admit(small_table, ping(1, ttl_s=600), NOW)
    admit(small_table, ping(2, ttl_s=1), NOW)
    admit(small_table, ping(1, author=BOB), NOW)
    with pytest.raises(TooManyAuthors):
        admit(small_table, ping(1, author=CAROL), NOW + 30)
    with pytest.raises(Replayed):
        admit(small_table, ping(1, ttl_s=600), NOW + 30)
