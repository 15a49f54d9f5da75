"""Where peers are, as others tell: who lies takes no one's word from another."""

from agents.whereabouts import AT_ONCE, MAX_TELLERS, PER_TELLER, Whereabouts
from tests.agents.federation.village import identity

ADA, LIAR, LOST = (identity(number).peer_id for number in range(3))
HOME = "/ip4/192.0.2.1/tcp/4701"


def dead(number: int, n_addresses: int = 8) -> list[str]:
    return [f"/ip4/203.0.113.{number}/tcp/{port}" for port in range(1, 1 + n_addresses)]


def test_what_one_tells_stands_beside_what_others_tell_and_never_in_its_place() -> None:
    where = Whereabouts()
    where.note(ADA, LOST, [HOME])
    for number in range(100):
        where.note(LIAR, LOST, dead(number))
    found = where.next_of(LOST)
    assert HOME in found[:2] and len(found) == 1 + PER_TELLER


def test_however_many_lie_each_address_has_its_turn_and_no_dial_is_long() -> None:
    where = Whereabouts()
    where.note(ADA, LOST, [HOME])
    for number in range(1, MAX_TELLERS):
        where.note(identity(2 + number).peer_id, LOST, dead(number))
    dials = [where.next_of(LOST) for _ in range(-(-(1 + PER_TELLER * (MAX_TELLERS - 1)) // AT_ONCE))]
    assert max(map(len, dials)) == AT_ONCE
    told = {HOME} | {one for number in range(1, MAX_TELLERS) for one in dead(number)[:PER_TELLER]}
    assert set().union(*dials) == told
    assert any(HOME in dial for dial in dials[: MAX_TELLERS // AT_ONCE]), "one of each comes before a second of any"


def test_of_more_tellers_than_are_kept_those_stay_who_told_last() -> None:
    where = Whereabouts()
    for number in range(1000):
        where.note(identity(number % 100).peer_id, LOST, [HOME if number == 999 else f"/ip4/192.0.2.2/tcp/{number}"])
    assert where.next_of(LOST)[0] == HOME
    assert sum(len(told) for told in where._told[LOST].values()) == MAX_TELLERS


def test_what_is_known_otherwise_comes_first_and_takes_no_place_from_what_is_told() -> None:
    where = Whereabouts()
    own = tuple(dead(9, 16))
    assert where.next_of(LOST, own) == own
    where.note(ADA, LOST, [HOME, own[0]])
    assert where.next_of(LOST, own) == (*own[:AT_ONCE], HOME, *own[AT_ONCE:])
