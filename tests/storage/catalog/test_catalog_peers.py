from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.catalog import Catalog
from storage.catalog.database import Database
from storage.catalog.peers import MAX_ADDRESS_CHARS, MAX_ADDRESSES, SCHEMA, PeerBook, PeerRow
from storage.errors import InvalidText
from storage.keys import Identity, PeerId

ALICE, BOB, CAROL, DAVE = (Identity(name * 32).peer_id for name in (b"a", b"b", b"c", b"d"))


@pytest.fixture
def small_book(tmp_path: Path) -> Iterator[PeerBook]:
    database = Database.open(tmp_path / "peers.db", (SCHEMA,))
    yield PeerBook(database, max_peers=2)
    database.close()


def test_an_address_gives_no_trust(catalog: Catalog) -> None:
    catalog.peers.add(ALICE, ["/ip4/192.0.2.7/tcp/4701"], 1.0, name="alice")
    catalog.peers.heard(BOB, ["/ip4/192.0.2.8/tcp/4701"], 2.0)
    assert catalog.peers.flock() == frozenset()
    assert catalog.peers.get(ALICE) == PeerRow(ALICE, "alice", True, 1.0, ("/ip4/192.0.2.7/tcp/4701",), frozenset())
    assert catalog.peers.get(CAROL) is None
    assert [row.peer for row in catalog.peers.list()] == [ALICE, BOB]
    assert [row.peer for row in catalog.peers.kept()] == [ALICE]
    assert [row.peer for row in catalog.peers.named("alice")] == [ALICE]
    assert catalog.peers.names() == {ALICE: "alice"}


def test_trust_is_for_kinds_and_can_be_taken_back(catalog: Catalog) -> None:
    catalog.peers.trust(ALICE, ["adapters", "rounds"], 1.0)
    catalog.peers.trust(ALICE, ["adapters"], 2.0)
    assert catalog.peers.is_trusted(ALICE, "adapters")
    assert not catalog.peers.is_trusted(ALICE, "ask")
    assert not catalog.peers.is_trusted(BOB, "adapters")
    assert catalog.peers.flock() == {ALICE}
    assert catalog.peers.untrust(ALICE, ["adapters", "ask"])
    assert not catalog.peers.untrust(ALICE, ["adapters"])
    assert not catalog.peers.is_trusted(ALICE, "adapters")
    assert catalog.peers.flock() == {ALICE}
    assert catalog.peers.untrust(ALICE)
    assert not catalog.peers.untrust(ALICE)
    assert catalog.peers.flock() == frozenset()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([ALICE, BOB]), st.sampled_from(["a", "b", "c"])), max_size=12))
def test_trust_is_what_was_given_and_not_taken_back(catalog: Catalog, steps: list[tuple[bool, PeerId, str]]) -> None:
    catalog.peers.untrust(ALICE)
    catalog.peers.untrust(BOB)
    trusted: set[tuple[PeerId, str]] = set()
    for is_given, peer, kind in steps:
        if is_given:
            catalog.peers.trust(peer, [kind], 1.0)
            trusted.add((peer, kind))
        else:
            assert catalog.peers.untrust(peer, [kind]) == ((peer, kind) in trusted)
            trusted.discard((peer, kind))
    assert catalog.peers.flock() == {peer for peer, _ in trusted}
    assert {(row.peer, kind) for row in catalog.peers.list() for kind in row.kinds} == trusted


@pytest.mark.parametrize("kind", ["", "Adapters", "a b", "adapters\n", "a" * 33, "ask1"])
def test_a_kind_that_is_no_word_is_refused_and_nothing_is_stored(catalog: Catalog, kind: str) -> None:
    with pytest.raises(InvalidText):
        catalog.peers.trust(ALICE, ["adapters", kind], 1.0)
    assert catalog.peers.get(ALICE) is None


@pytest.mark.parametrize("name", ["", "a\x1b[31m", "a" * 65, "a\nb"])
def test_a_name_that_cannot_be_shown_is_refused(catalog: Catalog, name: str) -> None:
    with pytest.raises(InvalidText):
        catalog.peers.add(ALICE, [], 1.0, name=name)
    assert catalog.peers.get(ALICE) is None


def test_addresses_are_bounded_and_those_that_the_user_gave_stay(catalog: Catalog) -> None:
    catalog.peers.add(ALICE, ["/dns4/alice.example/tcp/4701"], 1.0)
    for number in range(3 * MAX_ADDRESSES):
        catalog.peers.heard(ALICE, [f"/ip4/192.0.2.{number}/tcp/4701"], 2.0 + number)
    found = catalog.peers.addresses(ALICE)
    assert len(found) == MAX_ADDRESSES
    assert found[0] == "/dns4/alice.example/tcp/4701"
    assert found[1] == f"/ip4/192.0.2.{3 * MAX_ADDRESSES - 1}/tcp/4701"
    catalog.peers.heard(BOB, ["/" + "x" * MAX_ADDRESS_CHARS], 1.0)
    assert catalog.peers.addresses(BOB) == ()


def test_strangers_make_room_and_peers_that_the_user_keeps_stay(small_book: PeerBook) -> None:
    small_book.trust(ALICE, ["adapters"], 1.0)
    small_book.heard(ALICE, [], 1.5)
    small_book.heard(BOB, ["/ip4/192.0.2.8/tcp/1"], 2.0)
    small_book.heard(CAROL, [], 3.0)
    assert [row.peer for row in small_book.list()] == [ALICE, CAROL]
    assert small_book.addresses(BOB) == ()
    small_book.add(BOB, [], 4.0)
    small_book.add(DAVE, [], 5.0)
    assert {row.peer for row in small_book.list()} == {ALICE, BOB, DAVE}
    assert small_book.flock() == {ALICE}


def test_a_removed_peer_leaves_nothing_behind(catalog: Catalog) -> None:
    catalog.peers.add(ALICE, ["/ip4/192.0.2.7/tcp/4701"], 1.0)
    catalog.peers.trust(ALICE, ["adapters"], 1.0)
    assert catalog.peers.remove(ALICE)
    assert not catalog.peers.remove(ALICE)
    assert catalog.peers.addresses(ALICE) == ()
    assert catalog.peers.flock() == frozenset()
    assert not catalog.peers.is_trusted(ALICE, "adapters")


def test_the_flock_in_memory_follows_every_change_and_no_change_that_was_undone(catalog: Catalog) -> None:
    for peer in (ALICE, BOB, CAROL):
        catalog.peers.trust(peer, ["adapters"], 1.0)
        assert peer in catalog.peers.flock()
    catalog.peers.untrust(ALICE, ["adapters"])
    assert catalog.peers.flock() == {BOB, CAROL}
    catalog.peers.untrust(BOB)
    assert catalog.peers.flock() == {CAROL}
    with suppress(ZeroDivisionError), catalog.transaction():
        catalog.peers.remove(CAROL)
        raise ZeroDivisionError
    assert catalog.peers.flock() == {CAROL}
    catalog.peers.remove(CAROL)
    assert catalog.peers.flock() == frozenset()
