"""How much of what members say is kept: who talks takes the room from its like, and who does its part is heard on."""

import pytest

from agents.federation.events.book import Book
from agents.federation.node import room as rooms
from agents.federation.node.room import EVENT_BYTES, Room, weight_of
from protocols.rounds import Receipt
from tests.agents.federation.members.test_member import LONG_S, begin, is_done
from tests.agents.federation.table import PEERS, N, Table
from tests.agents.federation.village import cid_of

MAX_BYTES = 1 << 20
SHARE_BYTES = MAX_BYTES // N


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MAX_BYTES", MAX_BYTES)
    monkeypatch.setattr(rooms, "LEAST_SHARE_BYTES", 0)


def loaded(book: Book) -> Room:
    room = Room(book)
    for entry in book.entries():
        room.take(entry)
    return room


def talk(table: Table, room: Room, who: int) -> int:
    """Say things until nothing more is kept; how many."""
    n_said = 0
    while not room.is_full(PEERS[who]):
        room.take(table.say(who, Receipt(round=7, submission=cid_of(n_said))))
        n_said += 1
    return n_said


def test_once_the_room_is_full_each_is_heard_within_its_share_and_all_take_no_more_than_twice_as_much() -> None:
    table = Table()
    room = loaded(table.book)
    said = [talk(table, room, who) for who in range(N)]
    assert said[0] > 300, "the first takes what is there"
    assert room.full() == set(PEERS)
    for who in range(1, N):
        one_bytes = sum(weight_of(entry) for entry in table.book.entries() if entry.author == PEERS[who])
        assert SHARE_BYTES <= one_bytes < SHARE_BYTES + rooms.ROUND_BYTES + 4 * EVENT_BYTES
    assert sum(map(weight_of, table.book.entries())) < 2 * MAX_BYTES + N * (rooms.ROUND_BYTES + 4 * EVENT_BYTES)


@pytest.mark.parametrize(
    "options",
    [{}, {"secure": {}, "max_norm": 1.0, "min_participants": 3}, {"n_selected": 3}],
    ids=["plain", "secure", "some"],
)
def test_whoever_does_its_part_in_the_rounds_is_never_over_its_share(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    village = begin(6, n_members=6, n_rounds=3, **options)
    village.run(LONG_S, lambda: is_done(village))
    assert is_done(village)
    book = village.villagers[0].book
    monkeypatch.setattr(rooms, "MAX_BYTES", 6 << 13)  # 8 KiB each: to join, and to begin
    assert not loaded(book).full()
    monkeypatch.setattr(rooms, "ROUND_BYTES", 0)
    monkeypatch.setattr(rooms, "FELLOW_BYTES", 0)
    assert loaded(book).full(), "the room is full, and shares without the rounds are too small"
