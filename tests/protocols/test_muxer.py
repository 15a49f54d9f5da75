"""The adapter of yamux: streams over a pipe in memory, and py-libp2p's own yamux at the other end."""

import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from libp2p.stream_muxer.yamux.yamux import Yamux
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from protocols.net_libp2p.crowd import Crowd
from protocols.net_libp2p.muxer import SEND_AHEAD_BYTES, Muxer
from protocols.yamux import memory
from protocols.yamux.connection import MAX_CONTROL_BYTES
from protocols.yamux.frames import ACK, DATA, INITIAL_WINDOW_BYTES, PING, RST, SYN, WINDOW, pack
from protocols.yamux.work import FRAME_S, MAX_WORK_S, REFILL_S

Make = Callable[..., Any]


class Secured:
    """A secured connection as py-libp2p's muxers take one: `read` gives exactly so much, or what there is."""

    def __init__(self, stream: Any, is_initiator: bool) -> None:
        self.stream = stream
        self.is_initiator = is_initiator

    async def read(self, n: int | None = None) -> bytes:
        if n is None:
            return bytes(await self.stream.receive_some(1 << 16))
        data = b""
        while len(data) < n:
            more = await self.stream.receive_some(n - len(data))
            if not more:
                break
            data += more
        return data

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def close(self) -> None:
        await self.stream.aclose()


@asynccontextmanager
async def pair(dialler: Make = Muxer, listener: Make = Muxer) -> AsyncIterator[tuple[Any, Any]]:
    """Two muxers that talk to each other."""
    one, other = memory_stream_pair()
    peer = SimpleNamespace(to_bytes=lambda: b"", __str__=lambda self: "peer")
    async with trio.open_nursery() as nursery:
        muxers = dialler(Secured(one, True), peer), listener(Secured(other, False), peer)
        for muxer in muxers:
            nursery.start_soon(muxer.start)
            await muxer.event_started.wait()
        yield muxers
        for muxer in muxers:
            await muxer.close()
        nursery.cancel_scope.cancel()


@pytest.fixture(params=["ours to ours", "ours to theirs", "theirs to ours"])
def makes(request: pytest.FixtureRequest) -> tuple[Make, Make]:
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    dialler, listener = ({"ours": Muxer, "theirs": Yamux}[name] for name in str(request.param).split(" to "))
    return dialler, listener


async def read_all(stream: Any) -> bytes:
    data = bytearray()
    try:
        while True:
            data += await stream.read(1 << 16)
    except MuxedStreamEOF:
        return bytes(data)


async def test_bytes_pass_both_ways_on_many_streams_with_py_libp2ps_yamux_too(makes: tuple[Make, Make]) -> None:
    data = bytes(range(256)) * 12_000  # over ten windows
    digest = hashlib.sha256(data).digest()

    async def answer(listener: Any) -> None:
        stream = await listener.accept_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, hashlib.sha256(await read_all(stream)).digest() + data)
        await stream.close()

    async def ask(dialler: Any) -> None:
        stream = await dialler.open_stream()
        for at in range(0, len(data), 200_000):
            await stream.write(data[at : at + 200_000])
        await getattr(stream, "close_write", stream.close)()
        assert await read_all(stream) == digest + data

    with trio.fail_after(60):
        async with pair(*makes) as (dialler, listener), trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(answer, listener)
                nursery.start_soon(ask, dialler)


async def test_a_reset_and_a_close_of_the_connection_reach_py_libp2ps_yamux_and_come_from_it(
    makes: tuple[Make, Make],
) -> None:
    with trio.fail_after(20):
        async with pair(*makes) as (dialler, listener):
            stream = await dialler.open_stream()
            await stream.write(b"hello")
            far = await listener.accept_stream()
            assert await far.read(5) == b"hello"
            await far.reset()
            with pytest.raises(MuxedStreamError):
                await stream.read(1)
            left = await dialler.open_stream()
            await left.write(b"x")
            assert await (await listener.accept_stream()).read(1) == b"x"
            await listener.close()
            with pytest.raises(MuxedStreamError):
                await left.read(1)
            with pytest.raises(MuxedConnUnavailable):
                await dialler.accept_stream()
            with pytest.raises(MuxedStreamError):
                await dialler.open_stream()


async def test_a_reader_that_rests_for_an_hour_loses_nothing(autojump_clock: MockClock) -> None:
    data = bytes(SEND_AHEAD_BYTES + 3 * INITIAL_WINDOW_BYTES)
    async with pair() as (dialler, listener), trio.open_nursery() as nursery:
        stream = await dialler.open_stream()
        nursery.start_soon(stream.write, data)
        far = await listener.accept_stream()
        await trio.sleep(3600)
        received = 0
        while received < len(data):
            received += len(await far.read(1 << 20))
        assert received == len(data)


async def test_a_write_returns_when_little_of_it_is_left_and_not_before(autojump_clock: MockClock) -> None:
    async with pair() as (dialler, listener):
        stream = await dialler.open_stream()
        with trio.move_on_after(100) as waited:
            await stream.write(bytes(INITIAL_WINDOW_BYTES + SEND_AHEAD_BYTES))
        assert not waited.cancelled_caught
        with trio.move_on_after(100) as waited:
            await stream.write(b"x")
        assert waited.cancelled_caught
        await (await listener.accept_stream()).reset()
        await wait_all_tasks_blocked()
        with pytest.raises(MuxedStreamReset):
            await stream.write(b"y")


async def test_what_was_written_before_a_close_arrives(autojump_clock: MockClock) -> None:
    async with pair() as (dialler, listener):
        stream = await dialler.open_stream()
        await stream.write(bytes(INITIAL_WINDOW_BYTES + SEND_AHEAD_BYTES))
        await stream.close()
        assert stream.is_closed
        with pytest.raises(MuxedStreamClosed):
            await stream.write(b"x")
        with pytest.raises(MuxedStreamReset):
            await stream.read(1)
        far = await listener.accept_stream()
        assert len(await read_all(far)) == INITIAL_WINDOW_BYTES + SEND_AHEAD_BYTES
        await far.close()
        await wait_all_tasks_blocked()
        assert not dialler.streams
        assert not listener.streams


async def test_a_peer_that_dies_in_silence_is_noticed(autojump_clock: MockClock) -> None:
    here, _there = memory_stream_pair()
    muxer = Muxer(Secured(here, True), "peer")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxer.start)
        await muxer.event_started.wait()
        stream = await muxer.open_stream()
        with trio.fail_after(200), pytest.raises(MuxedStreamReset):
            await stream.read(1)
        assert trio.current_time() > 50
        await muxer.event_closed.wait()


async def test_what_waits_on_a_stream_is_read_when_its_peer_has_rested(autojump_clock: MockClock) -> None:
    async with pair() as (dialler, listener):
        stream = await dialler.open_stream()
        await stream.write(b"12")
        far = await listener.accept_stream()
        assert await far.read(1) == b"1"
        begin_s = trio.current_time()
        listener.charge(2 * MAX_WORK_S)
        assert await far.read(1) == b"2"
        assert trio.current_time() - begin_s == pytest.approx(REFILL_S, rel=0.1)


async def test_what_comes_to_many_streams_at_once_is_read_by_one_after_the_other(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Their readers wait for it already: that there was room when they began says nothing."""
    async with pair() as (dialler, listener):
        streams = [await dialler.open_stream() for _ in range(10)]
        accepted = []
        for stream in streams:
            await stream.write(b"1")
            accepted.append(await listener.accept_stream())
            await accepted[-1].read(1)
        member, n_read = Crowd().member("peer"), 0
        listener.join(member)

        async def read(far: Any) -> None:
            nonlocal n_read
            await far.read(1)
            n_read += 1
            member.take(1.0, trio.current_time())

        for far in accepted:
            nursery.start_soon(read, far)
        await wait_all_tasks_blocked()
        for stream in streams:
            await stream.write(b"2")
        await wait_all_tasks_blocked()
        assert n_read == 1
        await trio.sleep(60)
        assert n_read == len(accepted)


async def test_frames_that_carry_nothing_are_read_at_their_pace_and_nobody_is_blamed(autojump_clock: MockClock) -> None:
    here, there = memory_stream_pair()
    muxer = Muxer(Secured(here, False), "peer")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxer.start)
        await muxer.event_started.wait()
        await there.send_all(pack(PING, ACK, 0, 0) * int(2 * MAX_WORK_S / FRAME_S) + pack(WINDOW, SYN, 1, 0))
        await muxer.accept_stream()
        assert trio.current_time() == pytest.approx(REFILL_S, rel=0.1)
        assert not muxer.is_abused
        nursery.cancel_scope.cancel()


async def test_garbage_ends_the_connection_with_a_reason(autojump_clock: MockClock) -> None:
    here, there = memory_stream_pair()
    closed = trio.Event()

    async def on_close() -> None:
        closed.set()

    muxer = Muxer(Secured(here, False), "peer", on_close=on_close)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxer.start)
        await there.send_all(b"GET / HTTP/1.1\r\n")
        with trio.fail_after(10):
            await closed.wait()
            said = b""
            while data := await there.receive_some():
                said += data
        assert said.endswith(bytes.fromhex("000300000000000000000001"))
        assert muxer.is_closed
        assert not muxer.is_established


async def test_streams_that_are_opened_and_reset_before_anybody_accepts_them_are_not_kept() -> None:
    async with pair() as (dialler, listener):
        for _ in range(500):
            await (await dialler.open_stream()).reset()
        kept = await dialler.open_stream()
        await kept.write(b"here")
        with trio.fail_after(10):
            far = await listener.accept_stream()
            while far.core.number != kept.core.number:
                far = await listener.accept_stream()
            assert await far.read(4) == b"here"
        assert len(listener.streams) == 1


async def test_a_number_that_the_peer_uses_again_is_another_stream(autojump_clock: MockClock) -> None:
    here, there = memory_stream_pair()
    muxer = Muxer(Secured(here, False), "peer")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxer.start)
        await there.send_all(pack(WINDOW, SYN, 1, 0))
        old = await muxer.accept_stream()
        await there.send_all(pack(WINDOW, RST, 1, 0) + pack(WINDOW, SYN, 1, 0) + pack(DATA, 0, 1, 3) + b"new")
        with pytest.raises(MuxedStreamReset):
            await old.read(1)
        await old.close()
        new = await muxer.accept_stream()
        assert await new.read(3) == b"new"
        await trio.sleep(1)
        assert muxer.streams == {1: new}
        assert not muxer._core._closing  # whose deadline would pass again and again
        await muxer.close()


async def test_a_connection_that_is_cancelled_says_goodbye() -> None:
    async with pair() as (dialler, listener):
        dialler._scope.cancel()
        with trio.fail_after(10):
            await listener.event_closed.wait()
            await dialler.event_closed.wait()
        assert listener._core.is_going
        assert not dialler.is_established


async def test_a_link_that_is_dead_ends_the_connection_and_is_nobodys_fault(autojump_clock: MockClock) -> None:
    async with pair() as (one, other):
        streams = [await one.open_stream() for _ in range(3)]
        await streams[0].write(b"x")
        await other.accept_stream()
        async with one._sending:  # nothing goes out any more
            one._core._control += bytes(MAX_CONTROL_BYTES)
            await streams[1].reset()
            await wait_all_tasks_blocked()
            assert one.event_shutting_down.is_set() and not one.is_abused
            one._core._control.clear()


async def test_who_holds_the_most_of_too_much_loses_its_connection_and_is_not_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "MAX_UNREAD_IN_ALL_BYTES", 100_000)
    monkeypatch.setattr(memory, "SHARE_BYTES", 50_000)
    async with pair() as (resting, here), pair() as (honest, there):
        with trio.fail_after(10):
            await (await resting.open_stream()).write(bytes(90_000))
            await here.accept_stream()
            stream = await honest.open_stream()
            await stream.write(bytes(60_000))
            await here.event_closed.wait()
            taken = await there.accept_stream()
            n_bytes = 0
            while n_bytes < 60_000:
                n_bytes += len(await taken.read(60_000))
        assert not here.is_abused and there.is_established
