import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import Local, Malformed, Oversize, TooBig
from protocols.message import MAX_DEPTH, MAX_ITEMS, Message, check_shape, decode, encode
from storage.cid import Cid
from storage.keys import Identity, PeerId

MAX_BYTES = 1 << 16
PEER = Identity(bytes(32)).peer_id
CID = Cid.of(b"block")


class Note(Message, frozen=True, tag="note"):
    peer: PeerId
    cid: Cid | None = None
    text: str = ""
    data: bytes = b""
    weight: float = 0.0
    count: int = 0
    scores: dict[str, float] = msgspec.field(default_factory=dict)
    links: tuple[Cid, ...] = ()


class Ping(Message, frozen=True, tag="ping"):
    pass


class Anything(Message, frozen=True, tag="anything"):
    value: object


def fields(**changes: object) -> dict[str, object]:
    plain: dict[str, object] = {
        "type": "note",
        "peer": bytes(PEER),
        "cid": bytes(CID),
        "text": "",
        "data": b"",
        "weight": 0.5,
        "count": 1,
        "scores": {},
        "links": [],
    }
    return plain | changes


def written(value: object) -> bytes:
    return cbor2.dumps(value, canonical=True)


notes = st.builds(
    Note,
    peer=st.binary(min_size=32, max_size=32).map(PeerId.of),
    cid=st.none() | st.binary(max_size=9).map(Cid.of),
    text=st.text(max_size=300),
    data=st.binary(max_size=300),
    weight=st.floats(allow_nan=False, allow_infinity=False),
    count=st.integers(-(1 << 63), (1 << 64) - 1),
    scores=st.dictionaries(st.text(max_size=30), st.floats(allow_nan=False, allow_infinity=False), max_size=30),
    links=st.lists(st.binary(max_size=9).map(Cid.of), max_size=30).map(tuple),
)


@given(notes)
def test_what_was_encoded_decodes_to_the_same(note: Note) -> None:
    data = encode(note, MAX_BYTES)
    found = decode(data, Note, MAX_BYTES)
    assert found == note
    assert type(found.peer) is PeerId
    assert all(type(link) is Cid for link in found.links)
    assert data == written(cbor2.loads(data))


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_escapes(data: bytes) -> None:
    with pytest.raises((Malformed, TooBig)):
        decode(data, Note, 150)


@given(notes, st.data())
def test_no_changed_byte_decodes_to_the_same_message(note: Note, data: st.DataObject) -> None:
    whole = encode(note, MAX_BYTES)
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    try:
        found = decode(changed, Note, MAX_BYTES)
    except Malformed:
        return
    assert encode(found, MAX_BYTES) == changed


def test_a_message_cut_anywhere_or_followed_by_a_byte_is_refused() -> None:
    whole = encode(Note(peer=PEER, cid=CID, text="text", scores={"loss": 1.5}, links=(CID,)), MAX_BYTES)
    for end in range(len(whole)):
        with pytest.raises(Malformed):
            decode(whole[:end], Note, MAX_BYTES)
    with pytest.raises(Malformed, match="1 bytes follow"):
        decode(whole + b"\0", Note, MAX_BYTES)


def test_a_message_may_be_one_of_several_kinds() -> None:
    assert decode(encode(Ping(), 99), (Note, Ping), 99) == Ping()
    with pytest.raises(Malformed):
        decode(encode(Ping(), 99), Note, 99)


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        (fields(extra=1), "unknown field"),
        (fields(type="other"), "Invalid value"),
        (fields(peer=bytes(38)), "neither a key"),
        (fields(peer=str(PEER)), "byte string on the wire"),
        (fields(cid=b"\1\2"), "not a CID"),
        (fields(cid=str(CID)), "byte string on the wire"),
        (fields(data="YWJj"), "deterministic"),
        (fields(weight=1), "deterministic"),
        (fields(count=1.0), "Expected `int`"),
        (fields(count="1"), "Expected `int`"),
        (fields(text=b""), "Expected `str`"),
        ({name: value for name, value in fields().items() if name != "text"}, "deterministic"),
        ({name: value for name, value in fields().items() if name != "peer"}, "missing required field"),
        ([], "Expected `object`"),
        (None, "Expected `object`"),
        (fields(scores={1: 1.0}), "not text"),
        (fields(scores={"loss": float("nan")}), "not finite"),
        (fields(weight=float("-inf")), "not finite"),
        (fields(count=1 << 64), "tag 2"),
        (fields(text=cbor2.CBORTag(1, 1)), "tag 1"),
        (fields(text=cbor2.undefined), "simple value"),
    ],
)
def test_a_field_out_of_its_type_is_refused(plain: object, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        decode(written(plain), Note, MAX_BYTES)


@pytest.mark.parametrize(
    ("hexed", "reason"),
    [
        ("a2 6474797065 6470696e67 6474797065 6470696e67", "deterministic"),  # the key `type` twice
        ("a1 6474797065 780470696e67", "shortest"),  # the length 4 in two bytes
        ("b801 6474797065 6470696e67", "shortest"),
        ("bf 6474797065 6470696e67 ff", "indefinite"),
        ("a1 6474797065 7f6470696e67ff", "indefinite"),
        ("a1 6474797065 64ff696e67", "unicode"),
        ("a1 4474797065 6470696e67", "not text"),
        ("a1 6474797065 1c", "indefinite"),  # reserved additional information
        ("a1 6474797065 f820", "simple value"),
        ("a1 6474797065 ff", "simple value"),
        ("d9d9f7 a1 6474797065 6470696e67", "tag 55799"),
        ("9bffffffffffffffff", "cut short"),
        ("bbffffffffffffffff", "cut short"),
        ("5bffffffffffffffff", "cut short"),
        ("", "cut short"),
    ],
)
def test_another_way_to_write_a_message_is_refused(hexed: str, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        decode(bytes.fromhex(hexed), Ping, MAX_BYTES)


def test_keys_out_of_order_are_refused() -> None:
    plain = fields()
    unsorted = cbor2.dumps(dict(sorted(plain.items(), reverse=True)))
    assert len(unsorted) >= len(written(plain))
    with pytest.raises(Malformed, match="deterministic"):
        decode(unsorted, Note, MAX_BYTES)


def test_nesting_is_bounded_before_anything_is_decoded() -> None:
    deep = b"\x81" * (MAX_DEPTH - 1) + b"\x80"
    check_shape(deep)
    with pytest.raises(Malformed, match="deeper"):
        check_shape(b"\x81" + deep)
    with pytest.raises(Malformed, match="deeper"):
        check_shape(b"\x81" * 60_000 + b"\x80")


def test_the_number_of_items_is_bounded() -> None:
    check_shape(written([0] * (MAX_ITEMS - 1)))
    with pytest.raises(Malformed, match="items"):
        check_shape(written([0] * MAX_ITEMS))


def test_size_is_bounded_both_ways() -> None:
    note = Note(peer=PEER, data=bytes(1000))
    data = encode(note, MAX_BYTES)
    assert decode(data, Note, len(data)) == note
    with pytest.raises(Oversize):
        encode(note, len(data) - 1)
    for call in (
        lambda: decode(data, Note, len(data) - 1),
        lambda: decode(b"\xff" * 100, Note, 99),  # before anything is read
    ):
        with pytest.raises(TooBig):
            call()


def test_a_message_that_would_be_longer_in_its_one_form_is_a_lie_of_the_peer() -> None:
    data = written({"type": "note", "peer": PEER})
    assert len(encode(Note(peer=PEER), MAX_BYTES)) >= len(data)
    with pytest.raises(Malformed):
        decode(data, Note, len(data))


def test_a_field_of_a_type_without_a_form_is_our_own_mistake() -> None:
    class Odd(Message, frozen=True, tag="odd"):
        value: complex

    with pytest.raises(Local, match="complex has no form"):
        decode(written({"type": "odd", "value": 1}), Odd, MAX_BYTES)


@pytest.mark.parametrize("value", ["\ud800", object(), {1, object()}])
def test_what_cbor_cannot_carry_is_our_own_mistake(value: object) -> None:
    with pytest.raises(Local, match="Anything cannot be encoded"):
        encode(Anything(value=value), MAX_BYTES)
