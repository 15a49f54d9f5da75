"""What a peer cannot do: hold memory that it was not granted, open without end, ask without reading, fall silent."""

from functools import partial

import pytest

from protocols.errors import Malformed, StreamBroken, TooBig
from protocols.yamux import connection, memory
from protocols.yamux.connection import (
    CLOSE_S,
    DEAD_S,
    KEEPALIVE_S,
    LINGER_S,
    STALL_S,
    Changed,
    Connection,
    Opened,
)
from protocols.yamux.frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW_BYTES,
    PING,
    RST,
    SYN,
    WINDOW,
    pack,
    unpack,
)
from protocols.yamux.memory import Memory
from protocols.yamux.stream import MAX_WINDOW_BYTES, MERGE_BYTES, Pieces, Stream
from protocols.yamux.work import FRAME_S, MAX_WORK_S, MIN_REST_S, OPENING_S, READ_S, SMALL_BYTES

FULL = INITIAL_WINDOW_BYTES


@pytest.fixture
def server() -> Connection:
    return new_server(Memory())


def new_server(shared: Memory) -> Connection:
    core = Connection(False, shared, 0.0)
    core.tick(0.0)
    core.take_messages(1, 0.0)
    return core


def opened(core: Connection, number: int, payload: bytes = b"", flags: int = 0) -> Stream:
    """A stream that the peer opened with data."""
    events = core.receive(pack(DATA, SYN | flags, number, len(payload)) + payload, 0.0)
    assert isinstance(events[0], Opened)
    core.accept(events[0].stream)
    core.take_messages(1, 0.0)
    return events[0].stream


def sent(core: Connection, now_s: float = 0.0) -> list[tuple[int, int, int, int]]:
    """The heads of what goes out."""
    data = b"".join(core.take_messages(1 << 20, now_s)[0])
    heads, at = [], 0
    while at < len(data):
        head = unpack(data, at)
        heads.append(tuple(head))
        at += 12 + (head.length if head.kind == DATA else 0)
    return heads  # type: ignore[return-value]


def test_streams_without_room_are_refused_and_who_opens_ten_thousand_is_left(server: Connection) -> None:
    frames = [pack(WINDOW, SYN, number, 0) for number in range(1, 20_001, 2)]
    server.receive(b"".join(frames[: connection.MAX_BACKLOG + 100]), 0.0)
    assert len(server.streams) == connection.MAX_BACKLOG
    assert [head[1] for head in sent(server)] == [RST] * 100
    with pytest.raises(TooBig, match="no room"):
        server.receive(b"".join(frames[connection.MAX_BACKLOG + 100 :]), 0.0)
    assert sent(server)[-1] == (GO_AWAY, 0, 0, 1)


def test_data_either_way_is_use_of_a_connection_and_nothing_else_is(server: Connection) -> None:
    server.receive(pack(PING, SYN, 0, 1) + pack(WINDOW, SYN, 1, 0), 1.0)
    assert server.used_s == 0.0
    server.receive(pack(DATA, 0, 1, 1) + b"x", 2.0)
    assert server.used_s == 2.0
    server.write(server.streams[1], b"y")
    server.take_messages(1, 3.0)
    server.receive(pack(WINDOW, 0, 1, 1), 4.0)
    assert server.used_s == 3.0


def test_accepted_streams_have_a_bound_of_their_own_and_make_room_when_they_end(server: Connection) -> None:
    streams = [opened(server, 2 * number + 1) for number in range(connection.MAX_INBOUND)]
    server.receive(pack(WINDOW, SYN, 9999, 0), 0.0)
    assert sent(server) == [(WINDOW, RST, 9999, 0)]
    server.receive(pack(WINDOW, RST, streams[0].number, 0), 0.0)
    assert opened(server, 10_001).number in server.streams


def test_opening_and_breaking_off_leaves_nothing_and_who_goes_on_without_end_is_left(server: Connection) -> None:
    pairs = [pack(WINDOW, SYN, number, 0) + pack(WINDOW, RST, number, 0) for number in range(1, 200_001, 2)]
    for at in range(connection.MAX_WASTED):
        server.receive(pairs[at], 0.0)
    now_s, at = 0.0, connection.MAX_WASTED
    for _ in range(10):  # nobody is left who takes the time that we need
        now_s += connection.REFILL_S / 4
        server.receive(b"".join(pairs[at : at + connection.MAX_WASTED // 4]), now_s)
        at += connection.MAX_WASTED // 4
    assert not server.streams
    now_s += 1.0
    assert server.receive(pack(WINDOW, SYN, 400_001, 0), now_s)
    with pytest.raises(TooBig, match="breaks them off"):
        server.receive(b"".join(pairs[at:]), now_s)
    assert sent(server, now_s)[-1] == (GO_AWAY, 0, 0, 1)


def test_who_opens_and_ends_streams_faster_than_they_can_be_answered_is_read_later(server: Connection) -> None:
    number = 1
    while not server.work.rest_s(0.0):
        server.finish(opened(server, number, b"", FIN))
        number += 2
    assert number // 2 <= MAX_WORK_S / OPENING_S + 1
    assert server.work.rest_s(0.0) >= MIN_REST_S


@pytest.mark.parametrize(
    "idle",
    [
        pack(WINDOW, 0, 1, 0),
        pack(DATA, 0, 1, 0),
        pack(DATA, 0, 1, 1) + b"x",
        pack(DATA, 0, 3, 1) + b"x",
        pack(PING, ACK, 0, 9),
        b"",
    ],
    ids=["window", "data of nothing", "a byte", "a byte for nobody", "pong", "message of nothing"],
)
def test_what_carries_nothing_has_its_sender_read_later_for_as_long_as_it_takes(
    server: Connection, idle: bytes
) -> None:
    server.reset(opened(server, 3))
    stream, n_frames = opened(server, 1), 1000
    for _ in range(int(MAX_WORK_S / FRAME_S / n_frames) + 1):
        for message in [idle * n_frames] if idle else [b""] * n_frames:
            server.receive(message, 0.0)
        server.read(stream, 1 << 20, 0.0)
    assert server.work.rest_s(0.0)
    assert not server.work.rest_s(server.work.rest_s(0.0))


def test_data_in_bulk_is_read_however_fast_it_comes(server: Connection) -> None:
    stream = opened(server, 1)
    for _ in range(int(MAX_WORK_S / FRAME_S)):
        stream.receive_window_bytes = SMALL_BYTES
        server.receive(pack(DATA, 0, 1, SMALL_BYTES) + bytes(SMALL_BYTES), 0.0)
        assert server.read(stream, SMALL_BYTES, 0.0)
    assert not server.work.rest_s(0.0)


def test_who_opens_a_stream_for_each_message_of_bulk_is_read_as_fast_as_one_who_keeps_to_one(
    server: Connection,
) -> None:
    """Kubo does, for each block."""
    for number in range(1, 4001, 2):
        stream = opened(server, number, b"", FIN)
        stream.receive_window_bytes, stream.has_ended = 1 << 18, False
        for _ in range(4):
            server.receive(pack(DATA, 0, number, 1 << 16) + bytes(1 << 16), 0.0)
        server.read(stream, 1 << 18, 0.0)
        server.reset(stream)
        sent(server)
    assert not server.work.rest_s(0.0)


def test_bulk_that_nobody_reads_pays_nothing_back(server: Connection) -> None:
    server.reset(opened(server, 1))
    server.work.charge(2 * MAX_WORK_S, 0.0)
    rest_s = server.work.rest_s(0.0)
    server.receive((pack(DATA, 0, 1, 1 << 16) + bytes(1 << 16)) * 16, 0.0)
    assert server.work.rest_s(0.0) == rest_s


def test_small_pieces_read_are_work_where_the_peer_opened_the_stream_and_not_where_we_did(server: Connection) -> None:
    ours, theirs = server.open(0.0), opened(server, 1)
    for stream, is_work in ((ours, False), (theirs, True)):
        for _ in range(int(MAX_WORK_S / READ_S)):
            server.receive(pack(DATA, 0, stream.number, 1) + b"?", 0.0)
            server.read(stream, 1, 0.0)
        assert bool(server.work.rest_s(0.0)) is is_work


def test_our_own_streams_are_bounded_too(server: Connection) -> None:
    for _ in range(connection.MAX_OUTBOUND):
        server.open(0.0)
    with pytest.raises(StreamBroken, match="close some"):
        server.open(0.0)


def test_a_flood_of_pings_that_reads_no_answer_ends_the_connection(server: Connection) -> None:
    with pytest.raises(TooBig):
        server.receive(pack(PING, SYN, 0, 7) * 10_000, 0.0)
    [message] = server.take_messages(1, 0.0)[0]  # all that a connection which ends sends yet
    assert message.endswith(pack(GO_AWAY, 0, 0, 1))


def test_a_stream_that_cannot_be_asked_for_is_not_open(server: Connection) -> None:
    server.receive(pack(PING, SYN, 0, 7) * (connection.MAX_CONTROL_BYTES // 12 + 1), 0.0)
    with pytest.raises(TooBig):
        server.open(0.0)
    assert not server.streams
    server.take_messages(100, 0.0)
    assert server.open(0.0).number == 2


def test_unread_data_is_bounded_on_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_UNREAD_BYTES", 3 * FULL)
    shared = Memory()
    server = new_server(shared)
    for number in (1, 3, 5):
        opened(server, number, bytes(FULL))
    with pytest.raises(TooBig, match="unread on one connection"):
        opened(server, 7, b"x")
    assert shared.n_unread == 0


def test_when_all_hold_too_much_whoever_holds_the_most_ends_and_not_who_gets_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "MAX_UNREAD_IN_ALL_BYTES", 4 * FULL)
    monkeypatch.setattr(memory, "SHARE_BYTES", FULL)
    shared, gone = Memory(), list[str]()
    resting, busy, third = (Connection(False, shared, 0.0, partial(gone.append, name)) for name in "abc")
    for number in (1, 3, 5):
        opened(resting, number, bytes(FULL))
    stream = opened(busy, 1, bytes(FULL))
    more = opened(busy, 3, b"x")
    assert gone == ["a"] and resting.is_over and not busy.is_over
    assert busy.read(stream, FULL, 0.0) + busy.read(more, 1, 0.0) == bytes(FULL) + b"x"
    for number in (5, 7, 9, 11):
        opened(busy, number, bytes(FULL))
    opened(third, 1, bytes(FULL))
    assert gone == ["a", "b"] and shared.n_unread == FULL
    for name in "defg":  # nobody has more than a share, which is never denied
        opened(Connection(False, shared, 0.0, partial(gone.append, name)), 1, bytes(FULL))
    assert gone == ["a", "b"] and shared.n_unread == 5 * FULL


def test_what_the_fullest_gets_when_it_ends_is_kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_UNREAD_IN_ALL_BYTES", FULL)
    monkeypatch.setattr(memory, "SHARE_BYTES", 1)
    shared = Memory()
    server = new_server(shared)
    stream, other = opened(server, 1, bytes(FULL)), opened(server, 3)
    server.receive(pack(DATA, 0, 3, 2) + b"xy", 0.0)
    assert server.is_over and not stream.unread.n_bytes and not other.unread.n_bytes
    assert (shared.n_unread, shared.n_extra, shared.holders) == (0, 0, {})


def test_one_byte_at_a_time_costs_little_more_than_its_bytes(server: Connection) -> None:
    stream = opened(server, 1)
    for _ in range(20):
        server.receive((pack(DATA, 0, 1, 1) + b"x") * 5000 + pack(DATA, 0, 1, 0) * 5000, 0.0)
        assert len(stream.unread._pieces) <= 2
        assert server.read(stream, 5000, 0.0) == b"x" * 5000
        server.take_messages(1, 0.0)


def test_a_window_grows_with_the_speed_of_its_reader_up_to_its_bound_and_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "MAX_EXTRA_BYTES", MAX_WINDOW_BYTES - FULL)
    shared = Memory()
    server = new_server(shared)
    stream, other = opened(server, 1), opened(server, 3)
    for number, each in ((1, stream), (3, other)):
        for _ in range(20):
            n_bytes = each.receive_window_bytes
            server.receive(pack(DATA, 0, number, n_bytes) + bytes(n_bytes), 0.0)
            assert len(server.read(each, 1 << 30, 0.0)) == n_bytes
            grants = [head for head in sent(server) if head[0] == WINDOW]
            assert grants == [(WINDOW, 0, number, each.target_bytes)]
            assert each.receive_window_bytes == each.target_bytes
    assert stream.target_bytes == MAX_WINDOW_BYTES
    assert other.target_bytes == FULL  # one stream has all that the connection may have
    assert shared.n_extra == MAX_WINDOW_BYTES - FULL
    server.reset(stream)
    assert shared.n_extra == 0


def test_a_window_stays_as_it_is_for_a_slow_reader(server: Connection) -> None:
    stream = opened(server, 1)
    now_s = 0.0
    for _ in range(5):
        now_s += 10
        server.receive(pack(DATA, 0, 1, FULL) + bytes(FULL), now_s)
        server.read(stream, FULL, now_s)
        assert sent(server, now_s)[-1] == (WINDOW, 0, 1, FULL)
    assert stream.target_bytes == FULL


def test_no_window_is_granted_for_what_ends_or_is_let_go_of(server: Connection) -> None:
    ended, closed = opened(server, 1, bytes(FULL), FIN), opened(server, 3, bytes(FULL))
    server.read(ended, FULL, 0.0)
    server.close(closed, 0.0)
    assert sent(server) == [(WINDOW, FIN, 3, 0)]


def test_streams_take_turns_however_much_one_of_them_has_to_say() -> None:
    client = Connection(True, Memory(), 0.0)
    loud, quiet = client.open(0.0), client.open(0.0)
    client.write(loud, bytes(200_000))
    client.write(quiet, b"me too")
    order = [head[2] for head in sent(client) if head[0] == DATA]
    assert order.index(quiet.number) == 1
    assert order.count(loud.number) == 4


def test_small_writes_travel_in_one_frame() -> None:
    client = Connection(True, Memory(), 0.0)
    stream = client.open(0.0)
    for _ in range(40):
        client.write(stream, b"small")
    assert [head for head in sent(client) if head[0] == DATA] == [(DATA, 0, 1, 200)]


def test_what_came_before_an_end_may_be_read_behind_a_reset_and_what_had_no_end_may_not(server: Connection) -> None:
    whole, cut = opened(server, 1, b"whole", FIN), opened(server, 3, b"cut")
    for number in (1, 3):
        assert Changed in map(type, server.receive(pack(WINDOW, RST, number, 0), 0.0))
    assert server.read(whole, 10, 0.0) == b"whole"
    assert server.read(cut, 10, 0.0) == b""
    assert cut.is_reset and not cut.has_ended
    assert not server.streams
    with pytest.raises(StreamBroken, match="reset"):
        server.write(cut, b"x")


def test_a_stream_that_we_closed_is_reset_when_its_peer_never_ends_it(server: Connection) -> None:
    stream = opened(server, 1)
    server.write(stream, b"answer")
    server.close(stream, 0.0)
    assert [head[:2] for head in sent(server)] == [(DATA, 0), (WINDOW, FIN)]
    assert server.next_deadline_s() == CLOSE_S
    assert server.tick(CLOSE_S) == [Changed(stream)]
    assert sent(server) == [(WINDOW, RST, 1, 0)]
    assert not server.streams


def test_what_is_queued_when_we_close_may_take_its_time_but_not_for_ever(server: Connection) -> None:
    stream = opened(server, 1)
    server.write(stream, bytes(FULL + 1))
    server.close(stream, 0.0)
    sent(server)
    for now_s in (10.0, 20.0):
        server.tick(now_s)
        assert server.streams
    server.receive(pack(WINDOW, 0, 1, 1), 20.0)
    assert [head[:2] for head in sent(server, 20.0)] == [(DATA, 0), (WINDOW, FIN)]
    other = opened(server, 3)
    server.write(other, bytes(FULL + 1))
    server.close(other, 20.0)
    sent(server, 20.0)
    server.tick(20.0 + STALL_S)
    assert not server.streams


def test_data_for_a_stream_that_we_closed_is_thrown_away_up_to_a_bound(
    server: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_DISCARDED_BYTES", 1000)
    stream = opened(server, 1)
    server.close(stream, 0.0)
    sent(server)
    server.receive(pack(DATA, 0, 1, 1000) + bytes(1000), 0.0)
    assert not stream.unread.n_bytes
    assert server.streams
    assert Changed(stream) in server.receive(pack(DATA, 0, 1, 1) + b"x", 0.0)  # the shell shall forget it too
    assert sent(server) == [(WINDOW, RST, 1, 0)]
    assert not server.streams


def test_who_is_asked_for_a_sign_of_life_again_and_again_has_no_longer_for_it() -> None:
    core = Connection(True, Memory(), 0.0)
    for at_s in (0.0, 1.0, DEAD_S - 1):
        core.ping(at_s)
    assert sent(core) == [(PING, SYN, 0, 1)] * 3
    assert core.next_deadline_s() == DEAD_S
    core.receive(pack(PING, ACK, 0, 1), DEAD_S - 0.5)
    core.ping(DEAD_S)
    assert sent(core) == [(PING, SYN, 0, 2)]
    assert core.next_deadline_s() == 2 * DEAD_S


def test_a_peer_that_falls_silent_is_given_up_and_one_that_talks_is_not() -> None:
    silent, talking = Connection(True, Memory(), 0.0), Connection(True, Memory(), 0.0)
    for core in (silent, talking):
        core.tick(0.0)
        assert sent(core) == [(PING, SYN, 0, 1)]
        core.receive(pack(PING, ACK, 0, 1), 0.25)
        assert core.rtt_s == 0.25
        assert core.next_deadline_s() == KEEPALIVE_S
        core.tick(KEEPALIVE_S)
        assert sent(core) == [(PING, SYN, 0, 2)]
    talking.receive(pack(PING, SYN, 0, 9), KEEPALIVE_S + 1)
    talking.tick(KEEPALIVE_S + DEAD_S)
    with pytest.raises(StreamBroken, match="silent"):
        silent.tick(KEEPALIVE_S + DEAD_S)
    assert sent(silent) == [(GO_AWAY, 0, 0, 0)]
    assert silent.next_deadline_s() == float("inf")
    assert silent.tick(1000.0) == []


def test_who_goes_away_takes_no_new_streams_and_ends_those_that_are_open() -> None:
    client = Connection(True, Memory(), 0.0)
    stream = client.open(0.0)
    client.receive(pack(DATA, 0, 1, 4) + b"last" + pack(GO_AWAY, 0, 0, 0), 0.0)
    with pytest.raises(StreamBroken, match="no more streams"):
        client.open(0.0)
    client.write(stream, b"but this goes on")
    assert client.read(stream, 10, 0.0) == b"last"
    client.go_away()
    client.go_away()
    assert sent(client)[-1] == (GO_AWAY, 0, 0, 0)
    assert stream.is_reset
    with pytest.raises(StreamBroken):
        client.open(0.0)


def test_a_frame_for_a_stream_that_is_over_is_skipped_unless_no_window_could_have_held_it(server: Connection) -> None:
    server.reset(opened(server, 1))
    sent(server)
    assert server.receive(pack(DATA, 0, 1, 3) + b"old" + pack(WINDOW, FIN, 1, 5), 0.0) == []
    with pytest.raises(Malformed):
        server.receive(pack(DATA, 0, 1, MAX_WINDOW_BYTES + 1), 0.0)


def test_a_number_that_is_used_again_stands_for_the_new_stream_alone(server: Connection) -> None:
    closed, reset = opened(server, 1), opened(server, 3)
    again = b"".join(pack(WINDOW, flag, number, 0) for number in (1, 3) for flag in (RST, SYN))
    server.receive(again, 0.0)
    assert server.streams[1] is not closed and server.streams[3] is not reset
    server.accept(closed)
    server.close(closed, 0.0)
    server.reset(reset)
    assert sent(server) == []
    assert server.next_deadline_s() == DEAD_S  # the ping's, none of a stream that is never let go of
    server.accept(server.streams[1])
    assert sent(server) == [(WINDOW, ACK, 1, 0)]


def test_a_peer_that_widens_windows_does_not_keep_a_stream_that_we_closed(server: Connection) -> None:
    stream, stalled, slow = (opened(server, number) for number in (1, 3, 5))
    for each in (stalled, slow):
        server.write(each, bytes(2 * FULL))
    for each in (stream, stalled, slow):
        server.close(each, 0.0)
    sent(server)
    server.receive(pack(WINDOW, 0, 1, 9), CLOSE_S - 1)  # nothing is left to send that it could be for
    server.tick(CLOSE_S)
    assert sent(server) == [(WINDOW, RST, 1, 0)]
    now_s = 0.0
    while now_s < LINGER_S:
        now_s += STALL_S / 2
        server.receive(pack(PING, ACK, 0, 0) + pack(WINDOW, 0, 3, 0) + pack(WINDOW, 0, 5, 1), now_s)
        sent(server, now_s)
        server.tick(now_s)
        assert set(server.streams) == ({3, 5} if now_s < STALL_S else {5} if now_s < LINGER_S else set())


def test_what_waits_to_be_read_keeps_at_most_twice_its_size_alive() -> None:
    message = bytearray(4 * MERGE_BYTES)
    most, part = memoryview(message)[:-1], memoryview(bytes(message))[MERGE_BYTES : 2 * MERGE_BYTES]
    pieces = Pieces()
    for data in (most, part, memoryview(bytes(message))[:-1]):
        pieces.put(data)
    kept = [memoryview(piece.obj if isinstance(piece, memoryview) else piece).nbytes for piece in pieces._pieces]
    assert kept == [4 * MERGE_BYTES, MERGE_BYTES, 4 * MERGE_BYTES]
    assert pieces.take(1 << 20) == bytes(9 * MERGE_BYTES - 2)
