"""py-libp2p's routing table and lookup, without its network: what our adapter runs on, over peers that are made up."""

from typing import Any, Final

from protocols.net import PeerInfo
from storage.keys import PeerId

BUCKET: Final = 20  # k of the specification


class _Echo:
    """The stream to a peer that is up: a ping comes back."""

    def __init__(self) -> None:
        self._said = b""

    async def write(self, data: bytes) -> None:
        self._said += data

    async def read(self, n: int) -> bytes:
        said, self._said = self._said[:n], self._said[n:]
        return said

    async def close(self) -> None:
        pass

    async def reset(self) -> None:
        pass


class Host:
    """What a routing table asks of a host: whether old peers are there still. They are."""

    async def new_stream(self, peer_id: Any, protocols: Any) -> _Echo:
        """A stream on which pings come back."""
        return _Echo()


def new_table(me: PeerId, per_subnet: int | None, in_table: int = 0) -> Any:
    """An empty table. Limits for one subnet: of a bucket (None: py-libp2p's default; 0: none), and of all of it."""
    from protocols.net_libp2p import addresses, dht  # libp2p takes a second to import

    library: Any = dht
    table = library.kad_dht.RoutingTable
    return table(addresses.to_id(me), Host(), max_peers_per_subnet=per_subnet, max_peers_per_subnet_table=in_table)


async def add(table: Any, info: PeerInfo) -> bool:
    """A peer comes by. Returns: whether it is in the table now."""
    from protocols.net_libp2p import addresses, dht

    parsed = [address for text in info.addresses if (address := addresses.parse(text)) is not None]
    return bool(await table.add_peer(dht.LibP2pInfo(addresses.to_id(info.peer), parsed), skip_server_mode_check=True))
