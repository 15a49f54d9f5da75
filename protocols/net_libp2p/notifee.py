"""What py-libp2p's swarm tells of connections, as the network is told of it."""

from functools import partial
from typing import TYPE_CHECKING, Any

from libp2p.abc import INotifee

from protocols.net_libp2p.addresses import to_peer
from protocols.net_libp2p.circuits import relay_of

if TYPE_CHECKING:
    from protocols.net_libp2p.network import LibP2pNetwork


class Notifee(INotifee):  # type: ignore[misc]  # libp2p's types are not followed
    """Carries the swarm's news of connections to the network."""

    def __init__(self, network: "LibP2pNetwork") -> None:
        self._network = network

    async def connected(self, network: Any, conn: Any) -> None:
        """A connection stands. Who breaks its rules is blamed at once: libp2p may tell of its end much later."""
        if (peer := to_peer(conn.muxed_conn.peer_id)) is not None:
            blame = conn.muxed_conn.on_abuse = partial(self._network.blame, peer, "bad_connection", [conn])
            if conn.muxed_conn.is_abused:
                blame()
        self._network.gater.sort_in(conn)
        if not self._network.turn_away(conn):
            self._network.note_change(conn.muxed_conn.peer_id)
            self._network.make_room()
            if peer is not None and len(network.get_connections(conn.muxed_conn.peer_id)) > 1:
                self._network.doubt(peer)  # it may have moved, and the others lead to where it was

    async def disconnected(self, network: Any, conn: Any) -> None:
        """A connection is over."""
        peer = to_peer(conn.muxed_conn.peer_id)
        self._network.note_change(conn.muxed_conn.peer_id)
        if peer is not None and relay_of(conn.muxed_conn):
            self._network.note_straight(peer)

    async def opened_stream(self, network: Any, stream: Any) -> None:
        """Of no interest here."""

    async def closed_stream(self, network: Any, stream: Any) -> None:
        """Of no interest here."""

    async def listen(self, network: Any, multiaddr: Any) -> None:
        """Of no interest here."""

    async def listen_close(self, network: Any, multiaddr: Any) -> None:
        """Of no interest here."""
