"""Whom a relay serves: who may, for how long, and never more than their share."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.relay import circuits
from protocols.relay.circuits import FRIEND, RESERVATION_S, STRANGER, Circuit, Relay, Terms
from protocols.relay.wire import Limit, Status
from storage.keys import Identity, PeerId

PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(140)]
A, B, C = PEERS[:3]


def joined(relay: Relay, source: PeerId, target: PeerId, terms: Terms = FRIEND) -> Circuit:
    found = relay.connect(source, target, terms, 0.0)
    assert isinstance(found, Circuit), found
    return found


def test_who_reserved_is_reached_until_the_time_is_up_and_longer_when_it_reserves_again() -> None:
    relay = Relay()
    assert relay.connect(B, A, FRIEND, 0.0) is Status.NO_RESERVATION
    assert relay.reserve(A, FRIEND, 0.0) is Status.OK
    joined(relay, B, A)
    assert relay.connect(B, A, FRIEND, RESERVATION_S) is Status.NO_RESERVATION
    relay.reserve(A, FRIEND, RESERVATION_S)
    assert isinstance(relay.connect(B, A, FRIEND, RESERVATION_S + 1), Circuit)
    relay.keep([B])
    assert relay.connect(B, A, FRIEND, RESERVATION_S + 2) is Status.NO_RESERVATION


def test_who_gets_nothing_neither_reserves_nor_connects_and_nobody_is_brought_to_itself() -> None:
    relay = Relay()
    assert relay.reserve(A, None, 0.0) is Status.PERMISSION_DENIED
    relay.reserve(A, FRIEND, 0.0)
    assert relay.connect(B, A, None, 0.0) is Status.PERMISSION_DENIED
    assert relay.connect(B, C, None, 0.0) is Status.PERMISSION_DENIED  # nor does it learn who is here
    assert relay.connect(A, A, FRIEND, 0.0) is Status.PERMISSION_DENIED
    assert relay.reserve(A, None, 0.0) is Status.PERMISSION_DENIED  # it is trusted no more
    assert relay.connect(B, A, FRIEND, 0.0) is Status.NO_RESERVATION


def test_a_circuit_has_the_lesser_terms_of_both_and_counts_what_it_carries() -> None:
    relay = Relay()
    relay.reserve(A, FRIEND, 0.0)
    circuit = joined(relay, B, A, STRANGER)
    assert circuit.terms is STRANGER
    assert circuit.spend(STRANGER.limit.n_bytes) and not circuit.spend(1)
    relay.end(circuit)
    relay.end(circuit)
    assert relay.circuits == [] and relay.n_carried == STRANGER.limit.n_bytes + 1


def test_a_peer_has_so_many_circuits_whichever_end_it_is() -> None:
    relay = Relay()
    for peer in (A, B, C):
        relay.reserve(peer, STRANGER, 0.0)
    first = joined(relay, A, B, STRANGER)
    joined(relay, C, A, STRANGER)
    assert relay.connect(A, C, STRANGER, 0.0) is Status.RESOURCE_LIMIT_EXCEEDED
    assert relay.connect(PEERS[9], A, FRIEND, 0.0) is Status.RESOURCE_LIMIT_EXCEEDED
    relay.end(first)
    joined(relay, A, C, STRANGER)


def test_strangers_take_their_share_of_reservations_and_lapsed_ones_make_room() -> None:
    relay = Relay()
    told = [relay.reserve(peer, STRANGER, 0.0) for peer in PEERS[: circuits.MAX_STRANGERS + 1]]
    assert told == [Status.OK] * circuits.MAX_STRANGERS + [Status.RESERVATION_REFUSED]
    friends = [relay.reserve(peer, FRIEND, 0.0) for peer in PEERS[circuits.MAX_STRANGERS :]]
    assert friends.count(Status.OK) == circuits.MAX_RESERVATIONS - circuits.MAX_STRANGERS
    assert relay.reserve(A, STRANGER, 1.0) is Status.OK  # it has a place
    assert len(relay.reserved(1.0)) == circuits.MAX_RESERVATIONS
    assert relay.reserve(PEERS[-1], STRANGER, RESERVATION_S) is Status.OK
    assert len(relay.reserved(RESERVATION_S)) == 2


def test_strangers_of_one_network_take_few_of_the_places_that_strangers_have() -> None:
    relay = Relay()
    most = circuits.MAX_STRANGERS_OF_NETWORK
    told = [relay.reserve(peer, STRANGER, 0.0, "8.8.8.0/24") for peer in PEERS[: most + 1]]
    assert told == [Status.OK] * most + [Status.RESERVATION_REFUSED]
    assert relay.reserve(A, STRANGER, 1.0, "8.8.8.0/24") is Status.OK  # it has a place
    assert relay.reserve(PEERS[most], FRIEND, 1.0, "8.8.8.0/24") is Status.OK
    assert relay.reserve(PEERS[most + 1], STRANGER, 1.0, "9.9.9.0/24") is Status.OK
    told = [
        relay.reserve(peer, STRANGER, 1.0) for peer in PEERS[10:20]
    ]  # of no public network: these are not told apart
    assert told == [Status.OK] * 10


def test_strangers_take_their_share_of_circuits() -> None:
    relay = Relay()
    many = Terms(100, Limit(1, 1), is_stranger=True)
    relay.reserve(A, FRIEND._replace(n_circuits=1000), 0.0)
    told = [relay.connect(B, A, many, 0.0) for _ in range(circuits.MAX_STRANGERS_CIRCUITS + 1)]
    assert told[-1] is Status.RESOURCE_LIMIT_EXCEEDED and Status.RESOURCE_LIMIT_EXCEEDED not in told[:-1]
    told = [relay.connect(C, A, FRIEND._replace(n_circuits=1000), 0.0) for _ in range(circuits.MAX_CIRCUITS)]
    assert told.count(Status.RESOURCE_LIMIT_EXCEEDED) == circuits.MAX_STRANGERS_CIRCUITS
    assert len(relay.circuits) == circuits.MAX_CIRCUITS


def test_strangers_of_one_network_take_few_of_the_circuits_that_strangers_have() -> None:
    relay = Relay()
    relay.reserve(A, FRIEND._replace(n_circuits=1000), 0.0)
    most = circuits.MAX_STRANGERS_CIRCUITS_OF_NETWORK
    told = [relay.connect(peer, A, STRANGER, 0.0, "8.8.8.0/24") for peer in PEERS[10 : 11 + most]]
    assert told[-1] is Status.RESOURCE_LIMIT_EXCEEDED and Status.RESOURCE_LIMIT_EXCEEDED not in told[:-1]
    assert isinstance(relay.connect(B, A, FRIEND, 0.0, "8.8.8.0/24"), circuits.Circuit)
    assert isinstance(relay.connect(C, A, STRANGER, 0.0, "9.9.9.0/24"), circuits.Circuit)
    assert isinstance(told[0], circuits.Circuit)
    relay.end(told[0])
    assert isinstance(relay.connect(PEERS[10], A, STRANGER, 0.0, "8.8.8.0/24"), circuits.Circuit)


ACTS = st.tuples(
    st.sampled_from(["reserve", "connect", "end", "left"]),
    st.integers(0, 5),
    st.integers(0, 5),
    st.sampled_from([FRIEND, STRANGER, None]),
    st.floats(0, 2 * RESERVATION_S),
)


@given(st.lists(ACTS, max_size=60))
def test_whatever_peers_do_a_circuit_leads_to_who_reserved_in_time_within_the_bounds(acts: list[tuple]) -> None:
    relay = Relay()
    now_s = 0.0
    until_s: dict[PeerId, float] = {}
    for act, one, other, terms, rest_s in acts:
        now_s += rest_s
        source, target = PEERS[one], PEERS[other]
        if act == "reserve":
            if relay.reserve(source, terms, now_s) is Status.OK:
                until_s[source] = now_s + RESERVATION_S
            else:
                until_s.pop(source, None)
        elif act == "connect":
            if isinstance(relay.connect(source, target, terms, now_s), Circuit):
                assert until_s[target] > now_s and terms is not None and source != target
        elif act == "end" and relay.circuits:
            relay.end(relay.circuits[one % len(relay.circuits)])
        elif act == "left":
            relay.keep(peer for peer in PEERS if peer != source)
            until_s.pop(source, None)
        for peer in PEERS[:6]:
            assert sum(peer in (each.source, each.target) for each in relay.circuits) <= FRIEND.n_circuits
        assert len(relay.circuits) <= circuits.MAX_CIRCUITS
