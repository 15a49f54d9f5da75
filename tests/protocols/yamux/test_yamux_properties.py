"""Two sides that talk through a pipe which cuts as it likes: whatever they do, each hears what the other said."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import StreamBroken
from protocols.noise import MAX_PLAINTEXT_BYTES
from protocols.yamux.connection import Connection, Opened
from protocols.yamux.memory import Memory
from protocols.yamux.stream import MAX_WINDOW_BYTES, Stream

SIZES = st.sampled_from([0, 1, 5, 100, 4095, 4096, 65507, 65508, 262144, 262145, 700_000])
VERBS = [
    "open",
    "write",
    "write",
    "write",
    "read",
    "read",
    "carry",
    "carry",
    "carry",
    "finish",
    "close",
    "reset",
    "wait",
]


@dataclass
class Side:
    """One side, its streams, what was written on each and read from each, and what is on the wire to the other."""

    core: Connection
    streams: dict[int, Stream] = field(default_factory=dict)
    wrote: dict[int, bytes] = field(default_factory=dict)
    got: dict[int, bytes] = field(default_factory=dict)
    wire: bytearray = field(default_factory=bytearray)
    letgo: set[int] = field(default_factory=set)  # closed or reset here: no promise about what comes

    def take(self, stream: Stream) -> None:
        self.streams[stream.number] = stream
        self.wrote.setdefault(stream.number, b"")
        self.got.setdefault(stream.number, b"")


class Pair:
    """Both sides and the pipe between them."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.now_s = 0.0
        self.sides = [Side(Connection(True, self.memory, 0.0)), Side(Connection(False, self.memory, 0.0))]

    def carry(self, which: int, n_messages: int, n_bytes: int) -> None:
        """Put what a side has to send on the wire, and let the other hear so many bytes of it."""
        side, other = self.sides[which], self.sides[1 - which]
        messages, _ = side.core.take_messages(n_messages, self.now_s)
        assert all(len(message) <= MAX_PLAINTEXT_BYTES for message in messages)
        side.wire += b"".join(messages)
        data, side.wire = bytes(side.wire[:n_bytes]), side.wire[n_bytes:]
        for event in other.core.receive(data, self.now_s):
            if isinstance(event, Opened):
                other.take(event.stream)
                other.core.accept(event.stream)

    def read(self, which: int, stream: Stream, n_bytes: int) -> int:
        side = self.sides[which]
        data = side.core.read(stream, n_bytes, self.now_s)
        side.got[stream.number] += data
        return len(data)

    def settle(self) -> None:
        """Carry and read until nothing moves any more."""
        moved = True
        while moved:
            moved = False
            for which, side in enumerate(self.sides):
                moved |= side.core.has_messages or bool(side.wire)
                self.carry(which, 1000, 1 << 30)
                for stream in side.streams.values():
                    moved |= bool(self.read(which, stream, 1 << 30))

    def check(self) -> None:
        for side, other in (self.sides, self.sides[::-1]):
            for number, stream in side.core.streams.items():
                assert 0 <= stream.receive_window_bytes <= stream.target_bytes <= MAX_WINDOW_BYTES
                assert stream.receive_window_bytes + stream.unread.n_bytes <= stream.target_bytes
                far = other.core.streams.get(number)
                if far is not None:
                    assert far.send_window_bytes <= stream.receive_window_bytes
        for side, other in (self.sides, self.sides[::-1]):
            for number, got in side.got.items():
                assert other.wrote.get(number, b"")[: len(got)] == got


def content(number: int, at: int, n_bytes: int) -> bytes:
    return bytes((number + index) & 0xFF for index in range(at, at + min(n_bytes, 251))) * (n_bytes // 251 + 1)


@given(st.data())
def test_streams_carry_what_was_written_however_the_pipe_cuts(data: st.DataObject) -> None:
    pair = Pair()
    for verb in data.draw(st.lists(st.sampled_from(VERBS), max_size=60)):
        which = data.draw(st.integers(0, 1))
        side = pair.sides[which]
        stream = data.draw(st.sampled_from(list(side.streams.values()))) if side.streams else None
        if verb == "open":
            side.take(side.core.open(pair.now_s))
        elif verb == "carry":
            pair.carry(which, data.draw(st.integers(1, 9)), data.draw(SIZES) * 3)
        elif verb == "wait":
            pair.now_s += data.draw(st.sampled_from([0.001, 0.1, 1.0]))
        elif stream is not None:
            n_bytes = data.draw(SIZES)
            if verb == "write":
                what = content(stream.number, len(side.wrote[stream.number]), n_bytes)[:n_bytes]
                try:
                    side.core.write(stream, what)
                    side.wrote[stream.number] += what
                except StreamBroken:
                    assert stream.is_reset or stream.is_finishing
            elif verb == "read":
                pair.read(which, stream, n_bytes)
            elif verb == "finish":
                side.core.finish(stream)
            elif verb == "close":
                side.letgo.add(stream.number)
                side.core.close(stream, pair.now_s)
            else:
                for each in pair.sides:
                    each.letgo.add(stream.number)
                side.core.reset(stream)
        pair.check()
    finish(pair)


def finish(pair: Pair) -> None:
    """All that was written arrives, and when both have finished nothing is kept."""
    pair.settle()
    pair.check()
    for side, other in (pair.sides, pair.sides[::-1]):
        for number, wrote in side.wrote.items():
            if number in other.streams and number not in side.letgo | other.letgo:
                assert other.got[number] == wrote
    for side in pair.sides:
        for stream in side.streams.values():
            side.core.finish(stream)
    pair.settle()
    for _ in range(20):  # what was let go of with more on its way is given up in time
        pair.now_s += 10
        for side in pair.sides:
            side.core.tick(pair.now_s)
        pair.settle()
    for side in pair.sides:
        assert not side.core.streams
        side.core.go_away()
    assert (pair.memory.n_unread, pair.memory.n_extra) == (0, 0)


@given(st.binary(max_size=400), st.integers(1, 40))
def test_no_bytes_raise_anything_but_a_peers_error(garbage: bytes, n_at_a_time: int) -> None:
    from protocols.errors import Malformed, TooBig

    core = Connection(False, Memory(), 0.0)
    try:
        for at in range(0, len(garbage), n_at_a_time):
            core.receive(garbage[at : at + n_at_a_time], 0.0)
    except (Malformed, TooBig):
        assert core.take_messages(9, 0.0)[0]
