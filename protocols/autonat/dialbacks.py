"""Whom a node dials because somebody asked for it: the asker, where it is, and that not often. No IO, no clock.

Dialled is no address but the one that the asker's connection comes from, so nobody has a third one knocked at.
"""

from collections.abc import Sequence
from typing import Final

from protocols.addresses import holder_of
from protocols.bucket import Bucket
from protocols.endpoints import Endpoint
from storage.keys import PeerId

MAX_PORTS: Final = 3  # of one question are tried
PEER_ASKS, ALL_ASKS = 3, 30
REFILL_S: Final = 60.0  # for as many again
MAX_BUCKETS: Final = 1024


def targets(seen_at: Endpoint, told: Sequence[Endpoint]) -> list[Endpoint]:
    """What to dial: ports that the asker told, where it was seen; those told for that very address first."""
    if not seen_at.is_public:
        return []
    near = [each.port for each in told if each.host == seen_at.host]
    ports = dict.fromkeys([*near, *(each.port for each in told)])
    return [Endpoint(seen_at.host, port) for port in list(ports)[:MAX_PORTS]]


class Dialbacks:
    """How often to dial for whom: a peer, an address (of IPv6, a /64), and all together have their rates."""

    def __init__(self, now_s: float) -> None:
        self._all = Bucket(ALL_ASKS, REFILL_S, now_s)
        self._each: dict[PeerId | str, Bucket] = {}

    def may(self, peer: PeerId, host: str, now_s: float) -> bool:
        """Is there room for one more? It is taken then."""
        if len(self._each) >= MAX_BUCKETS:
            self._each = {key: bucket for key, bucket in self._each.items() if not bucket.is_full(now_s)}
        if len(self._each) >= MAX_BUCKETS:
            return False
        keys = (peer, holder_of(host))
        own = [self._each.setdefault(key, Bucket(PEER_ASKS, REFILL_S, now_s)) for key in keys]
        if any(bucket.wait_s(1, now_s) for bucket in (*own, self._all)):
            return False
        for bucket in (*own, self._all):
            bucket.take(1, now_s)
        return True
