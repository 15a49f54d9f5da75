"""Whom a relay serves, with how much, and for how long. No IO, no clock.

A peer that cannot be dialled reserves; who wants to reach it asks for a circuit to it. What peers get depends on what
they are to this node, which the caller says as `Terms`; strangers never have more than their share of the places.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from protocols.relay.wire import Limit, Status
from storage.keys import PeerId

RESERVATION_S: Final = 3600.0
MAX_RESERVATIONS: Final = 128
MAX_STRANGERS: Final = 32  # of these
MAX_STRANGERS_OF_NETWORK: Final = 4  # of these, for identities cost nothing, and addresses of one network little
MAX_CIRCUITS: Final = 64
MAX_STRANGERS_CIRCUITS: Final = 16  # of these
MAX_STRANGERS_CIRCUITS_OF_NETWORK: Final = 4  # of these


class Terms(NamedTuple):
    """What a peer gets: circuits at a time, each way counted, and what each may carry."""

    n_circuits: int
    limit: Limit
    is_stranger: bool = False


FRIEND: Final = Terms(16, Limit(3600, 1 << 30))
STRANGER: Final = Terms(2, Limit(120, 128 << 10), is_stranger=True)  # what relays of others give


@dataclass(eq=False)
class Circuit:
    """A connection of two peers over this node."""

    source: PeerId
    target: PeerId
    terms: Terms
    place: str = ""  # where the source is
    n_bytes: int = 0

    def spend(self, n_bytes: int) -> bool:
        """Count what is to be carried. Returns: whether it may be."""
        self.n_bytes += n_bytes
        return self.n_bytes <= self.terms.limit.n_bytes


class _Reservation(NamedTuple):
    until_s: float
    terms: Terms
    place: str


class Relay:
    """The reservations and circuits of this node."""

    def __init__(self) -> None:
        self._reserved: dict[PeerId, _Reservation] = {}
        self._circuits: set[Circuit] = set()
        self.n_carried = 0  # bytes of circuits that are over

    def reserved(self, now_s: float) -> dict[PeerId, float]:
        """Who has a reservation, and for how many seconds more."""
        return {peer: held.until_s - now_s for peer, held in self._reserved.items() if held.until_s > now_s}

    @property
    def circuits(self) -> list[Circuit]:
        """Those that stand."""
        return list(self._circuits)

    def reserve(self, peer: PeerId, terms: Terms | None, now_s: float, place: str = "") -> Status:
        """`peer` wants to be reached over this node; again, to stay so. `terms` is None where it gets nothing.

        `place`: the network of the public internet that it is in; empty where it is in none.
        """
        if terms is None:
            self._reserved.pop(peer, None)
            return Status.PERMISSION_DENIED
        for gone in [each for each, held in self._reserved.items() if held.until_s <= now_s]:
            del self._reserved[gone]
        is_full = len(self._reserved) >= MAX_RESERVATIONS or (terms.is_stranger and not self._has_place(place))
        if is_full and peer not in self._reserved:
            return Status.RESERVATION_REFUSED
        self._reserved[peer] = _Reservation(now_s + RESERVATION_S, terms, place)
        return Status.OK

    def connect(
        self, source: PeerId, target: PeerId, terms: Terms | None, now_s: float, place: str = ""
    ) -> Circuit | Status:
        """`source`, at `place`, wants to reach `target`. A circuit is to be ended, whatever becomes of it."""
        if terms is None or source == target:
            return Status.PERMISSION_DENIED  # whoever is here: that is not for all to know
        held = self._reserved.get(target)
        if held is None or held.until_s <= now_s:
            return Status.NO_RESERVATION
        lesser = min(terms, held.terms, key=lambda each: each.limit.n_bytes)
        if (
            len(self._circuits) >= MAX_CIRCUITS
            or (lesser.is_stranger and not self._has_circuit(place))
            or self._n_of(source) >= terms.n_circuits
            or self._n_of(target) >= held.terms.n_circuits
        ):
            return Status.RESOURCE_LIMIT_EXCEEDED
        circuit = Circuit(source, target, lesser, place)
        self._circuits.add(circuit)
        return circuit

    def end(self, circuit: Circuit) -> None:
        """A circuit is over."""
        if circuit in self._circuits:
            self._circuits.discard(circuit)
            self.n_carried += circuit.n_bytes

    def keep(self, connected: Iterable[PeerId]) -> None:
        """These are connected now: the reservations of others are over, and their places free."""
        there = set(connected)
        self._reserved = {peer: held for peer, held in self._reserved.items() if peer in there}

    def _has_place(self, place: str) -> bool:
        """Is there room for one more stranger from there?"""
        places = [held.place for held in self._reserved.values() if held.terms.is_stranger]
        return _has_room(places, place, MAX_STRANGERS, MAX_STRANGERS_OF_NETWORK)

    def _has_circuit(self, place: str) -> bool:
        """Is there a circuit left for a stranger from there?"""
        places = [circuit.place for circuit in self._circuits if circuit.terms.is_stranger]
        return _has_room(places, place, MAX_STRANGERS_CIRCUITS, MAX_STRANGERS_CIRCUITS_OF_NETWORK)

    def _n_of(self, peer: PeerId) -> int:
        return sum(peer in (circuit.source, circuit.target) for circuit in self._circuits)


def _has_room(places: Sequence[str], place: str, most: int, most_of_network: int) -> bool:
    return len(places) < most and not (place and places.count(place) >= most_of_network)
