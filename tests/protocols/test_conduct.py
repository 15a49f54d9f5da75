"""Breaches: what they cost, when a peer is refused and for how long, and what that means for its neighbours."""

import pytest

from protocols import conduct
from protocols.conduct import (
    BREACHES,
    FIRST_REFUSAL_S,
    FORGIVE_S,
    LONGEST_CLOSED_S,
    LONGEST_REFUSAL_S,
    MAX_POINTS,
    PLACE_LIMITS,
    REMEMBERED_S,
    Conduct,
)
from protocols.errors import Expired, ProtocolError, Remote, StreamBroken
from storage.keys import Identity, PeerId

HOST, SUBNET = "192.0.2.7", "192.0.2.0/24"
ENOUGH = int(MAX_POINTS) + 1


def peer(number: int) -> PeerId:
    return Identity(number.to_bytes(32)).peer_id


def misbehave(book: Conduct, who: PeerId, now_s: float, places: tuple[str, ...] = (), n: int = ENOUGH) -> float | None:
    found = None
    for _ in range(n):
        found = book.report(who, "malformed", now_s, places)
    return found


def test_slips_are_borne_and_forgotten_and_masses_of_them_are_not() -> None:
    book = Conduct()
    assert misbehave(book, peer(1), 0.0, n=ENOUGH - 1) is None
    assert not book.reason_against(peer(1), 0.0)
    assert misbehave(book, peer(1), FORGIVE_S, n=ENOUGH - 1) is None
    assert book.report(peer(1), "malformed", FORGIVE_S) == FIRST_REFUSAL_S
    assert "malformed" in book.reason_against(peer(1), FORGIVE_S + FIRST_REFUSAL_S - 1)
    assert not book.reason_against(peer(1), FORGIVE_S + FIRST_REFUSAL_S)
    assert not book.reason_against(peer(2), FORGIVE_S)


def test_who_goes_on_is_refused_twice_as_long_each_time_up_to_a_limit_and_starts_anew_after_a_day() -> None:
    book, now_s, seen = Conduct(), 0.0, []
    for _ in range(12):
        refused_s = misbehave(book, peer(1), now_s)
        assert refused_s
        seen.append(refused_s)
        now_s += refused_s
    assert seen[:3] == [60.0, 120.0, 240.0]
    assert seen[-2:] == [LONGEST_REFUSAL_S] * 2
    assert misbehave(book, peer(1), now_s + REMEMBERED_S) == FIRST_REFUSAL_S


def test_what_honest_peers_cause_too_costs_nothing() -> None:
    for code in (StreamBroken.code, Expired.code, Remote.code, "anything"):
        book = Conduct()
        assert [book.report(peer(1), code, 0.0) for _ in range(100)] == [None] * 100
        assert book.offenders(0.0) == []


def test_what_the_wire_calls_a_breach_has_the_name_of_its_error() -> None:
    own = {"unwanted", "bad_record", "bad_connection", "bad_gossip"}

    def codes(kind: type[ProtocolError]) -> set[str]:
        return {getattr(kind, "code", "")}.union(*map(codes, kind.__subclasses__()))

    assert BREACHES.keys() - own <= codes(ProtocolError)


def test_a_broken_connection_costs_more_than_a_broken_stream() -> None:
    book = Conduct()
    said = [book.report(peer(1), "bad_connection", 0.0) for _ in range(5)]
    assert said == [None, None, None, None, FIRST_REFUSAL_S]


def test_what_comes_in_behind_a_refusal_does_not_change_what_it_is_for() -> None:
    book = Conduct()
    for _ in range(5):
        book.report(peer(1), "bad_connection", 0.0)
    book.report(peer(1), "bad_record", 0.0)
    assert [(one.code, one.n_breaches) for one in book.offenders(0.0)] == [("bad_connection", 6)]


def test_a_peer_that_the_user_keeps_is_cut_off_and_never_refused() -> None:
    book = Conduct()
    said = [book.report(peer(1), "malformed", 0.0, (HOST, SUBNET), is_kept=True) for _ in range(ENOUGH + 3)]
    assert said == [None] * (ENOUGH - 1) + [0.0] * 4
    assert not book.reason_against(peer(1), 0.0, (HOST, SUBNET))


def test_an_address_of_several_offenders_is_closed_for_minutes_and_one_of_a_single_one_is_not() -> None:
    book, host_limit, _ = Conduct(), *PLACE_LIMITS
    for number in range(host_limit):
        assert not book.reason_against(peer(99), 0.0, (HOST, SUBNET))
        misbehave(book, peer(number), 0.0, (HOST, SUBNET))
    assert HOST in book.reason_against(peer(99), 0.0, (HOST, SUBNET))
    assert not book.reason_against(peer(99), 0.0, ("192.0.2.8", SUBNET)), "neighbours of the network may come"
    assert not book.reason_against(peer(99), 61.0, (HOST, SUBNET))
    assert book.closed(0.0) == {HOST: 60.0}
    for number in range(20, 40):
        misbehave(book, peer(number), 100.0, (HOST, SUBNET))
    assert book.closed(100.0) == {HOST: LONGEST_CLOSED_S[0], SUBNET: LONGEST_CLOSED_S[1]}
    assert not book.reason_against(peer(99), 100.0 + LONGEST_CLOSED_S[0], (HOST, SUBNET))


def test_one_peer_that_is_refused_again_and_again_closes_no_address() -> None:
    book, now_s = Conduct(), 0.0
    for _ in range(10):
        now_s += misbehave(book, peer(1), now_s, (HOST, SUBNET)) or 0.0
    assert not book.closed(now_s)


def test_offenders_are_listed_and_forgiven() -> None:
    book = Conduct()
    book.report(peer(1), "unwanted", 0.0)
    misbehave(book, peer(2), 0.0)
    refused, suspect = book.offenders(1.0)
    assert (refused.peer, refused.code, refused.n_breaches, refused.n_refusals, refused.refused_s) == (
        peer(2), "malformed", ENOUGH, 1, FIRST_REFUSAL_S - 1,
    )  # fmt: skip
    assert (suspect.peer, suspect.n_breaches, suspect.refused_s) == (peer(1), 1, 0.0)
    assert [one.peer for one in book.offenders(FORGIVE_S)] == [peer(2)]
    assert book.forgive(peer(2))
    assert not book.forgive(peer(2))
    assert not book.reason_against(peer(2), 1.0)
    assert book.offenders(FORGIVE_S + REMEMBERED_S) == []


def test_no_number_of_identities_or_places_takes_more_than_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_SUSPECTS", "MAX_OFFENDERS", "MAX_PLACES"):
        monkeypatch.setattr(conduct, name, 10)
    book = Conduct()
    for number in range(30):
        misbehave(book, peer(number), 0.0, (f"198.51.100.{number}", SUBNET))
        book.report(peer(100 + number), "too_big", 0.0)
    assert len(book.offenders(0.0)) == 20
    assert len(book._places) == 10
    assert book.reason_against(peer(29), 0.0), "suspects do not crowd out who is refused"
