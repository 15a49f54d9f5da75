from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.catalog import Catalog
from storage.catalog.database import Database
from storage.catalog.events import MAX_EVENT_BYTES, MAX_EVENTS_READ, SCHEMA, Event, EventLog
from storage.errors import TooLarge

N_KEPT = 5

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)


@pytest.fixture
def short_log(tmp_path: Path) -> Iterator[EventLog]:
    database = Database.open(tmp_path / "events.db", (SCHEMA,))
    yield EventLog(database, n_kept=N_KEPT)
    database.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.dictionaries(st.text(max_size=9), json_values, max_size=4), st.floats(0, 1e12))
def test_an_event_comes_back_as_it_was_appended(catalog: Catalog, fields: dict[str, object], unix_s: float) -> None:
    before = catalog.events.last_id
    event = catalog.events.append("kind", fields, unix_s)
    assert event == Event(before + 1, unix_s, "kind", fields)
    assert catalog.events.since(before) == [event]


def test_ids_have_no_gaps_after_a_rollback(catalog: Catalog) -> None:
    catalog.events.append("one", {}, 1.0)
    with pytest.raises(ZeroDivisionError), catalog.transaction():  # noqa: PT012  # the block is the transaction
        catalog.events.append("undone", {}, 1.0)
        raise ZeroDivisionError
    assert catalog.events.append("two", {}, 1.0).id == 2
    assert [event.kind for event in catalog.events.since()] == ["one", "two"]


def test_the_newest_stay_and_ids_are_never_used_again(short_log: EventLog) -> None:
    for number in range(1, 13):
        assert short_log.append("tick", {}, float(number)).id == number
    assert [event.id for event in short_log.since()] == [8, 9, 10, 11, 12]
    assert short_log.last_id == 12


def test_ids_go_on_after_the_log_was_opened_again(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        catalog = Catalog.open(tmp_path / "catalog.db")
        assert catalog.events.append("up", {}, 1.0).id == expected
        catalog.close()


def test_a_follower_reads_on_from_where_it_was(catalog: Catalog) -> None:
    for number in range(7):
        catalog.events.append("tick", {"number": number}, 1.0)
    seen: list[int] = []
    while events := catalog.events.since(seen[-1] if seen else 0, limit=3):
        seen += [event.id for event in events]
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert catalog.events.since(99) == []
    assert catalog.events.since(0, limit=-1) == []
    assert len(catalog.events.since(0, limit=MAX_EVENTS_READ + 1)) == 7


def test_text_that_is_not_unicode_is_kept(catalog: Catalog) -> None:
    ugly = b"caf\xe9".decode(errors="surrogateescape")
    catalog.events.append("heard", {"name": ugly}, 1.0)
    assert catalog.events.since()[0].fields == {"name": ugly}


def test_an_event_is_bounded_and_json(catalog: Catalog) -> None:
    with pytest.raises(TooLarge):
        catalog.events.append("big", {"text": "é" * (MAX_EVENT_BYTES // 6)}, 1.0)
    with pytest.raises(ValueError, match="JSON"):
        catalog.events.append("odd", {"loss": float("nan")}, 1.0)
    with pytest.raises(TypeError):
        catalog.events.append("odd", {"bytes": b""}, 1.0)
    assert catalog.events.last_id == 0
