from contextlib import suppress

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.engine.framing import MAX_FRAME_BYTES, BrokenFrame, Unframer, encode
from agents.engine.messages import Embedded, Token


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body


@given(st.lists(st.text(), max_size=5), st.integers(1, 20))
def test_frames_come_out_as_they_went_in_however_they_are_cut(texts, size):
    stream = b"".join(encode(Token(id=n, text=text)) for n, text in enumerate(texts))
    unframer = Unframer()
    values = [value for at in range(0, len(stream), size) for value in unframer.feed(stream[at : at + size])]
    assert [value["text"] for value in values] == texts
    assert not unframer.is_torn


def test_a_frame_cut_at_any_byte_is_torn_and_gives_nothing():
    whole = encode(Embedded(id=1, vectors=b"\0\1", width=1))
    for end in range(1, len(whole)):
        unframer = Unframer()
        assert unframer.feed(whole[:end]) == []
        assert unframer.is_torn


@pytest.mark.parametrize(
    "stream",
    [
        (MAX_FRAME_BYTES + 1).to_bytes(4),
        frame(b""),
        frame(b"\xff"),
        frame(cbor2.dumps({"id": 1}) + b"\0"),
        frame(b"\xa2\x62id\x01\x62id\x02"),
        frame(cbor2.dumps([1])),
        frame(cbor2.dumps({"type": "token"})),
        frame(cbor2.dumps({"id": True})),
        frame(cbor2.dumps({"id": "1"})),
        frame(b"\x81" * 100_000),
        frame(b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff"),
    ],
)
def test_what_is_no_frame_is_refused(stream):
    with pytest.raises(BrokenFrame):
        Unframer().feed(stream)


@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_else(data):
    with suppress(BrokenFrame):
        Unframer().feed(frame(data))


def test_a_message_over_the_limit_is_not_sent():
    with pytest.raises(BrokenFrame):
        encode(Embedded(id=1, vectors=bytes(MAX_FRAME_BYTES), width=1))
