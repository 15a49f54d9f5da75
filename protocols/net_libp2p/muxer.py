"""Our yamux where py-libp2p expects its own: carries bytes between `protocols.yamux` and a secured connection.

Two tasks a connection: one reads and wakes whom the core names, one sends whatever the core has to say. A write returns
when little of it is left unsent, and waits by an event, for as long as its caller does. A peer that takes up more than
its share of the event loop is read no further until that is made up for: its connection, and its streams.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

import structlog
import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.exceptions import BaseLibp2pError
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)

from protocols.errors import Malformed, Remote, StreamBroken, TooBig
from protocols.net_libp2p.crowd import Member
from protocols.yamux.connection import CLOSE_S, MESSAGE_BYTES, Connection, Event, Opened
from protocols.yamux.memory import Memory
from protocols.yamux.stream import Stream

SEND_AHEAD_BYTES: Final = 256 << 10  # of a stream's data may wait to be sent when its write returns
MESSAGES_A_TURN: Final = 16  # sealed and written at once
GOODBYE_TIMEOUT_S: Final = 1.0
READ_BYTES: Final = 64 << 10  # where a reader does not say how much it takes

_BREAKS: Final = (BaseLibp2pError, OSError, EOFError, trio.BrokenResourceError, trio.ClosedResourceError)
_MEMORY: Final = Memory()

log = structlog.get_logger(__name__)


class MuxedStream(IMuxedStream):  # type: ignore[misc]  # libp2p's types are not followed
    """A stream. One reader and one writer at a time."""

    def __init__(self, core: Stream, conn: "Muxer") -> None:
        self.core = core
        self.muxed_conn = conn
        self.changed = trio.Event()  # for the reader
        self.drained = trio.Event()  # for the writer

    def wake(self) -> None:
        """There may be news."""
        self.changed.set()
        self.drained.set()

    async def read(self, n: int | None = None) -> bytes:
        """Some bytes, at most `n`. Raises: MuxedStreamEOF, MuxedStreamReset."""
        await trio.lowlevel.checkpoint()
        max_bytes = READ_BYTES if n is None or n < 0 else n
        while True:
            await self.muxed_conn.rest()  # whenever something may have come: to many streams it may at once
            data = self.muxed_conn.take(self.core, max_bytes)
            if data or max_bytes == 0:
                return data
            if self.core.has_ended:
                raise MuxedStreamEOF("the peer has finished")
            if self.core.is_reset or self.core.is_abandoned:
                raise MuxedStreamReset("the stream was reset")
            if self.changed.is_set():
                self.changed = trio.Event()
            await self.changed.wait()

    async def write(self, data: bytes) -> None:
        """Send all of `data`; waits while the peer lets us send nothing.

        Raises: MuxedStreamReset, MuxedStreamClosed.
        """
        core = self.core
        if core.is_finishing and not core.is_reset:
            raise MuxedStreamClosed("the stream was closed for writing")
        self.muxed_conn.put(core, data)
        await trio.lowlevel.checkpoint()
        while core.queue.n_bytes > SEND_AHEAD_BYTES:
            if self.drained.is_set():
                self.drained = trio.Event()
            await self.drained.wait()
        if core.is_reset:
            raise MuxedStreamReset("the stream was reset")

    async def close_write(self) -> None:
        """Say that no more will be written; reading goes on."""
        self.muxed_conn.finish(self.core)
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Let go of the stream, both ways; what was written still goes out."""
        self.muxed_conn.close_stream(self.core)
        self.wake()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """Break the stream off, both ways."""
        self.muxed_conn.reset(self.core)
        self.wake()
        await trio.lowlevel.checkpoint()

    @property
    def is_closed(self) -> bool:
        """Is it over, or let go of?"""
        return self.core.is_reset or self.core.is_abandoned

    def set_deadline(self, ttl: int) -> None:
        """See `IMuxedStream`; callers own their timeouts."""
        raise NotImplementedError("use trio.fail_after around reads and writes")

    def get_remote_address(self) -> Any:
        """See `IMuxedStream`."""
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> "MuxedStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Muxer(IMuxedConn):  # type: ignore[misc]  # libp2p's types are not followed
    """A connection of streams over `secured_conn`."""

    def __init__(
        self,
        secured_conn: Any,
        peer_id: Any,
        is_initiator: bool | None = None,
        on_close: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        self.secured_conn = secured_conn
        self.peer_id = peer_id
        self.on_close = on_close
        self.is_abused = False  # it ends because the peer broke its rules; then this is called, at once
        self.on_abuse: Callable[[], object] = lambda: None
        self.event_started = trio.Event()
        self.event_shutting_down = trio.Event()
        self.event_closed = trio.Event()
        self.streams: dict[int, MuxedStream] = {}
        self._is_initiator = secured_conn.is_initiator if is_initiator is None else is_initiator
        self._member: Member | None = None
        self._core = Connection(self._is_initiator, _MEMORY, trio.current_time(), self._give_way)
        self._arrived: dict[int, MuxedStream] = {}  # not accepted yet
        self._arrival = trio.Event()
        self._work = trio.Event()  # for the sender
        self._sending = trio.Lock()
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    # --- what libp2p asks for

    @property
    def is_initiator(self) -> bool:
        """See `IMuxedConn`."""
        return bool(self._is_initiator)

    @property
    def is_established(self) -> bool:
        """See `IMuxedConn`."""
        return self.event_started.is_set() and not self.event_shutting_down.is_set()

    @property
    def is_closed(self) -> bool:
        """See `IMuxedConn`."""
        return self.event_closed.is_set()

    @property
    def used_s(self) -> float:
        """When data went over it last, either way."""
        return self._core.used_s

    async def start(self) -> None:
        """Run the connection until it ends."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._receive)
                    nursery.start_soon(self._send)
                    nursery.start_soon(self._tend)
                    self.event_started.set()
        finally:
            self.event_started.set()  # whoever waits for it sees `is_closed` then
            with trio.CancelScope(shield=True):
                await self.close()

    async def open_stream(self) -> MuxedStream:
        """Open a stream. Raises: MuxedStreamError."""
        await trio.lowlevel.checkpoint()
        try:
            core = self._core.open(trio.current_time())
        except Remote as error:
            raise MuxedStreamError(str(error)) from None
        self._work.set()
        stream = self.streams[core.number] = MuxedStream(core, self)
        return stream

    async def accept_stream(self) -> MuxedStream:
        """The next stream that the peer opened. Raises: MuxedConnUnavailable when the connection is over."""
        await trio.lowlevel.checkpoint()
        while not self._arrived:
            if self.event_shutting_down.is_set():
                raise MuxedConnUnavailable("the connection is closed")
            if self._arrival.is_set():  # others may wait for it too
                self._arrival = trio.Event()
            await self._arrival.wait()
        stream = self._arrived.pop(next(iter(self._arrived)))
        self._act(lambda: self._core.accept(stream.core))
        return stream

    async def close(self) -> None:
        """Say goodbye, break what is left, and close the connection."""
        if self.event_shutting_down.is_set():
            return
        self._end()
        with trio.CancelScope(deadline=trio.current_time() + GOODBYE_TIMEOUT_S, shield=True):
            with suppress(*_BREAKS):
                async with self._sending:
                    await self._write(self._core.take_messages(1, trio.current_time())[0])
            with suppress(*_BREAKS):
                await self.secured_conn.close()
        self._scope.cancel()
        self.event_closed.set()
        if self.on_close is not None:
            with trio.CancelScope(shield=True):  # this may be one of the tasks that end now
                await self.on_close()

    def get_remote_address(self) -> Any:
        """See `IMuxedConn`."""
        return self.secured_conn.get_remote_address()

    def get_transport_addresses(self) -> Any:
        """See `IMuxedConn`."""
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> Any:
        """See `IMuxedConn`."""
        return self.secured_conn.get_connection_type()

    # --- what its streams ask for

    def charge(self, work_s: float) -> None:
        """Something that the peer caused takes so much of the event loop."""
        self._core.work.charge(work_s, trio.current_time())

    def join(self, member: Member | None) -> None:
        """Bound what this peer and others take up of the event loop together; None for no such bound."""
        self._member = self._core.work.common = member

    async def rest(self) -> None:
        """Wait while the peer has taken up more than its share of the event loop, or those with whom it shares some."""
        rest_s = self._core.work.rest_s(trio.current_time())
        if rest_s:
            await trio.sleep(rest_s)
        if self._member is not None:
            await self._member.rest()

    def ping(self) -> None:
        """Have the peer say something."""
        self._act(lambda: self._core.ping(trio.current_time()))

    def take(self, core: Stream, max_bytes: int) -> bytes:
        """Read from a stream."""
        data = self._core.read(core, max_bytes, trio.current_time())
        self._after(core)
        return data

    def put(self, core: Stream, data: bytes) -> None:
        """Write on a stream. Raises: MuxedStreamReset."""
        try:
            self._core.write(core, data)
        except Remote as error:
            raise MuxedStreamReset(str(error)) from None
        self._work.set()

    def finish(self, core: Stream) -> None:
        """Write no more on a stream."""
        self._core.finish(core)
        self._after(core)

    def close_stream(self, core: Stream) -> None:
        """Let go of a stream."""
        self._act(lambda: self._core.close(core, trio.current_time()))
        self._after(core)

    def reset(self, core: Stream) -> None:
        """Break off a stream."""
        self._act(lambda: self._core.reset(core))
        self._after(core)

    def _act(self, act: Callable[[], None]) -> None:
        """Do something that may find out that the peer has stopped reading: then the connection is over.

        That breaks no rule: what waits is of our own doing, and its link may be dead.
        """
        try:
            act()
        except Remote as error:
            self._break(error, is_abuse=False)
        self._work.set()

    def _after(self, core: Stream) -> None:
        stream = self._stream_of(core)
        if stream is not None and self._core.streams.get(core.number) is not core:
            del self.streams[core.number]
            self._arrived.pop(core.number, None)
        if self._core.has_messages:
            self._work.set()

    def _stream_of(self, core: Stream) -> MuxedStream | None:
        """The stream of this core; its number may stand for another by now, if the peer opened it once more."""
        stream = self.streams.get(core.number)
        return stream if stream is not None and stream.core is core else None

    # --- its tasks

    async def _receive(self) -> None:
        receive = getattr(self.secured_conn, "receive", None) or self._receive_one
        try:
            while messages := await receive():
                for message in messages:
                    await self.rest()
                    began_s = trio.current_time()
                    self._notice(self._core.receive(message, began_s))
                    if self._core.has_messages:
                        self._work.set()
                    if self._member is not None:
                        self._member.take(trio.current_time() - began_s, began_s)
        except _BREAKS:
            pass
        except Remote as error:
            self._break(error)
            return
        self._scope.cancel()

    async def _receive_one(self) -> list[bytes]:
        data = await self.secured_conn.read()
        return [data] if data else []

    def _notice(self, events: list[Event]) -> None:
        for event in events:
            core = event.stream
            if isinstance(event, Opened):
                stream = self.streams[core.number] = MuxedStream(core, self)
                self._arrived[core.number] = stream
                self._arrival.set()
            elif (known := self._stream_of(core)) is not None:
                known.wake()
                self._after(core)

    async def _send(self) -> None:
        while True:
            if not self._core.has_messages:
                self._work = trio.Event()
                await self._work.wait()
            await self._let_writers_write()
            async with self._sending:
                messages, drained = self._core.take_messages(MESSAGES_A_TURN, trio.current_time())
                for core in drained:
                    stream = self._stream_of(core)
                    if stream is not None and core.queue.n_bytes <= SEND_AHEAD_BYTES:
                        stream.drained.set()
                    self._after(core)
                try:
                    await self._write(messages)
                except _BREAKS:
                    self._scope.cancel()
                    return

    async def _let_writers_write(self) -> None:
        """Small writes that follow each other travel together: while the next queue is short and grows, wait a turn."""
        n_bytes = -1
        while n_bytes < self._core.n_waiting < MESSAGE_BYTES:
            n_bytes = self._core.n_waiting
            await trio.lowlevel.checkpoint()

    async def _write(self, messages: list[bytes]) -> None:
        if not messages:
            return
        send = getattr(self.secured_conn, "send", None)
        if send is not None:
            await send(messages)
        else:
            await self.secured_conn.write(b"".join(messages))

    async def _tend(self) -> None:
        """Let the core see time pass."""
        while True:
            try:
                self._notice(self._core.tick(trio.current_time()))
            except Remote as error:
                self._break(error, is_abuse=False)
                return
            if self._core.has_messages:
                self._work.set()
            # A stream that is closed meanwhile waits so long at least: nobody has to wake us for it.
            await trio.sleep_until(min(self._core.next_deadline_s(), trio.current_time() + CLOSE_S))

    # --- its end

    def _break(self, error: Remote, *, is_abuse: bool = True) -> None:
        """Close the connection, without cutting off what is being sent: the peer shall read why."""
        is_over = self.event_shutting_down.is_set()  # what still came, came in ignorance
        log.info("connection_broken", peer=str(self.peer_id), code=error.code, error=str(error))
        if is_abuse and not is_over and not self.is_abused and isinstance(error, (Malformed, TooBig)):
            self.is_abused = True
            self.on_abuse()
        if self._nursery is not None and not self.event_shutting_down.is_set():
            self._nursery.start_soon(self.close)

    def _give_way(self) -> None:
        """All connections hold too much unread data, and this one the most: nobody's fault, for it was granted."""
        self._break(StreamBroken("this node has too much to read, and the most of this peer"), is_abuse=False)

    def _end(self) -> None:
        self.event_shutting_down.set()
        self._core.go_away()
        self._arrived.clear()
        self._arrival.set()
        for stream in self.streams.values():
            stream.wake()
        self.streams.clear()
