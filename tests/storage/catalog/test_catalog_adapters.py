import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.catalog import MIGRATIONS, Catalog
from storage.catalog.adapters import (
    ARRIVALS_KEPT_S,
    AdapterOrder,
    AdapterRow,
    AdapterState,
    AdapterTable,
)
from storage.catalog.artifacts import MAX_ROW_TEXT_BYTES, ArtifactTable
from storage.catalog.database import Database
from storage.catalog.lineage import LineageTable
from storage.cid import DAG_CBOR, Cid
from storage.errors import NotFound, TooLarge
from storage.keys import Identity

ALICE, BOB = (Identity(name * 32).peer_id for name in (b"a", b"b"))


def row(number: int = 0, **changes: Any) -> AdapterRow:
    plain = AdapterRow(
        manifest=Cid.of(bytes([number]), DAG_CBOR),
        name="poet",
        base="bafybase",
        publisher=ALICE,
        version=1,
        rank=8,
        n_bytes=1 << 21,
        created_unix_s=1.0,
        heard_unix_s=2.0 + number,
        tags=("verse", "english"),
        metrics={"loss": 1.5},
    )
    return dataclasses.replace(plain, **changes)


@pytest.fixture
def small_table(tmp_path: Path) -> Iterator[AdapterTable]:
    database = Database.open(tmp_path / "catalog.db", MIGRATIONS)
    yield AdapterTable(database, ArtifactTable(database, LineageTable(database)), max_rows=2)
    database.close()


rows = st.builds(
    AdapterRow,
    manifest=st.binary(min_size=1, max_size=9).map(lambda data: Cid.of(data, DAG_CBOR)),
    name=st.text(max_size=40),
    base=st.text(max_size=60),
    publisher=st.sampled_from([ALICE, BOB]),
    version=st.integers(0, 1 << 31),
    rank=st.integers(0, 4096),
    n_bytes=st.integers(0, 1 << 40),
    created_unix_s=st.floats(0, 1e11),
    heard_unix_s=st.floats(0, 1e11),
    tags=st.lists(st.text(max_size=9), max_size=4, unique=True).map(tuple),
    metrics=st.dictionaries(st.text(max_size=9), st.floats(allow_nan=False, allow_infinity=False), max_size=4),
    state=st.sampled_from(AdapterState),
    reason=st.none() | st.text(max_size=40),
    ready_unix_s=st.none() | st.floats(0, 1e11),
    folder=st.none() | st.text(max_size=40),
    is_own=st.booleans(),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rows)
def test_a_row_comes_back_as_it_was_stored(catalog: Catalog, adapter: AdapterRow) -> None:
    catalog.artifacts.remove(adapter.manifest)
    assert catalog.adapters.upsert(adapter)
    assert catalog.adapters.get(adapter.manifest) == adapter
    assert catalog.adapters.query(name=adapter.name, base=adapter.base, state=adapter.state) == [adapter]
    assert catalog.artifacts.remove(adapter.manifest)
    assert catalog.adapters.get(adapter.manifest) is None


def test_hearing_of_an_adapter_again_does_not_undo_how_far_it_has_come(catalog: Catalog) -> None:
    first = row()
    assert catalog.adapters.upsert(first)
    catalog.adapters.set_state(first.manifest, AdapterState.FETCHING, 3.0, folder="/adapters/poet")
    catalog.adapters.set_state(first.manifest, AdapterState.READY, 4.0)
    assert not catalog.adapters.upsert(dataclasses.replace(first, heard_unix_s=9.0))
    assert not catalog.adapters.upsert(dataclasses.replace(first, heard_unix_s=1.0, is_own=True))
    expected = dataclasses.replace(
        first, state=AdapterState.READY, ready_unix_s=4.0, folder="/adapters/poet", heard_unix_s=9.0, is_own=True
    )
    assert catalog.adapters.get(first.manifest) == expected


def test_a_refusal_keeps_its_reason_until_the_next_state(catalog: Catalog) -> None:
    catalog.adapters.upsert(row())
    catalog.adapters.set_state(row().manifest, AdapterState.REFUSED, 3.0, reason="untrusted")
    assert catalog.adapters.query(state=AdapterState.REFUSED)[0].reason == "untrusted"
    catalog.adapters.set_state(row().manifest, AdapterState.FETCHING, 4.0)
    assert catalog.adapters.query(state=AdapterState.FETCHING)[0].reason is None
    with pytest.raises(NotFound, match="covey adapter ls"):
        catalog.adapters.set_state(row(99).manifest, AdapterState.READY, 5.0)


def test_a_query_gives_what_fits_everything(catalog: Catalog) -> None:
    poet, other_base = row(0), row(1, base="bafyother")
    by_bob, tagged = row(2, publisher=BOB, version=2), row(3, name="cook", tags=("food",), is_own=True)
    for adapter in (poet, other_base, by_bob, tagged):
        catalog.adapters.upsert(adapter)
    query = catalog.adapters.query
    assert query() == [tagged, by_bob, other_base, poet]
    assert query(limit=1) == [tagged]
    assert query(base="bafybase", name="poet") == [by_bob, poet]
    assert query(publisher=BOB) == [by_bob]
    assert query(tag="food") == [tagged]
    assert query(tag="foo") == []
    assert query(version=2, publisher=ALICE) == []
    assert query(is_own=False, order=AdapterOrder.VERSION) == [by_bob, other_base, poet]
    assert query(order=AdapterOrder.NAME)[0] == tagged
    assert query(name="' OR 1=1 --") == []


def test_a_removed_adapter_has_no_folder_and_can_be_left_out(catalog: Catalog) -> None:
    for number, state in enumerate((AdapterState.READY, AdapterState.REMOVED)):
        catalog.adapters.upsert(row(number))
        catalog.adapters.set_state(row(number).manifest, AdapterState.READY, 3.0, folder="/adapters/poet")
        catalog.adapters.set_state(row(number).manifest, state, 4.0)
    assert [found.folder for found in catalog.adapters.query(order=AdapterOrder.NAME)].count(None) == 1
    (left,) = catalog.adapters.query(but_not=AdapterState.REMOVED)
    assert left.folder == "/adapters/poet"


def test_of_each_own_name_and_base_the_highest_version_is_found(catalog: Catalog) -> None:
    ready: dict[str, Any] = {"state": AdapterState.READY, "is_own": True}
    changes: list[dict[str, Any]] = [
        {"version": 1},
        {"version": 3},
        {"version": 2},
        {"version": 4, "state": AdapterState.REMOVED},
        {"version": 5, "is_own": False},
        {"name": "psalms"},
        {"base": "bafyother", "version": 7},
    ]
    for number, changed in enumerate(changes):
        catalog.adapters.upsert(row(number, **(ready | changed)))
    found = [(one.base, one.name, one.version) for one in catalog.adapters.newest_own()]
    assert found == [("bafyother", "poet", 7), ("bafybase", "psalms", 1), ("bafybase", "poet", 3)]
    assert [one.version for one in catalog.adapters.newest_own(base="bafyother")] == [7]
    assert len(catalog.adapters.newest_own(limit=2)) == 2


def test_what_is_merely_heard_makes_room_and_what_is_own_or_ready_stays(small_table: AdapterTable) -> None:
    small_table.upsert(row(0, is_own=True))
    small_table.upsert(row(1, state=AdapterState.READY))
    for number in (2, 5, 4):
        small_table.upsert(row(number))
    assert {adapter.manifest for adapter in small_table.query()} == {row(number).manifest for number in (0, 1, 4)}


def test_a_row_is_bounded(catalog: Catalog) -> None:
    with pytest.raises(TooLarge):
        catalog.adapters.upsert(row(tags=("x" * MAX_ROW_TEXT_BYTES,)))
    with pytest.raises(ValueError, match="not finite"):
        catalog.adapters.upsert(row(metrics={"loss": float("inf")}))
    assert catalog.adapters.query() == []


def test_a_new_row_finds_room_where_every_other_one_stays(small_table: AdapterTable) -> None:
    for number in (1, 2):
        small_table.upsert(row(number))
        small_table.set_state(row(number).manifest, AdapterState.READY, 1.0, folder="/f")
    for number in (3, 4):
        small_table.upsert(row(number, heard_unix_s=float(number)))
        assert small_table.get(row(number).manifest) is not None
    assert len(small_table.query()) == 3


def test_what_came_is_told_for_each_adapter_and_let_go_of_in_time(catalog: Catalog) -> None:
    first, second = row(1).manifest, row(2).manifest
    for manifest, n_bytes, unix_s in ((first, 5, 0.0), (second, 7, 10.0), (first, 6, 20.0)):
        catalog.adapters.note_came(manifest, n_bytes, unix_s)
    assert catalog.adapters.came_since(10.0) == {first: 6, second: 7}
    catalog.adapters.note_came(second, 8, ARRIVALS_KEPT_S + 10.0)
    assert catalog.adapters.came_since(10.0) == {first: 6, second: 15}


def test_what_came_while_the_clock_was_far_ahead_does_not_count_until_then(catalog: Catalog) -> None:
    manifest, day_s = row(1).manifest, ARRIVALS_KEPT_S / 2
    for n_bytes, ahead_s in ((3, 365 * day_s), (4, 0.0), (5, 600.0)):
        catalog.adapters.note_came(manifest, n_bytes, 1000 * day_s + ahead_s)
    assert catalog.adapters.came_since(999 * day_s) == {manifest: 9}
