"""A stream, its peers, or both: each is tried, and the quickest is gone on with."""

from protocols.fetch.contest import LEAST_TRIAL_S, LOOK_S, QUIET_S, REST_S, TRIAL_BYTES, TRIAL_S, Contest

AFTER_S = 3 * TRIAL_S
STEP_S = QUIET_S / 3


def tried(stream: int, both: int, peers: int) -> Contest:
    """A contest after a trial of each, in which they gave so many bytes."""
    contest = Contest(0.0)
    contest.stream_gave(0, 0.0)
    contest.stream_gave(stream, 0.5 * TRIAL_S)
    assert not contest.lets_peers(TRIAL_S - 0.01) and contest.lets_peers(TRIAL_S)
    contest.stream_gave(both // 2, 1.5 * TRIAL_S)
    contest.peers_gave(both // 2, 1.5 * TRIAL_S)
    contest.peers_gave(0, 2 * TRIAL_S)
    contest.peers_gave(peers, 2.5 * TRIAL_S)
    return contest


def test_peers_help_as_long_as_both_give_more_than_the_stream_alone():
    contest = tried(1000, 3000, 0)
    for now_s in (AFTER_S, AFTER_S + 100.0):
        assert contest.lets_peers(now_s) and contest.lets_stream(now_s) and not contest.is_lost(now_s)


def test_the_stream_waits_while_peers_are_tried_alone_and_ends_where_they_give_more():
    contest = tried(1000, 1000, 1500)
    assert not contest.lets_stream(AFTER_S - 0.01) and not contest.is_lost(AFTER_S - 0.01)
    assert contest.is_lost(AFTER_S) and contest.lets_peers(AFTER_S)


def test_peers_that_do_not_help_rest_and_have_another_chance():
    contest = tried(1000, 1000, 1000)
    assert not contest.lets_peers(AFTER_S) and contest.lets_stream(AFTER_S) and not contest.is_lost(AFTER_S)
    for step in range(int(REST_S / STEP_S)):
        contest.stream_gave(1000, AFTER_S + step * STEP_S)
        assert not contest.lets_peers(AFTER_S + step * STEP_S)
    contest.stream_gave(1000, AFTER_S + REST_S)
    assert contest.lets_peers(AFTER_S + REST_S)


def test_peers_rest_no_longer_once_the_stream_has_become_slow_though_it_is_not_silent():
    contest = tried(1000, 1000, 1000)
    slow_s = AFTER_S + REST_S / 4
    now_s = AFTER_S
    while not contest.lets_peers(now_s):
        now_s += STEP_S
        contest.stream_gave(1000 if now_s < slow_s else 1, now_s)
    assert slow_s + QUIET_S < now_s <= slow_s + 2 * LOOK_S < AFTER_S + REST_S + LOOK_S
    for _ in range(100):
        now_s += STEP_S
        contest.stream_gave(1, now_s)
        contest.peers_gave(10, now_s)
        assert contest.lets_peers(now_s)


def test_a_trial_is_over_sooner_where_much_comes():
    contest = Contest(0.0)
    contest.stream_gave(0, 0.0)
    contest.stream_gave(TRIAL_BYTES, 0.5 * LEAST_TRIAL_S)
    assert not contest.lets_peers(LEAST_TRIAL_S - 0.01) and contest.lets_peers(LEAST_TRIAL_S)


def test_whose_turn_it_is_and_who_is_silent_keeps_nobody_waiting():
    contest = Contest(0.0)
    assert not contest.lets_peers(QUIET_S / 2) and contest.lets_peers(QUIET_S)
    contest.stream_gave(1, 0.2)
    assert not contest.lets_peers(0.2) and contest.lets_peers(0.2 + QUIET_S)
    peers = Contest(0.0)
    peers.stream_gave(1, 0.0)
    peers.stream_gave(1000, TRIAL_S / 2)
    assert peers.lets_peers(TRIAL_S)
    peers.peers_gave(0, 2 * TRIAL_S)
    heard_s = 2 * TRIAL_S
    assert not peers.lets_stream(heard_s + QUIET_S / 2) and peers.lets_stream(heard_s + QUIET_S)
