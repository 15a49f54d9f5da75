"""Where others see this node, as they tell by identify; stands where py-libp2p would keep that.

py-libp2p's own adds what enough peers say to the node's addresses, which is too much trust: here it is what a peer is
asked to dial, and nothing that is told of otherwise.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from libp2p.connection_types import ConnectionType
from libp2p.rcmgr import Direction

from protocols.endpoints import Endpoint
from protocols.net_libp2p.sockets import Sockets, raw_of

MAX_OBSERVERS: Final = 32
MAX_OBSERVED: Final = 3  # are told


class Observed:
    """The latest word of each peer."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._seen: OrderedDict[Any, Endpoint] = OrderedDict()

    def endpoints(self) -> list[Endpoint]:
        """Where this node is seen, what most say first."""
        return [endpoint for endpoint, _ in Counter(self._seen.values()).most_common(MAX_OBSERVED)]

    def record_observation(self, conn: Any, observed: Any, listening: Iterable[Any]) -> None:
        """A peer says how it sees us; of a connection from a port of its own, the address alone says something."""
        muxed = conn.muxed_conn
        endpoint = Endpoint.parse(str(observed))
        if endpoint is None or not endpoint.is_public or muxed.get_connection_type() is ConnectionType.RELAYED:
            return
        is_ours = conn.direction is Direction.INBOUND or getattr(raw_of(muxed), "is_shared", False)
        ports = [endpoint.port] if is_ours else self._sockets.ports()
        if not ports:
            return
        self._seen[muxed.peer_id] = Endpoint(endpoint.host, ports[0])
        self._seen.move_to_end(muxed.peer_id)
        if len(self._seen) > MAX_OBSERVERS:
            self._seen.popitem(last=False)

    def addrs(self) -> list[Any]:
        """What libp2p is to add to the node's own addresses: nothing."""
        return []

    def remove_conn(self, conn: Any) -> None:
        """See `ObservedAddrManager`. What a peer said is worth something after it is gone."""
