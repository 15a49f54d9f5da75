"""What each peer may ask: at once, a minute, an hour, a day; and when it may come again."""

import math

from hypothesis import given
from hypothesis import strategies as st

from protocols.ask.quota import BUSY_RETRY_S, DAY_S, HOUR_S, Denied, Limits, Quota, Ticket
from storage.keys import Identity

ANN, BOB = (Identity(letter * 32).peer_id for letter in (b"a", b"b"))
LIMITS = Limits(n_at_once=2, n_per_minute=4, tokens_per_hour=100, tokens_per_day=300, n_running=1, n_queued=2)


def admitted(quota: Quota, peer=ANN, n_tokens=1, now_s=0.0) -> Ticket:
    ticket = quota.admit(peer, n_tokens, now_s)
    assert isinstance(ticket, Ticket), ticket
    return ticket


def denied(quota: Quota, peer=ANN, n_tokens=1, now_s=0.0) -> Denied:
    answer = quota.admit(peer, n_tokens, now_s)
    assert isinstance(answer, Denied)
    return answer


def test_a_peer_has_so_many_questions_under_way_and_more_once_one_is_over():
    quota = Quota(LIMITS)
    first, _ = admitted(quota), admitted(quota)
    assert denied(quota)[::2] == ("too_many_questions", BUSY_RETRY_S)
    quota.settle(first, 1, 1.0)
    admitted(quota, now_s=1.0)


def test_the_line_is_one_for_all_peers():
    quota = Quota(LIMITS)
    admitted(quota), admitted(quota), admitted(quota, BOB)
    assert denied(quota, BOB).code == "busy"
    assert quota.n_open == 3


def test_questions_a_minute_are_counted_whatever_became_of_them_and_the_time_that_is_told_holds():
    quota = Quota(LIMITS)
    for _ in range(4):
        quota.settle(admitted(quota), 0, 0.0)
    told = denied(quota)
    assert told.code == "too_many_questions" and told.retry_s == 15.0
    assert isinstance(quota.admit(ANN, 1, 14.9), Denied)
    admitted(quota, now_s=15.0)
    admitted(quota, BOB)


def test_tokens_are_reserved_and_settled_by_what_was_used():
    quota = Quota(LIMITS)
    first = admitted(quota, n_tokens=100)
    told = denied(quota, n_tokens=1)
    assert told.code == "quota_spent" and told.retry_s == HOUR_S / 100
    quota.settle(first, 10, 0.0)
    admitted(quota, n_tokens=90)


def test_a_question_that_can_never_be_paid_for_is_told_so():
    told = denied(Quota(LIMITS), n_tokens=101)
    assert told.code == "quota_spent" and told.retry_s is None and "ask for less" in told.text


def test_the_day_holds_where_the_hours_would_allow_more():
    quota = Quota(LIMITS)
    now_s = 0.0
    for _ in range(3):
        quota.settle(admitted(quota, n_tokens=100, now_s=now_s), 100, now_s)
        now_s += HOUR_S
    told = denied(quota, n_tokens=100, now_s=now_s)
    assert told.retry_s is not None and HOUR_S < told.retry_s < DAY_S
    admitted(quota, n_tokens=100, now_s=now_s + told.retry_s)


def test_what_cost_more_than_was_reserved_is_owed():
    quota = Quota(LIMITS)
    quota.settle(admitted(quota, n_tokens=10), 150, 0.0)
    told = denied(quota, n_tokens=10)
    assert told.retry_s is not None and math.isclose(told.retry_s, HOUR_S * 60 / 100)


def test_settling_twice_gives_nothing_back_twice():
    quota = Quota(LIMITS)
    ticket = admitted(quota, n_tokens=100)
    quota.settle(ticket, 50, 0.0)
    quota.settle(ticket, 0, 0.0)
    assert quota.n_open == 0
    assert denied(quota, n_tokens=51).code == "quota_spent"


def test_accounts_are_bounded_and_nobody_gains_by_being_forgotten():
    quota = Quota(LIMITS._replace(n_queued=100), max_accounts=2)
    quota.settle(admitted(quota, ANN, 100), 100, 0.0)
    admitted(quota, BOB)
    third = Identity(b"c" * 32).peer_id
    assert denied(quota, third).code == "busy"
    admitted(quota, third, now_s=2 * DAY_S)  # nothing of ANN's counts any more
    assert denied(quota, Identity(b"d" * 32).peer_id, now_s=2 * DAY_S).code == "busy"


@given(st.lists(st.tuples(st.sampled_from([ANN, BOB]), st.integers(1, 60), st.floats(0, 400), st.booleans())))
def test_nobody_ever_gets_more_than_the_hour_and_the_day_allow(steps):
    quota, now_s, used, tickets = Quota(LIMITS), 0.0, {ANN: 0, BOB: 0}, []
    for peer, n_tokens, wait_s, ends in steps:
        now_s += wait_s
        answer = quota.admit(peer, n_tokens, now_s)
        if isinstance(answer, Ticket):
            tickets.append((answer, n_tokens))
            used[peer] += n_tokens
        if ends and tickets:
            ticket, cost = tickets.pop(0)
            quota.settle(ticket, cost, now_s)
        assert used[peer] <= LIMITS.tokens_per_hour * (1 + now_s / HOUR_S) + 1e-6
        assert used[peer] <= LIMITS.tokens_per_day * (1 + now_s / DAY_S) + 1e-6
        assert quota.n_open == len(tickets) <= LIMITS.n_running + LIMITS.n_queued
