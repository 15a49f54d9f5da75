"""Who breaks the protocols again and again, and how long it is refused for that. No clock, no IO.

This is the one place that breaches are reported to, whatever the protocol. A breach costs points, which run out with
time: a slip is forgotten in seconds. Whoever has MAX_POINTS is cut off and refused for a while, twice as long each time
it comes to that. Identities cost nothing, so that several of one address, or of one network, close that to strangers
too; for minutes only, since honest neighbours may stand behind the same router, and never to those who are connected
already. A peer that the user keeps or trusts is cut off and never refused: it may come back at once.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from protocols.bucket import Bucket
from storage.keys import PeerId

MAX_POINTS: Final = 16.0
FORGIVE_S: Final = 120.0  # in which so many points run out
BREACHES: Final[dict[str, float]] = {
    "malformed": 1.0,  # what is no message of the protocol
    "too_big": 1.0,
    "timed_out": 1.0,  # a message that was begun and did not come
    "unwanted": 1.0,  # blocks that nobody asked for
    "tampered": 1.0,
    "forged": 2.0,
    "bad_record": 0.25,  # a stream to the DHT that had to be broken off, mostly for a record that is none
    "bad_connection": 4.0,  # broken rules of the connection itself, which ended it
    "bad_gossip": 2.0,  # a heartbeat during which gossip thought too badly of it to read it
}
FIRST_REFUSAL_S: Final = 60.0
LONGEST_REFUSAL_S: Final = 6 * 3600.0
REMEMBERED_S: Final = 24 * 3600.0  # behind its refusal an offender begins anew
MAX_SUSPECTS: Final = 4096
MAX_OFFENDERS: Final = 4096
PLACE_LIMITS: Final = (3, 12)  # offenders of one address, of one network, that close it
FIRST_CLOSED_S: Final = 60.0
LONGEST_CLOSED_S: Final = (900.0, 300.0)
PLACE_REMEMBERED_S: Final = 3600.0
MAX_PLACES: Final = 2048
MAX_OFFENDERS_OF_PLACE: Final = 32


class Offender(NamedTuple):
    """A peer, and what it did last, or is refused for.

    `refused_s`: for how long it is still refused; `n_refusals`: how often it was.
    """

    peer: PeerId
    code: str
    n_breaches: int
    n_refusals: int
    refused_s: float


@dataclass(slots=True)
class _Record:
    points: Bucket
    code: str = ""
    n_breaches: int = 0
    n_refusals: int = 0
    until_s: float = 0.0
    heard_s: float = 0.0


@dataclass(slots=True)
class _Place:
    """An address or a network. `until_s`: closed to strangers until then."""

    offenders: set[PeerId] = field(default_factory=set)
    heard_s: float = 0.0
    until_s: float = 0.0


class Conduct:
    """The breaches of all peers, in tables that are bounded: the one longest unheard of makes room."""

    def __init__(self) -> None:
        self._suspects: OrderedDict[PeerId, _Record] = OrderedDict()  # who was never refused
        self._offenders: OrderedDict[PeerId, _Record] = OrderedDict()
        self._places: OrderedDict[str, _Place] = OrderedDict()

    def report(
        self, peer: PeerId, code: str, now_s: float, places: Sequence[str] = (), *, is_kept: bool = False
    ) -> float | None:
        """A peer broke a protocol. What is no breach (see `BREACHES`) costs nothing.

        Args:
            peer: The peer.
            code: What it did; codes of `protocols.errors`, and those of `BREACHES`.
            now_s: The time.
            places: Its address and its network, in this order, where they are on the public internet.
            is_kept: The user keeps or trusts it.

        Returns: None where that is borne; else it is to be cut off, and is refused for so many seconds.
        """
        cost = BREACHES.get(code)
        if cost is None:
            return None
        record = self._record(peer, now_s)
        record.heard_s = now_s
        record.n_breaches += 1
        if record.until_s <= now_s:  # what is still on its way from one that was cut off is not why it was
            record.code = code
        is_too_much = record.points.wait_s(cost, now_s) > 0
        record.points.take(min(cost, MAX_POINTS), now_s)
        if not is_too_much or is_kept:
            return 0.0 if is_too_much else None
        if record.until_s > now_s:
            return record.until_s - now_s
        record.n_refusals += 1
        refused_s = min(LONGEST_REFUSAL_S, FIRST_REFUSAL_S * 2.0 ** min(record.n_refusals - 1, 32))
        record.until_s = now_s + refused_s
        record.points = _points(now_s)
        self._suspects.pop(peer, None)
        self._offenders[peer] = record
        self._offenders.move_to_end(peer)
        _bound(self._offenders, MAX_OFFENDERS)
        for place, most, longest_s in zip(places, PLACE_LIMITS, LONGEST_CLOSED_S, strict=False):
            if place:
                self._blame(place, peer, most, longest_s, now_s)
        return refused_s

    def _record(self, peer: PeerId, now_s: float) -> _Record:
        record = self._offenders.get(peer)
        if record is not None and now_s < record.until_s + REMEMBERED_S:
            return record
        self._offenders.pop(peer, None)
        record = self._suspects.setdefault(peer, _Record(_points(now_s)))
        self._suspects.move_to_end(peer)
        _bound(self._suspects, MAX_SUSPECTS)
        return record

    def _blame(self, name: str, peer: PeerId, most: int, longest_s: float, now_s: float) -> None:
        place = self._places.get(name)
        if place is None or now_s >= place.heard_s + PLACE_REMEMBERED_S:
            place = self._places[name] = _Place()
        self._places.move_to_end(name)
        _bound(self._places, MAX_PLACES)
        place.heard_s = now_s
        if len(place.offenders) < MAX_OFFENDERS_OF_PLACE:
            place.offenders.add(peer)
        n_over = len(place.offenders) - most
        if n_over >= 0:
            place.until_s = now_s + min(longest_s, FIRST_CLOSED_S * 2.0**n_over)

    def reason_against(self, peer: PeerId, now_s: float, places: Sequence[str] = ()) -> str:
        """Why not to speak with a peer now that the user does not keep; empty where there is no reason."""
        record = self._offenders.get(peer)
        if record is not None and record.until_s > now_s:
            return f"refused for {record.until_s - now_s:.0f} s more: it broke the protocols ({record.code})"
        for name in places:
            place = self._places.get(name)
            if place is not None and place.until_s > now_s:
                return (
                    f"{name} is closed for {place.until_s - now_s:.0f} s more: several peers there broke the protocols"
                )
        return ""

    def forgive(self, peer: PeerId) -> bool:
        """Forget what a peer did. Was it refused?"""
        self._suspects.pop(peer, None)
        return self._offenders.pop(peer, None) is not None

    def offenders(self, now_s: float) -> list[Offender]:
        """Who is refused, or was within a day, or broke a protocol within FORGIVE_S."""
        self._forget(now_s)
        both = (*self._offenders.items(), *self._suspects.items())
        return [
            Offender(peer, one.code, one.n_breaches, one.n_refusals, max(0.0, one.until_s - now_s))
            for peer, one in both
        ]

    def closed(self, now_s: float) -> dict[str, float]:
        """The addresses and networks that are closed to strangers, and for how many seconds more."""
        return {name: place.until_s - now_s for name, place in self._places.items() if place.until_s > now_s}

    def _forget(self, now_s: float) -> None:
        for peer in [peer for peer, one in self._suspects.items() if now_s >= one.heard_s + FORGIVE_S]:
            del self._suspects[peer]
        for peer in [peer for peer, one in self._offenders.items() if now_s >= one.until_s + REMEMBERED_S]:
            del self._offenders[peer]


def _points(now_s: float) -> Bucket:
    return Bucket(MAX_POINTS, FORGIVE_S, now_s)


def _bound(table: OrderedDict[PeerId, _Record] | OrderedDict[str, _Place], most: int) -> None:
    if len(table) > most:
        table.popitem(last=False)
