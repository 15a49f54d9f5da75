"""The core of asking one HTTP source."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.bitswap.wire import Entry, WantType
from protocols.retrieval.line import MAX_REST_S, REST_S, Line
from storage.cid import Cid

CIDS = [Cid.of(bytes([number])) for number in range(6)]


def block(number: int) -> Entry:
    return Entry(CIDS[number])


def presence(number: int) -> Entry:
    return Entry(CIDS[number], want_type=WantType.HAVE)


def cancel(number: int) -> Entry:
    return Entry(CIDS[number], is_cancel=True)


def test_blocks_go_before_presences_and_no_more_at_once_than_there_is_room_for():
    line = Line(n_at_once=2)
    assert line.heard([presence(0), block(1), block(2), block(3)], 0.0) == []
    first, second = line.next(), line.next()
    assert first is not None and second is not None
    assert [first.entry.cid, second.entry.cid] == CIDS[1:3]
    assert line.next() is None
    assert line.done(first.number)
    third = line.next()
    assert third is not None and third.entry.cid == CIDS[3]
    line.done(second.number)
    last = line.next()
    assert last is not None and last.entry.want_type is WantType.HAVE


def test_what_is_cancelled_is_not_asked_and_broken_off_where_it_is_under_way():
    line = Line()
    line.heard([block(0), block(1)], 0.0)
    pull = line.next()
    assert pull is not None
    assert line.heard([cancel(0), cancel(1)], 0.0) == [pull.number]
    assert line.is_unused(100.0) and not line.done(pull.number)


def test_what_is_under_way_is_not_asked_twice_but_a_block_is_beside_its_presence():
    line = Line()
    line.heard([presence(0)], 0.0)
    line.next()
    line.heard([presence(0)], 0.0)
    assert line.next() is None
    line.heard([block(0)], 0.0)
    pull = line.next()
    assert pull is not None and pull.entry.want_type is WantType.BLOCK


def test_a_failing_source_rests_longer_each_time_and_as_long_as_it_asks_up_to_a_limit():
    line = Line()
    line.heard([block(0), block(1)], 0.0)
    pull = line.next()
    assert pull is not None
    assert line.failed(10.0) == [pull.number] and line.is_unused(100.0)
    assert not line.may_be_asked(10.0 + REST_S - 0.01) and line.may_be_asked(10.0 + REST_S)
    line.failed(20.0)
    assert not line.may_be_asked(20.0 + 2 * REST_S - 0.01)
    line.failed(30.0, asked_s=3600.0)
    assert line.may_be_asked(30.0 + MAX_REST_S)
    line.answered()
    line.failed(200.0)
    assert line.may_be_asked(200.0 + REST_S)


@given(st.lists(st.tuples(st.sampled_from(["block", "have", "cancel", "next", "done", "failed"]), st.integers(0, 5))))
def test_whatever_happens_the_bound_holds_and_nothing_that_is_wanted_is_lost(steps: list[tuple[str, int]]) -> None:
    line = Line(n_at_once=3)
    wanted: set[Cid] = set()  # blocks that were asked for, and neither answered nor taken back
    running: dict[int, Entry] = {}
    for kind, number in steps:
        match kind:
            case "block":
                line.heard([block(number)], 0.0)
                wanted.add(CIDS[number])
            case "have":
                if CIDS[number] not in wanted:
                    line.heard([presence(number)], 0.0)
            case "cancel":
                for over in line.heard([cancel(number)], 0.0):
                    del running[over]
                wanted.discard(CIDS[number])
            case "next":
                if (pull := line.next()) is not None:
                    running[pull.number] = pull.entry
            case "done":
                for over in list(running)[:1]:
                    assert line.done(over)
                    entry = running.pop(over)
                    if entry.want_type is WantType.BLOCK:
                        wanted.discard(entry.cid)
            case "failed":
                assert sorted(line.failed(0.0)) == sorted(running)
                running.clear()
                wanted.clear()
        assert len(running) <= 3
    while (pull := line.next()) is not None:
        running[pull.number] = pull.entry
        line.done(pull.number)
    assert wanted <= {entry.cid for entry in running.values()}
