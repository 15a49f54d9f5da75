"""What a node believes of its reach: several must agree, few liars change nothing, and friends are enough."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.autonat.outlook import (
    ASKED_AT_ONCE,
    LOOKING_S,
    MAX_VOTES,
    NEEDED,
    REFUSED_S,
    SETTLED_S,
    SILENT_S,
    VOTE_S,
    Outlook,
    Reach,
)
from protocols.net import Link
from storage.keys import Identity


def link(number: int, network: int | None = None, *, is_relayed: bool = False, address: str = "") -> Link:
    where = address or f"8.8.{number if network is None else network}.{number + 1}:4001"
    return Link(Identity(number.to_bytes(32, "big")).peer_id, where, True, 1, 0, 0, is_relayed)


def told(*answers: bool, now_s: float = 0.0) -> Outlook:
    outlook = Outlook()
    for number, answer in enumerate(answers):
        outlook.heard(link(number), answer, frozenset(), now_s)
    return outlook


def test_strangers_of_several_networks_have_to_agree() -> None:
    assert told(True, True).reach(0.0) is Reach.UNKNOWN
    assert told(True, True, True).reach(0.0) is Reach.YES
    assert told(False, False, False).reach(0.0) is Reach.NO
    assert told(True, True, True, False, False, False).reach(0.0) is Reach.YES
    same = Outlook()
    for number in range(9):
        same.heard(link(number, network=1), False, frozenset(), 0.0)
    assert same.reach(0.0) is Reach.UNKNOWN and same.n_votes == 1


def test_a_friend_is_enough() -> None:
    outlook = Outlook()
    outlook.heard(link(1), False, frozenset({link(1).peer}), 0.0)
    assert outlook.reach(0.0) is Reach.NO


def test_a_view_that_stands_gives_way_to_twice_as_many() -> None:
    outlook = told(True, True, True)
    for number in range(3, 9):
        assert outlook.reach(0.0) is Reach.YES
        outlook.heard(link(number), False, frozenset(), 0.0)
    assert outlook.reach(0.0) is Reach.YES  # six against three
    outlook.heard(link(9), False, frozenset(), 0.0)
    assert outlook.reach(0.0) is Reach.NO


def test_what_was_said_long_ago_counts_no_more() -> None:
    outlook = told(True, True, True)
    assert outlook.reach(VOTE_S - 1) is Reach.YES
    assert outlook.reach(VOTE_S) is Reach.UNKNOWN


def test_asked_are_peers_of_the_internet_that_are_connected_directly_and_not_soon_again() -> None:
    outlook = Outlook()
    links = [
        link(1, address="192.168.1.5:4001"),
        link(2, is_relayed=True, address="/p2p/x/p2p-circuit"),
        link(2),
        link(3, address=""),
        link(4),
        link(4),
        link(5, address="[2606:4700::1]:4001"),
    ]
    assert outlook.due(links, 0.0) == [each.peer for each in (links[3], links[4], links[6])]
    assert len(outlook.due([link(number) for number in range(20)], 0.0)) == ASKED_AT_ONCE
    one, other, third = links[3], links[4], links[6]
    outlook.heard(one, True, frozenset(), 0.0)
    outlook.silent(other.peer, False, 0.0)
    outlook.silent(third.peer, True, 0.0)
    assert outlook.due(links, LOOKING_S - 1) == []
    assert outlook.due(links, LOOKING_S) == [one.peer]
    assert outlook.due(links, SILENT_S) == [one.peer, other.peer]
    assert outlook.due(links, REFUSED_S) == [one.peer, other.peer, third.peer]
    outlook.heard(one, True, frozenset({one.peer}), REFUSED_S)
    assert one.peer not in outlook.due(links, REFUSED_S + SETTLED_S - 1)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12), st.booleans(), st.floats(0, 2000)), max_size=80))
def test_few_networks_never_decide_against_nobody_and_memory_is_bounded(
    said: list[tuple[int, int, bool, float]],
) -> None:
    outlook, now_s = Outlook(), 0.0
    yes: dict[int, float] = {}
    for number, network, answer, wait_s in said:
        now_s += wait_s
        outlook.heard(link(number, network), answer, frozenset(), now_s)
        if answer:
            yes[network] = now_s
        assert outlook.n_votes <= MAX_VOTES
        if outlook.reach(now_s) is Reach.YES:
            assert len(yes) >= NEEDED
