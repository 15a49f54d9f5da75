"""How many peers that the user does not keep may be connected, in all and from one network: nobody takes all places."""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Generic, TypeVar

from protocols.bucket import Bucket

MAX_STRANGERS: Final = 200  # connections of peers that came by themselves and are not protected
MAX_OF_STRANGERS: Final = 260  # connections of all who are not protected, those too that this node dialled
IN_USE_S: Final = 10.0  # a connection that carried something within so long is in use
MAX_STRANGERS_PER_SUBNET: Final = 32  # of these, from one /24 or /48 of the public internet
MAX_OF_PEER: Final = 8  # connections of one peer, stranger or not
MAX_UNPROVEN: Final = 128  # connections in the handshake at a time
MAX_BEGUN: Final = 64  # handshakes that one place may begin at once; as many again in:
REFILL_S: Final = 16.0
MAX_PLACES: Final = 1024  # whose rates are remembered
MAX_OF_SUBNET_IN_TABLE: Final = 3  # of the DHT's routing table, all buckets together; as in go-libp2p


def reason_against(subnets: Sequence[str], subnet: str, most: int = MAX_STRANGERS) -> str:
    """Why a stranger's new connection cannot stay; empty where it can.

    Args:
        subnets: Those of all strangers' connections, the new one included; empty texts for what is not public.
        subnet: That of the new one.
        most: How many strangers there is room for.
    """
    if len(subnets) > most:
        return "too many strangers"
    if subnet and subnets.count(subnet) > MAX_STRANGERS_PER_SUBNET:
        return f"too many strangers from {subnet}"
    return ""


K = TypeVar("K")


def let_go(used_s: Mapping[K, float], listening: Collection[K], n_over: int, now_s: float) -> list[K]:
    """Which of these connections make room: those longest unused, and that no topic needs where there are such.

    Args:
        used_s: When each of them carried something last.
        listening: Those of peers that listen to a topic of ours.
        n_over: How many have to go.
        now_s: The time.
    """
    ranked = sorted(used_s, key=lambda each: (now_s < used_s[each] + IN_USE_S, each in listening, used_s[each]))
    return ranked[: max(0, n_over)]


class Doorstep(Generic[K]):
    """Connections `K` that have not proved yet whose they are, by the place that they come from. No clock, no IO.

    A handshake costs its asker nothing and this node milliseconds. So each place has its rate, and when all is full,
    the place that has most of it gives way.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, dict[K, None]] = {}
        self._rates: OrderedDict[str, Bucket] = OrderedDict()

    def comes(self, who: K, place: str, now_s: float) -> K | None:
        """One more begins. Returns: who has to go, if somebody has to: this one, or one that has waited for long.

        `place`: a network, or an address; empty for this machine, which has no rate.
        """
        if place and not self._rate_of(place, now_s).may_take(1, now_s):
            return who
        self._waiting.setdefault(place, {})[who] = None
        if sum(map(len, self._waiting.values())) <= MAX_UNPROVEN:
            return None
        fullest = max(self._waiting, key=lambda each: len(self._waiting[each]))
        eldest = next(iter(self._waiting[fullest]))
        self.goes(eldest, fullest)
        return eldest

    def goes(self, who: K, place: str) -> None:
        """It has proved whose it is, or is over."""
        waiting = self._waiting.get(place, {})
        waiting.pop(who, None)
        if not waiting:
            self._waiting.pop(place, None)

    def _rate_of(self, place: str, now_s: float) -> Bucket:
        rate = self._rates.setdefault(place, Bucket(MAX_BEGUN, REFILL_S, now_s))
        self._rates.move_to_end(place)
        if len(self._rates) > MAX_PLACES:
            self._rates.popitem(last=False)
        return rate
