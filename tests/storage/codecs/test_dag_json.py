"""DAG-JSON: one way to write a value, and nothing that could be taken for a link or for bytes by mistake."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import DAG_PB, Cid
from storage.codecs import MAX_LINKS, dag_cbor, dag_json, dag_pb
from storage.codecs.dag_pb import PbLink, PbNode
from storage.errors import InvalidBlock, StorageError, TooLarge

LINK = Cid.of(b"x")
TINY = Cid(b"\x01\x55\x00\x00")


def test_links_and_bytes_stand_below_a_slash() -> None:
    assert (
        dag_json.encode({"b": b"\xff", "a": LINK}) == f'{{"a":{{"/":"{LINK}"}},"b":{{"/":{{"bytes":"/w"}}}}}}'.encode()
    )
    v0 = Cid.of(b"y", DAG_PB).as_v0()
    assert dag_json.encode(v0) == f'{{"/":"{v0}"}}'.encode()
    assert type(dag_json.decode(dag_json.encode(bytes(LINK)))) is bytes


def test_links_are_listed_in_the_order_of_the_bytes() -> None:
    a, b, c = (Cid.of(bytes([number])) for number in range(3))
    assert dag_json.links(dag_json.encode({"z": [a], "x": [[], {"k": b}], "y": c})) == [b, c, a]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0.0"),
        (1.0, "1.0"),
        (-1.5, "-1.5"),
        (100.0, "100.0"),
        (0.1, "0.1"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (1.5e-7, "1.5e-7"),
        (1e20, "100000000000000000000.0"),
        (1e21, "1e+21"),
        (1.25e300, "1.25e+300"),
        (5e-324, "5e-324"),
        (123456789012345680.0, "123456789012345680.0"),
    ],
)
def test_floats_have_a_point_or_an_exponent(number: float, text: str) -> None:
    assert dag_json.encode(number) == text.encode()
    assert dag_json.decode(text.encode()) == number
    assert type(dag_json.decode(text.encode())) is float


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b" 1",
        b"1\n",
        b'{"a": 1}',
        b"[1, 2]",
        b'{"b":1,"a":2}',
        b'{"a":1,"a":2}',
        b"[1]]",
        b"1 2",
        b"[1,]",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-0",
        b"-0.0",
        b"01",
        b"+1",
        b".5",
        b"18446744073709551616",
        b"-18446744073709551617",
        b"9" * 100_000,
        b'"\xff"',
        b'"\\ud800"',
        b'{"\\ud800":1}',
        b'"\x00"',
        b'"\\x41"',
        b"\xef\xbb\xbf1",
        b"'a'",
        b"tru",
        b'"a',
        b'{"a"}',
        b'{"/":"x"}',
        b'{"/":""}',
        b'{"/":"z8mWaJ1dZ9fH5EetPuRsj8jj26pXsgpsr"}',
        b'{"/":"foo","bar":1}',
        b'{"\\u002f":"foo"}',
        b'{"/":{"bytes":"AA=="}}',
        b'{"/":{"bytes":"AB"}}',
        b'{"/":{"bytes":"-_8"}}',
        b'{"/":{"bytes":"AA","x":1}}',
        b'{"/":{"bytes":"AA"},"x":1}',
    ],
)
def test_what_is_not_in_the_strict_form_is_refused(bad: bytes) -> None:
    with pytest.raises(InvalidBlock):
        dag_json.decode(bad)


@pytest.mark.parametrize(
    "text",
    [
        b'{"!":1,"/":"foo"}',
        b'{"/":1}',
        b'{"/":true,"bar":1}',
        b'{"/":{"abar":1,"bytes":"foo"}}',
        b'{"/":{"bytes":1},"bar":2}',
        b'{"/":{}}',
        b'{"/":{"bytez":"AA"}}',
    ],
)
def test_other_maps_with_a_slash_are_maps(text: bytes) -> None:
    value = dag_json.decode(text)
    assert isinstance(value, dict)
    assert dag_json.encode(value) == text


@pytest.mark.parametrize(
    "bad",
    [
        {"/": "x"},
        {"/": str(LINK)},
        {"x": 1, "/": "x"},
        {"/": {"bytes": "AA"}},
        {"/": {"x": 1, "bytes": "AA"}},
        {"/": {"bytes": "AA"}, "x": 1},
        float("nan"),
        float("inf"),
        -0.0,
        1 << 64,
        -(1 << 64) - 1,
        {1: 2},
        (1,),
        object(),
        "\ud800",
        {"\ud800": 1},
    ],
)
def test_what_has_no_strict_form_is_not_written(bad: Any) -> None:
    with pytest.raises(InvalidBlock):
        dag_json.encode(bad)


def test_what_people_type_is_read_with_whitespace_and_in_any_order() -> None:
    assert list(dag_json.read(b' {"b" : [1, 2],\n "a": {"/": {"bytes": "AA"}}}\n').items()) == [
        ("a", b"\0"),
        ("b", [1, 2]),
    ]
    for bad in (b'{"a":1,"a":2}', b'{"x":1,"/":"foo"}', b"1 2", b"NaN"):
        with pytest.raises(InvalidBlock):
            dag_json.read(bad)


def test_any_way_to_write_a_character_is_read() -> None:
    assert dag_json.decode(b'"\\u0041\\/\\ud83d\\ude00"') == "A/\U0001f600"


def test_depth_is_capped_in_both_directions() -> None:
    deepest: Any = []
    for _ in range(dag_json.MAX_DEPTH - 1):
        deepest = [deepest]
    assert dag_json.decode(dag_json.encode(deepest)) == deepest
    with pytest.raises(TooLarge, match="deep"):
        dag_json.encode([deepest])
    for bomb in (b"[" * 1_000_000, b'{"a":' * 300_000, b'[{"/":' * 200_000):
        for reader in (dag_json.decode, dag_json.read):
            with pytest.raises(TooLarge, match="deep"):
                reader(bomb)


def test_brackets_in_texts_and_containers_side_by_side_are_not_deep() -> None:
    for value in ("[" * 1000, {'"[{\\': "}]"}, [[number] for number in range(500)]):
        assert dag_json.decode(dag_json.encode(value)) == value


def test_size_is_capped_in_both_directions() -> None:
    with pytest.raises(TooLarge):
        dag_json.encode("x" * MAX_BLOCK_BYTES)
    with pytest.raises(TooLarge):
        dag_json.decode(b"1" * (MAX_BLOCK_BYTES + 1))
    bomb: Any = "x"
    for _ in range(60):
        bomb = [bomb, bomb]
    with pytest.raises(TooLarge):
        dag_json.encode(bomb)


def test_the_number_of_links_is_capped_in_every_codec() -> None:
    too_many = [TINY] * (MAX_LINKS + 1)
    assert len(dag_json.links(dag_json.encode(too_many[1:]))) == MAX_LINKS
    assert len(dag_cbor.links(dag_cbor.encode(too_many[1:]))) == MAX_LINKS
    with pytest.raises(TooLarge, match="links"):
        dag_json.decode(b"[" + b",".join([b'{"/":"bafkqaaa"}'] * (MAX_LINKS + 1)) + b"]")
    with pytest.raises(TooLarge, match="links"):
        dag_json.encode(too_many)
    with pytest.raises(TooLarge, match="links"):
        dag_cbor.encode(too_many)
    with pytest.raises(TooLarge, match="links"):
        dag_cbor.decode(b"\x9a\x00\x01\x00\x01" + b"\xd8\x2a\x45\x00\x01\x55\x00\x00" * (MAX_LINKS + 1))
    with pytest.raises(TooLarge, match="links"):
        dag_pb.encode(PbNode(None, tuple(PbLink(cid, None) for cid in too_many)))
    with pytest.raises(TooLarge, match="links"):
        dag_pb.decode(b"\x12\x06\x0a\x04\x01\x55\x00\x00" * (MAX_LINKS + 1))


def test_a_block_is_refused_truncated_at_every_byte_and_with_trailing_data() -> None:
    data = dag_json.encode({"a": LINK, "list": [-5, 1.5, None, True, "te\nxt", b"bytes"], "n": {}})
    for end in range(len(data)):
        with pytest.raises(InvalidBlock):
            dag_json.decode(data[:end])
    with pytest.raises(InvalidBlock):
        dag_json.decode(data + b"0")


FLOATS = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number or 0.0)
SCALARS = st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | FLOATS | st.text() | st.binary()
KEYS = st.text().filter(lambda key: key != "/")
VALUES = st.recursive(
    SCALARS | st.binary(max_size=20).map(Cid.of),
    lambda below: st.lists(below, max_size=6) | st.dictionaries(KEYS, below, max_size=6),
)


@given(VALUES)
def test_every_value_comes_back_and_through_dag_cbor_too(value: Any) -> None:
    data = dag_json.encode(value)
    assert dag_json.decode(data) == dag_json.read(data) == value
    assert dag_json.encode(dag_cbor.decode(dag_cbor.encode(value))) == data


@given(st.text('[]{}",:/\\ 01-.eE+truefalsnbyA\n', max_size=60))
def test_any_text_is_read_into_a_value_of_one_form_or_refused(text: str) -> None:
    try:
        value = dag_json.decode(text.encode())
    except StorageError:
        return
    assert dag_json.decode(dag_json.encode(value)) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a":1', "a comma or a closing bracket is missing, at byte 6"),
        ('{"a" 1}', "the colon behind a key is missing, at byte 5"),
        ("{a:1}", "a key in double quotes is missing, at byte 1"),
        ("", "a value is missing, at byte 0"),
        (" \n nope", "a value is missing, at byte 3"),
        ('{"ä":nope}', "a value is missing, at byte 6"),
        ('"äb', "the text that begins there has no end, at byte 0"),
        ('["ä","\\q"]', "a backslash stands before what it cannot stand for, at byte 7"),
        ('["a\tb"]', "a text holds a control character, at byte 3"),
        ('"ä" x', "something follows the value, at byte 4"),
    ],
)
def test_what_is_typed_wrongly_is_told_in_our_words_with_the_byte(text, told):
    with pytest.raises(InvalidBlock) as found:
        dag_json.read(text.encode())
    assert str(found.value) == f"not DAG-JSON: {told}"


def test_what_is_no_text_is_told_with_the_byte():
    with pytest.raises(InvalidBlock, match=r"what stands at byte 4 is not UTF-8$"):
        dag_json.read(b'["ab\xff"]')
