import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.catalog import Catalog, names
from storage.catalog.names import MAX_RECORD_BYTES, NameRow, OwnName
from storage.errors import TooLarge
from storage.keys import PeerId

ROW = NameRow(
    name=PeerId.of(b"\x01" * 32),
    record=b"signed",
    value=b"/ipfs/bafy",
    sequence=5,
    expires_unix_ns=1_900_000_000_000_000_001,
    ttl_ns=300,
    received_unix_s=1.0,
)
WIDE = st.integers(0, (1 << 64) - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.builds(
        NameRow,
        name=st.binary(min_size=32, max_size=32).map(PeerId.of),
        record=st.binary(max_size=100),
        value=st.binary(max_size=100),
        sequence=WIDE,
        expires_unix_ns=st.integers(-(10**20), 10**21),
        ttl_ns=WIDE,
        received_unix_s=st.floats(0, 1e11),
    )
)
def test_a_row_comes_back_as_it_was_stored(catalog: Catalog, row: NameRow) -> None:
    catalog.names.remove(row.name)
    assert catalog.names.put(row)
    assert catalog.names.get(row.name) == row


def test_the_higher_sequence_wins_then_the_later_validity(catalog: Catalog) -> None:
    later = dataclasses.replace(ROW, expires_unix_ns=ROW.expires_unix_ns + 1, record=b"later")
    newer = dataclasses.replace(ROW, sequence=1 << 63, expires_unix_ns=0, record=b"newer")
    assert [catalog.names.put(row) for row in (ROW, ROW, later, ROW, newer, later)] == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]
    assert catalog.names.list() == [newer]


def test_there_is_an_end_to_how_many_are_kept_and_known_ones_are_renewed(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "MAX_NAMES", 1)
    other = dataclasses.replace(ROW, name=PeerId.of(b"\x02" * 32))
    catalog.names.put(ROW)
    with pytest.raises(TooLarge, match="covey name rm NAME"):
        catalog.names.put(other)
    assert catalog.names.put(dataclasses.replace(ROW, sequence=6))
    assert catalog.names.remove(ROW.name)
    assert not catalog.names.remove(ROW.name)
    assert catalog.names.put(other)


def test_a_record_over_the_limit_is_not_kept(catalog: Catalog) -> None:
    with pytest.raises(TooLarge):
        catalog.names.put(dataclasses.replace(ROW, record=b"x" * (MAX_RECORD_BYTES + 1)))


def test_of_the_names_that_are_signed_for_each_is_found_by_itself(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [OwnName(PeerId.of(bytes([number]) * 32), f"key {number}", 60, 1.5) for number in range(3)]
    for each in own:
        catalog.names.put_own(each)
    assert catalog.names.own() == tuple(own)
    monkeypatch.setattr(catalog.names, "own", None)  # a list asks for each of its rows: no row reads all
    assert [catalog.names.own_of(each.name) for each in own] == own
    assert catalog.names.own_of(PeerId.of(b"\x09" * 32)) is None
