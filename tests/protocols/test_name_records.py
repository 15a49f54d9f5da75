"""Records kept for others: good ones, the better of two, for a while, and nobody takes the room of all."""

import pytest

from protocols import name_records
from protocols.errors import Expired, Forged, Malformed, Replayed, TooBig
from protocols.ipns import make_record
from protocols.name_records import KEPT_S, MAX_RECORDS_OF_PEER, NameRecords, key_of_name, name_of_key
from storage.keys import Identity, PeerId

NOW = 1.9e9
OWN, ANN, BOB = (PeerId.of(bytes([number]) * 32) for number in (1, 2, 3))
ALICE = Identity(b"\x07" * 32)


def record(owner: Identity = ALICE, sequence: int = 1, lifetime_s: int = 100 * 3600, value: str = "/ipfs/x") -> bytes:
    return make_record(owner, value, sequence=sequence, unix_s=NOW, lifetime_s=lifetime_s)


def owner(number: int) -> Identity:
    return Identity(number.to_bytes(32))


@pytest.fixture
def records() -> NameRecords:
    return NameRecords(OWN)


def put(records: NameRecords, raw: bytes, by: PeerId = ANN, *, of: Identity = ALICE, at_s: float = 0.0) -> None:
    records.put(of.peer_id, raw, by, now_s=at_s, unix_s=NOW + at_s)


def test_a_key_of_the_dht_names_whom_it_is_of() -> None:
    assert name_of_key(key_of_name(ALICE.peer_id)) == ALICE.peer_id
    for key in (b"", b"/ipns/", b"/pk/" + ALICE.peer_id, b"/ipns/" + bytes(1000), b"/ipns/" + ALICE.peer_id + b"x"):
        with pytest.raises(Malformed):
            name_of_key(key)


def test_the_better_record_stays_whichever_came_first(records: NameRecords) -> None:
    first, second = record(sequence=1), record(sequence=2)
    longer = record(sequence=2, lifetime_s=200 * 3600)
    put(records, first)
    put(records, second, BOB)
    put(records, longer)
    for older in (first, second):
        with pytest.raises(Replayed):
            put(records, older, BOB)
    kept = records.get(ALICE.peer_id, NOW)
    assert kept is not None and kept.raw == longer
    assert (len(records), records.n_bytes) == (1, len(longer))


def test_what_is_no_good_is_not_kept(records: NameRecords) -> None:
    for raw, error in (
        (record(owner(5)), Forged),
        (record()[:-1], Malformed),
        (b"", Malformed),
        (bytes(11 << 10), TooBig),
        (make_record(ALICE, "/ipfs/x", sequence=1, unix_s=NOW - 1000, lifetime_s=60), Expired),
    ):
        with pytest.raises(error):
            put(records, raw)
    assert (len(records), records.n_bytes) == (0, 0)


def test_a_record_goes_when_its_time_or_the_dhts_is_over(records: NameRecords) -> None:
    put(records, record(lifetime_s=60))
    assert records.get(ALICE.peer_id, NOW + 59) and not records.get(ALICE.peer_id, NOW + 60)
    put(records, record())
    assert records.get(ALICE.peer_id, NOW + KEPT_S) and not records.get(ALICE.peer_id, NOW + KEPT_S + 1)
    put(records, record())
    put(records, record(), at_s=KEPT_S)  # sent again: it stays
    assert records.get(ALICE.peer_id, NOW + KEPT_S + 1)


def test_a_peer_has_its_share_of_the_room_and_no_more(records: NameRecords) -> None:
    put(records, record(), BOB)
    for number in range(2 * MAX_RECORDS_OF_PEER):
        put(records, record(owner(number)), of=owner(number), at_s=float(number))
    assert len(records) == MAX_RECORDS_OF_PEER + 1
    assert records.get(ALICE.peer_id, NOW)
    assert records.get(owner(2 * MAX_RECORDS_OF_PEER - 1).peer_id, NOW)  # its newest stay


def test_who_floods_pushes_out_itself_and_neither_others_nor_this_node(
    records: NameRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_records, "MAX_RECORDS", 10)
    put(records, record(owner(1)), OWN, of=owner(1))
    put(records, record(), BOB)
    put(records, record(), ANN)  # who floods repeats another's record first
    for number in range(50, 90):
        put(records, record(owner(number)), of=owner(number))
    assert len(records) == 10
    assert records.get(ALICE.peer_id, NOW) and records.get(owner(1).peer_id, NOW)


def test_bytes_are_bounded_too(records: NameRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_records, "MAX_BYTES", 20_000)
    for number in range(1, 20):
        put(records, record(owner(number), value="/ipfs/" + "x" * 5000), of=owner(number))
    assert 0 < records.n_bytes <= 20_000


def test_a_peer_may_put_so_many_in_so_long(records: NameRecords) -> None:
    for _ in range(name_records.PUTS):
        put(records, record())
    with pytest.raises(TooBig, match="in 60 s"):
        put(records, record())
    put(records, record(), BOB)
    put(records, record(), at_s=1.0)
    for _ in range(2 * name_records.PUTS):
        put(records, record(), OWN)
