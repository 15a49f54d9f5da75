import tracemalloc
from collections.abc import Iterable

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import Malformed, Oversize, StreamBroken, TimedOut, TooBig
from protocols.framing import (
    MERGE_BYTES,
    FrameReader,
    frame,
    next_within,
    read_frame,
    read_within,
    write_frame,
    write_within,
)
from protocols.net import Stream, answer
from storage.keys import Identity, PeerId

MAX_BYTES = 1000


class Pipe:
    """A stream that gives what it was given, as many bytes at a time as `sizes` say."""

    def __init__(self, data: bytes = b"", sizes: Iterable[int] = ()) -> None:
        self.data = data
        self.written = b""
        self._sizes = iter(sizes)

    @property
    def peer(self) -> PeerId:
        return Identity(bytes(32)).peer_id

    @property
    def protocol(self) -> str:
        return "/test/1.0.0"

    async def read(self, max_bytes: int) -> bytes:
        n_bytes = min(next(self._sizes, max_bytes), max_bytes)
        taken, self.data = self.data[:n_bytes], self.data[n_bytes:]
        return taken

    async def write(self, data: bytes) -> None:
        self.written += data

    async def finish(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


class Closed(Pipe):
    """A stream that may be closed."""

    async def aclose(self) -> None:
        pass


class Stuck(Pipe):
    """A stream to a peer that neither says nor reads anything."""

    async def read(self, max_bytes: int) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def write(self, data: bytes) -> None:
        await trio.sleep_forever()


@given(st.lists(st.binary(max_size=300), max_size=9), st.data())
def test_messages_come_out_whole_however_the_bytes_arrive(messages: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(frame, messages))
    reader = FrameReader(MAX_BYTES)
    found = []
    while stream:
        n_bytes = data.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:n_bytes])
        stream = stream[n_bytes:]
    assert found == messages
    assert reader.is_between


@given(st.lists(st.integers(0, 9000), min_size=1, max_size=5), st.data())
def test_messages_of_many_large_pieces_come_out_whole(sizes: list[int], data: st.DataObject) -> None:
    messages = [bytes(at % 251 for at in range(number, number + size)) for number, size in enumerate(sizes)]
    stream = b"".join(map(frame, messages))
    reader = FrameReader(9000)
    found = []
    while stream:
        n_bytes = data.draw(st.integers(1, 4 * MERGE_BYTES))
        found += reader.feed(stream[:n_bytes])
        stream = stream[n_bytes:]
    assert found == messages
    assert reader.is_between


def test_messages_come_out_byte_by_byte_as_soon_as_they_are_whole() -> None:
    reader = FrameReader(MAX_BYTES)
    whole = frame(b"a" * 200)
    for index, byte in enumerate(whole):
        assert reader.n_missing <= len(whole) - index
        assert reader.feed(bytes([byte])) == ([b"a" * 200] if index == len(whole) - 1 else [])


def test_a_message_that_comes_in_crumbs_takes_no_more_memory_than_it_is_long() -> None:
    n_bytes = 256 << 10
    reader = FrameReader(2 * n_bytes)
    reader.feed(frame(bytes(2 * n_bytes))[:2000])
    tracemalloc.start()
    for _ in range(n_bytes // 2):
        reader.feed(bytes(2))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 2 * n_bytes


def test_messages_that_are_cut_one_by_one_take_no_more_memory_than_their_bytes() -> None:
    stream = frame(b"ab") * 50_000
    reader, n_messages = FrameReader(MAX_BYTES), 0
    tracemalloc.start()
    for message in reader.cut(stream):
        assert message == b"ab"
        n_messages += 1
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_messages == 50_000 and reader.is_between
    assert most < 2 * len(stream)


@pytest.mark.parametrize(("hexed", "error"), [("8000", Malformed), ("ff00", Malformed), ("8080808080", Malformed)])
def test_a_length_in_a_longer_form_is_refused(hexed: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        FrameReader(MAX_BYTES).feed(bytes.fromhex(hexed))


def test_a_length_over_the_cap_is_refused_before_its_message_arrives() -> None:
    assert FrameReader(MAX_BYTES).feed(frame(bytes(MAX_BYTES))) == [bytes(MAX_BYTES)]
    with pytest.raises(TooBig):
        FrameReader(MAX_BYTES).feed(frame(bytes(MAX_BYTES + 1))[:2])
    with pytest.raises(TooBig):
        FrameReader(MAX_BYTES).feed(bytes.fromhex("ffffffff7f"))


async def test_read_frame_takes_no_byte_of_the_next_message() -> None:
    pipe = Pipe(frame(b"first") + frame(b"") + b"rest", sizes=[1, 1, 2])
    assert await read_frame(pipe, MAX_BYTES) == b"first"
    assert await read_frame(pipe, MAX_BYTES) == b""
    assert pipe.data == b"rest"


async def test_a_stream_ends_between_messages_or_is_broken() -> None:
    assert await read_frame(Pipe(), MAX_BYTES) is None
    whole = frame(b"a" * 200)
    for end in range(1, len(whole)):
        with pytest.raises(StreamBroken):
            await read_frame(Pipe(whole[:end]), MAX_BYTES)


async def test_write_frame_sends_one_message_and_refuses_a_large_one() -> None:
    pipe = Pipe()
    await write_frame(pipe, b"abc", MAX_BYTES)
    assert pipe.written == b"\3abc"
    with pytest.raises(Oversize):
        await write_frame(pipe, bytes(MAX_BYTES + 1), MAX_BYTES)
    assert pipe.written == b"\3abc"


async def test_an_answer_of_ours_that_is_too_long_is_not_the_fault_of_who_asked() -> None:
    told: list[str] = []

    async def say_too_much(stream: Stream) -> None:
        await write_frame(stream, bytes(MAX_BYTES + 1), MAX_BYTES)

    async def hear_too_much(stream: Stream) -> None:
        await read_frame(stream, 2)

    for handler in (say_too_much, hear_too_much):
        await answer(handler, Closed(frame(b"abc")), lambda peer, code: told.append(code))
    assert told == ["too_big"]


async def test_a_peer_has_so_long_to_say_something_or_to_read_it(autojump_clock: trio.testing.MockClock) -> None:
    for waiting in (
        lambda: read_within(5.0, Stuck(), MAX_BYTES),
        lambda: next_within(5.0, Stuck(), MAX_BYTES),
        lambda: write_within(5.0, Stuck(), b"abc", MAX_BYTES),
    ):
        began_s = trio.current_time()
        with pytest.raises(TimedOut, match="within 5 s"):
            await waiting()
        assert trio.current_time() == began_s + 5.0


async def test_where_a_message_has_to_come_the_end_of_the_stream_is_a_fault() -> None:
    assert await read_within(5.0, Pipe(frame(b"a")), MAX_BYTES) == b"a"
    assert await next_within(5.0, Pipe(frame(b"a")), MAX_BYTES) == b"a"
    assert await read_within(5.0, Pipe(), MAX_BYTES) is None
    with pytest.raises(StreamBroken, match="ended the stream"):
        await next_within(5.0, Pipe(), MAX_BYTES)
