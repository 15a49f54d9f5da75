"""The core of a connection: streams, windows, pings and the order of sending. No IO, no clock.

The shell hands over what came (`receive`), carries out the events, and takes what is to be sent (`take_messages`) as
often as it can send. Writing never waits here: what the peer has not let us send is queued, and the shell lets a writer
go on when little of it is left. Windows work by events alone: reading grants, and a grant that comes in makes its
stream ready.

Each message that goes out fills at most one noise message, frames never straddle two, and streams take turns.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from protocols.bucket import Bucket
from protocols.errors import Malformed, StreamBroken, TooBig
from protocols.yamux.frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER_BYTES,
    INITIAL_WINDOW_BYTES,
    MAX_NUMBER,
    PING,
    RST,
    SYN,
    WINDOW,
    Code,
    Header,
    pack,
    unpack,
)
from protocols.yamux.memory import Account, Memory
from protocols.yamux.stream import MAX_WINDOW_BYTES, Stream
from protocols.yamux.work import FRAME_S, OPENING_S, READ_S, SMALL_BYTES, Work

MESSAGE_BYTES: Final = 65519  # the plaintext of one noise message, at most
MIN_FRAME_ROOM_BYTES: Final = 1024  # a message with less room than that is closed rather than filled with a crumb
MAX_INBOUND: Final = 256  # streams that the peer opened
MAX_BACKLOG: Final = 64  # of these, not accepted yet
MAX_OUTBOUND: Final = 1024  # streams that we opened
MAX_WASTED: Final = 1024  # openings by the peer that it broke off, or had no room for; as many again in:
REFILL_S: Final = 16.0
MAX_CONTROL_BYTES: Final = 64 << 10  # answers that wait for a peer which does not read
KEEPALIVE_S: Final = 30.0
DEAD_S: Final = 60.0  # a peer that says nothing for so long after a ping is gone
MIN_RTT_S: Final = 0.05  # an idle loop answers faster than a busy one; a window that is too small costs more
CLOSE_S: Final = 5.0  # a stream that we closed waits so long for the peer's end, then it is reset
STALL_S: Final = 60.0  # one that we closed with data queued may rest so long,
LINGER_S: Final = 600.0  # and take so long in all: a peer that is granted bytes one by one would keep it for ever
MAX_DISCARDED_BYTES: Final = 1 << 20  # what may still come on a stream that we closed


class Opened(NamedTuple):
    """The peer opened a stream; `accept` or `reset` it."""

    stream: Stream


class Changed(NamedTuple):
    """A stream has data, an end, or broke: whoever waits for it should look."""

    stream: Stream


Event = Opened | Changed


class Connection:
    """One side of a connection.

    Attributes:
        streams: Those that are not over, by number.
        is_going: The peer has said that it goes away: no stream can be opened any more.
        is_over: Nothing is taken in any more; what is left to be said is the end.
        rtt_s: How long a ping took; `math.inf` before the first answer.
        used_s: When data went over it last, either way.
        work: What the peer takes up of the event loop; where it is to rest, no more is given to `receive` meanwhile.
    """

    def __init__(
        self, is_client: bool, memory: Memory, now_s: float, on_giving_way: Callable[[], None] = lambda: None
    ) -> None:
        """`on_giving_way`: called when the connection is over because all hold too much, and it the most."""
        self.streams: dict[int, Stream] = {}
        self.is_going = False
        self.rtt_s = math.inf
        self.used_s = now_s
        self.work: Final = Work(now_s)
        self._is_client = is_client
        self._account = Account(memory, self._give_way)
        self._on_giving_way = on_giving_way
        self._next_number = 1 if is_client else 2
        self._highest_of_peer = 0
        self._n_inbound = 0
        self._backlog: set[int] = set()
        self._wasted = Bucket(MAX_WASTED, REFILL_S, now_s)
        self._control = bytearray()
        self._grants: dict[int, Stream] = {}
        self._ready: deque[Stream] = deque()
        self._closing: dict[int, Stream] = {}
        self._head = bytearray()  # of a frame that is not whole
        self._n_body = 0  # of a data frame that is not whole
        self._body: Stream | None = None
        self._body_flags = 0
        self._heard_s = now_s
        self._ping_s = -math.inf  # when the last ping went out
        self._is_waiting = False  # for its answer
        self._n_pings = 0
        self.is_over = False

    # --- what comes in

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Take in what came. Raises: Malformed, TooBig; then send what is left to send, and close the connection."""
        self._heard_s = now_s
        events: list[Event] = []
        try:
            work_s = self._parse(data, now_s, events)
        except (Malformed, TooBig):
            self.go_away(Code.PROTOCOL_ERROR)
            raise
        if work_s:
            self.work.hear(work_s, now_s)
        return events

    def _parse(self, data: bytes, now_s: float, events: list[Event]) -> float:
        """Returns: what is to be charged for frames that carry little, and for the message where it does."""
        at, end = 0, len(data)
        work_s = FRAME_S if end < SMALL_BYTES else 0.0
        view = memoryview(data)
        while at < end:
            if self._n_body:
                n_here = min(self._n_body, end - at)
                self._take_body(view[at : at + n_here], now_s, events)
                at += n_here
                continue
            if self._head or end - at < HEADER_BYTES:
                n_here = min(HEADER_BYTES - len(self._head), end - at)
                self._head += view[at : at + n_here]
                at += n_here
                if len(self._head) < HEADER_BYTES:
                    break
                header = unpack(self._head)
                self._head.clear()
            else:
                header = unpack(view, at)
                at += HEADER_BYTES
            work_s += FRAME_S if header.kind != DATA or header.length < SMALL_BYTES else 0.0
            self._take_head(header, now_s, events)
        return work_s

    def _take_head(self, header: Header, now_s: float, events: list[Event]) -> None:
        if header.kind == PING:
            self._take_ping(header, now_s)
        elif header.kind == GO_AWAY:
            self.is_going = True
        else:
            if header.flags & SYN:
                self._take_opening(header, now_s, events)
            stream = self.streams.get(header.stream)
            if stream is None:
                self._check_known(header.stream)
            if header.kind == DATA:
                self._begin_body(header, stream, now_s, events)
            else:
                if stream is not None:
                    self._widen(stream, header.length)
                self._take_flags(stream, header.flags, now_s, events)

    def _check_known(self, number: int) -> None:
        """Frames of streams that are over still come, for their sender did not know; of others they are an error."""
        is_ours = number % 2 == self._is_client
        if number >= (self._next_number if is_ours else self._highest_of_peer + 1):
            raise Malformed(f"a yamux frame of stream {number}, which nobody opened")

    def _take_opening(self, header: Header, now_s: float, events: list[Event]) -> None:
        number = header.stream
        if number % 2 == self._is_client or number in self.streams:
            raise Malformed(f"a peer opened stream {number}, which is not its own or stands open")
        self._highest_of_peer = max(self._highest_of_peer, number)
        if self._n_inbound >= MAX_INBOUND or len(self._backlog) >= MAX_BACKLOG or self.is_over:
            _spend(self._wasted, now_s, "opens stream after stream for which there is no room")
            self._say(WINDOW, RST, number, 0)
            return
        stream = self.streams[number] = Stream(number, granted_s=now_s, progress_s=now_s)
        self._n_inbound += 1
        self._backlog.add(number)
        self.work.charge(OPENING_S, now_s)
        events.append(Opened(stream))

    def _begin_body(self, header: Header, stream: Stream | None, now_s: float, events: list[Event]) -> None:
        limit = MAX_WINDOW_BYTES if stream is None else stream.receive_window_bytes
        if header.length > limit:
            raise Malformed(f"a yamux frame of {header.length} bytes on a stream that was granted {limit}")
        if stream is not None:
            if stream.has_ended and header.length:
                raise Malformed(f"data on stream {header.stream} behind its end")
            stream.receive_window_bytes -= header.length
        self._n_body, self._body, self._body_flags = header.length, stream, header.flags
        if header.length:
            self.used_s = now_s
        else:
            self._take_flags(stream, header.flags, now_s, events)

    def _take_body(self, data: memoryview, now_s: float, events: list[Event]) -> None:
        stream = self._body
        self._n_body -= len(data)
        if stream is not None and not stream.is_reset:
            if stream.is_abandoned:
                stream.n_discarded += len(data)
                if stream.n_discarded > MAX_DISCARDED_BYTES:
                    self.reset(stream)
                    events.append(Changed(stream))
            else:
                self._account.hold(len(data))
                if not stream.is_reset:  # by that very thing
                    stream.unread.put(data)
                events.append(Changed(stream))
        if not self._n_body:
            self._body = None
            self._take_flags(stream, self._body_flags, now_s, events)

    def _take_flags(self, stream: Stream | None, flags: int, now_s: float, events: list[Event]) -> None:
        if stream is None or not flags & (FIN | RST):
            return
        if flags & RST and not stream.is_reset:
            if stream.number % 2 != self._is_client:
                _spend(self._wasted, now_s, "opens streams and breaks them off, again and again")
            stream.is_reset = True
            stream.queue.clear()
            if not stream.has_ended:  # what came before an end is whole, and may still be read
                self._discard(stream)
        stream.has_ended = stream.has_ended or bool(flags & FIN)
        events.append(Changed(stream))
        self._forget_if_over(stream)

    def _widen(self, stream: Stream, n_bytes: int) -> None:
        stream.send_window_bytes += n_bytes
        if stream.send_window_bytes > MAX_NUMBER:
            raise Malformed(f"a peer widened the window of stream {stream.number} beyond {MAX_NUMBER}")
        self._line_up(stream)

    def _take_ping(self, header: Header, now_s: float) -> None:
        if header.flags == SYN:
            self._say(PING, ACK, 0, header.length)
        elif self._is_waiting and header.length == self._n_pings:
            self._is_waiting = False
            self.rtt_s = min(self.rtt_s, max(0.0, now_s - self._ping_s))

    # --- what the node does

    def open(self, now_s: float) -> Stream:
        """Open a stream; one may write on it at once. Raises: StreamBroken, TooBig (the peer does not read)."""
        if self.is_going or self.is_over:
            raise StreamBroken("the peer takes no more streams here: it stops, or turned this node away")
        if len(self.streams) - self._n_inbound >= MAX_OUTBOUND or self._next_number > MAX_NUMBER:
            raise StreamBroken(f"{MAX_OUTBOUND} streams to this peer are open; close some")
        number = self._next_number
        self._say(WINDOW, SYN, number, 0)
        self._next_number += 2
        stream = self.streams[number] = Stream(number, granted_s=now_s, progress_s=now_s)
        return stream

    def accept(self, stream: Stream) -> None:
        """Take a stream that the peer opened."""
        if self._is_known(stream) and stream.number in self._backlog:
            self._backlog.discard(stream.number)
            self._say(WINDOW, ACK, stream.number, 0)

    def write(self, stream: Stream, data: bytes) -> None:
        """Queue all of `data`. Raises: StreamBroken."""
        if stream.is_reset:
            raise StreamBroken("the stream was reset")
        if stream.is_finishing:
            raise StreamBroken("the stream was closed for writing")
        if data:
            stream.queue.put(data)
            self._line_up(stream)

    def read(self, stream: Stream, max_bytes: int, now_s: float) -> bytes:
        """Take what came, at most so much; b"" where nothing waits: see `has_ended` and `is_reset`."""
        data = stream.unread.take(max_bytes)
        if data:
            self._account.release(0 if self.is_over else len(data))
            if len(data) >= SMALL_BYTES:
                self.work.pay_back(len(data), now_s)
            elif stream.number % 2 != self._is_client:
                self.work.charge(READ_S, now_s)
            owed = stream.target_bytes - stream.receive_window_bytes - stream.unread.n_bytes
            if 2 * owed >= stream.target_bytes and not stream.has_ended and not stream.is_reset:
                self._tune(stream, now_s)
                self._grants[stream.number] = stream
        self._forget_if_over(stream)
        return data

    def _tune(self, stream: Stream, now_s: float) -> None:
        """Double the window of a stream that used half of it up within few round trips: it could go faster."""
        rtt_s = max(MIN_RTT_S, self.rtt_s) if self.rtt_s < math.inf else MIN_RTT_S
        extra = min(stream.target_bytes, MAX_WINDOW_BYTES - stream.target_bytes)
        if now_s - stream.granted_s < 4 * rtt_s and extra and self._account.widen(extra):
            stream.target_bytes += extra
        stream.granted_s = now_s

    def finish(self, stream: Stream) -> None:
        """Say behind what is queued that no more is written."""
        if not stream.is_finishing and not stream.is_reset:
            stream.is_finishing = True
            self._line_up(stream)

    def close(self, stream: Stream, now_s: float) -> None:
        """Finish, read no more, and forget the stream when the peer has ended it too, or took too long to."""
        self.finish(stream)
        if not stream.is_abandoned:
            stream.is_abandoned = True
            stream.progress_s = stream.closed_s = now_s
        self._discard(stream)
        if self._is_known(stream):
            self._closing[stream.number] = stream
        self._forget_if_over(stream)

    def reset(self, stream: Stream) -> None:
        """Break the stream off, both ways."""
        if not stream.is_reset:
            stream.is_reset = True
            stream.queue.clear()
            if self._is_known(stream) and not self.is_over:
                self._say(WINDOW, RST, stream.number, 0)
        self._discard(stream)
        self._forget_if_over(stream)

    def go_away(self, code: Code = Code.NORMAL) -> None:
        """End the connection: whatever streams are left break, and this is the last that is said."""
        if self.is_over:
            return
        self.is_over = True
        for stream in self.streams.values():
            stream.is_reset = True
            stream.queue.clear()
            if not stream.has_ended:  # what came before an end is whole, and may still be read
                stream.unread.clear()
        self._ready.clear()
        self._grants.clear()
        self._closing.clear()
        self._account.close()
        # One message takes it all, for a shell sends one more at most.
        self._control = self._control[: (MESSAGE_BYTES // HEADER_BYTES - 1) * HEADER_BYTES]
        self._control += pack(GO_AWAY, 0, 0, code)

    def _give_way(self) -> None:
        self.go_away()
        self._on_giving_way()

    # --- time

    def ping(self, now_s: float) -> None:
        """Ask the peer for a sign of life; once more, where it is asked already. Raises: TooBig."""
        if not self._is_waiting:
            self._n_pings = self._n_pings % MAX_NUMBER + 1
            self._ping_s, self._is_waiting = now_s, True
        self._say(PING, SYN, 0, self._n_pings)

    def next_deadline_s(self) -> float:
        """When `tick` will next have something to do."""
        if self.is_over:
            return math.inf
        ping_s = self._ping_s + (DEAD_S if self._is_waiting else KEEPALIVE_S)
        return min([ping_s, *map(self._closes_at_s, self._closing.values())])

    def tick(self, now_s: float) -> list[Event]:
        """Let time pass. Raises: StreamBroken when the peer has gone silent."""
        if self.is_over:
            return []
        if self._is_waiting and now_s >= self._ping_s + DEAD_S:
            if self._heard_s < self._ping_s:
                self.go_away()
                raise StreamBroken(f"the peer was silent for {DEAD_S:g} s")
            self._is_waiting = False
        if not self._is_waiting and now_s >= self._ping_s + KEEPALIVE_S:
            self.ping(now_s)
        late = [stream for stream in self._closing.values() if now_s >= self._closes_at_s(stream)]
        for stream in late:
            self.reset(stream)
        return [Changed(stream) for stream in late]

    def _closes_at_s(self, stream: Stream) -> float:
        rest_s = CLOSE_S if stream.is_finished else STALL_S
        return min(stream.progress_s + rest_s, stream.closed_s + LINGER_S)

    # --- what goes out

    @property
    def has_messages(self) -> bool:
        """Is there something to send?"""
        return bool(self._control or self._grants or self._ready)

    @property
    def n_waiting(self) -> int:
        """How much waits on the stream that is next; a sender may give its writer a moment to put more to it."""
        return self._ready[0].queue.n_bytes if self._ready else 0

    def take_messages(self, max_messages: int, now_s: float) -> tuple[list[bytes], list[Stream]]:
        """What is to be sent now, cut into messages; and the streams whose queues became shorter by it."""
        messages: list[bytes] = []
        drained: dict[int, Stream] = {}
        self._say_grants()
        while len(messages) < max_messages:
            parts: list[bytes | bytearray | memoryview] = []
            room = MESSAGE_BYTES
            if self._control:
                n_bytes = min(len(self._control), MESSAGE_BYTES // HEADER_BYTES * HEADER_BYTES)
                parts.append(bytes(self._control[:n_bytes]))
                del self._control[:n_bytes]
                room -= n_bytes
            while self._ready and room >= MIN_FRAME_ROOM_BYTES:
                stream = self._ready.popleft()
                stream.is_ready = False
                if stream.is_reset:
                    continue
                room -= self._send(stream, room, parts, now_s)
                drained[stream.number] = stream
            if not parts:
                break
            messages.append(b"".join(parts))
        return messages, list(drained.values())

    def _send(self, stream: Stream, room: int, parts: list[bytes | bytearray | memoryview], now_s: float) -> int:
        """Put a stream's next frame into a message. Returns: what it takes."""
        n_bytes = min(stream.queue.n_bytes, stream.send_window_bytes, room - HEADER_BYTES)
        n_taken = 0
        if n_bytes:
            parts.append(pack(DATA, 0, stream.number, n_bytes))
            stream.queue.take_into(parts, n_bytes)
            stream.send_window_bytes -= n_bytes
            stream.progress_s = self.used_s = now_s
            n_taken = HEADER_BYTES + n_bytes
        has_room = room - n_taken >= HEADER_BYTES
        if has_room and stream.is_finishing and not stream.is_finished and not stream.queue.n_bytes:
            parts.append(pack(WINDOW, FIN, stream.number, 0))
            stream.is_finished = True
            stream.progress_s = now_s
            n_taken += HEADER_BYTES
            self._forget_if_over(stream)
        self._line_up(stream)
        return n_taken

    def _say_grants(self) -> None:
        if 2 * len(self._control) >= MAX_CONTROL_BYTES:
            return  # the peer reads slowly: it has its windows later
        for stream in self._grants.values():
            grant = stream.target_bytes - stream.receive_window_bytes - stream.unread.n_bytes
            if grant > 0 and not (stream.has_ended or stream.is_reset or stream.is_abandoned):
                stream.receive_window_bytes += grant
                self._say(WINDOW, 0, stream.number, grant)
        self._grants.clear()

    def _say(self, kind: int, flags: int, stream: int, length: int) -> None:
        if len(self._control) >= MAX_CONTROL_BYTES:
            raise TooBig(f"a peer asks and does not read: {len(self._control)} bytes of answers wait")
        self._control += pack(kind, flags, stream, length)

    def _line_up(self, stream: Stream) -> None:
        if not stream.is_ready and not stream.is_reset and stream.may_send():
            stream.is_ready = True
            self._ready.append(stream)

    # --- the end of streams

    def _is_known(self, stream: Stream) -> bool:
        """Does its number still stand for it? A peer may open a stream that it broke off once more."""
        return self.streams.get(stream.number) is stream

    def _discard(self, stream: Stream) -> None:
        self._account.release(0 if self.is_over else stream.unread.n_bytes)
        stream.unread.clear()

    def _forget_if_over(self, stream: Stream) -> None:
        """Let go of a stream on which nothing is left to happen."""
        if not stream.is_over() or not self._is_known(stream):
            return
        del self.streams[stream.number]
        self._closing.pop(stream.number, None)
        self._grants.pop(stream.number, None)
        self._backlog.discard(stream.number)
        if not self.is_over:
            self._account.narrow(stream.target_bytes - INITIAL_WINDOW_BYTES)
        if stream.number % 2 != self._is_client:
            self._n_inbound -= 1


def _spend(bucket: Bucket, now_s: float, what: str) -> None:
    """Let a peer do something that costs us more than it. Raises: TooBig when it does it all the time."""
    if bucket.wait_s(1, now_s) > 0:
        raise TooBig(f"a peer {what}")
    bucket.take(1, now_s)
