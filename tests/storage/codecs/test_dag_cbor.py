"""DAG-CBOR: links are Cid values, and nothing outside the strict form gets in or out."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import DAG_PB, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock, StorageError, TooLarge

LINK = Cid.of(b"x")


def test_links_are_cid_values_both_ways() -> None:
    value = {"a": LINK, "b": [bytes(LINK), Cid.of(b"y", DAG_PB).as_v0()]}
    decoded = dag_cbor.decode(dag_cbor.encode(value))
    assert decoded == value
    assert isinstance(decoded["a"], Cid)
    assert not isinstance(decoded["b"][0], Cid)
    assert isinstance(decoded["b"][1], Cid)


def test_links_are_listed_in_the_order_of_the_bytes() -> None:
    a, b, c, d = (Cid.of(bytes([number])) for number in range(4))
    assert dag_cbor.links(dag_cbor.encode({"z": [a, {"k": b}], "yy": c, "xxx": [[], [d, a]]})) == [a, b, c, d, a]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "0000",  # two values
        "1800",  # not minimal
        "1900ff",
        "5f41ff41ffff",  # indefinite
        "9fff",
        "bf6161f5ff",
        "a2616101616101",  # a key twice
        "a2616201616101",  # keys out of order
        "a10101",  # a key that is no text
        "61ff",  # not UTF-8
        "f7",  # undefined
        "f0",
        "f97e00",  # short floats
        "fa3f800000",
        "fb7ff8000000000000",
        "fb7ff0000000000000",
        "fb8000000000000000",  # negative zero
        "82fb8000000000000000f5",
        "c11a514b67b0",  # a tag that is not 42
        "d82a0a",  # a link that is no bytes
        "d82a40",
        "d82a4100",
        "d82a582501" + bytes(LINK).hex(),  # without the zero byte
        "d82a582600" + bytes(LINK).hex() + "00",
        "9b4000000000000000",  # lengths that nothing follows
        "bb0000010000000000",
        "5b0000010000000000",
        "c0",
        "1c",
    ],
)
def test_what_is_not_in_the_strict_form_is_refused(bad: str) -> None:
    with pytest.raises(InvalidBlock):
        dag_cbor.decode(bytes.fromhex(bad))


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -0.0, [-0.0], 1 << 64, -(1 << 64) - 1, {1: 2}, (1,), object(), "\ud800"]
)
def test_what_has_no_strict_form_is_not_written(bad: Any) -> None:
    with pytest.raises(InvalidBlock):
        dag_cbor.encode(bad)


def test_the_bytes_of_negative_zero_are_allowed_inside_a_string() -> None:
    inside = b"\xfb" + struct.pack(">d", -0.0)
    for value in (inside, [1, {"k": inside}, 2.5], inside * 300):
        assert dag_cbor.decode(dag_cbor.encode(value)) == value


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth_is_capped_in_both_directions() -> None:
    deepest = [nested(dag_cbor.MAX_DEPTH)]
    assert dag_cbor.decode(dag_cbor.encode(deepest)) == deepest
    with pytest.raises(TooLarge):
        dag_cbor.encode([deepest])
    for head in (b"\x81", b"\xa1\x61a", b"\xd8\x2a", b"\x9a\0\0\0\1"):
        with pytest.raises(TooLarge):
            dag_cbor.decode(head * 100_000)


def test_many_small_containers_side_by_side_are_not_deep() -> None:
    value = [[number, {"a": [LINK]}] for number in range(500)]
    assert dag_cbor.decode(dag_cbor.encode(value)) == value


def test_size_is_capped_in_both_directions() -> None:
    with pytest.raises(TooLarge):
        dag_cbor.encode(bytes(MAX_BLOCK_BYTES))
    with pytest.raises(TooLarge):
        dag_cbor.decode(bytes(MAX_BLOCK_BYTES + 1))


def test_a_block_is_refused_truncated_at_every_byte_and_with_trailing_data() -> None:
    data = dag_cbor.encode({"a": LINK, "list": [1, -5, 1.5, None, True, "text", b"bytes"], "n": 1 << 63})
    for end in range(len(data)):
        with pytest.raises(InvalidBlock):
            dag_cbor.decode(data[:end])
    with pytest.raises(InvalidBlock):
        dag_cbor.decode(data + b"\0")


FLOATS = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number or 0.0)
SCALARS = st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | FLOATS | st.text() | st.binary()
LINKS = st.binary(max_size=20).map(Cid.of)
VALUES = st.recursive(
    SCALARS | LINKS, lambda below: st.lists(below, max_size=6) | st.dictionaries(st.text(), below, max_size=6)
)


@given(VALUES)
def test_every_value_comes_back(value: Any) -> None:
    data = dag_cbor.encode(value)
    assert dag_cbor.decode(data) == value
    assert dag_cbor.encode(dag_cbor.decode(data)) == data


@given(st.binary(max_size=200))
def test_any_bytes_are_read_into_a_value_of_the_same_bytes_or_refused(data: bytes) -> None:
    try:
        value = dag_cbor.decode(data)
    except StorageError:
        return
    assert dag_cbor.encode(value) == data
