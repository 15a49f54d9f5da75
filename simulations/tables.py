"""py-libp2p's routing table and lookup, without its network: what our adapter runs on, over peers that are made up."""

from typing import Any, Final, Protocol

import trio

from protocols.errors import DialFailed
from protocols.framing import FrameReader
from protocols.net import PeerInfo
from protocols.sweep import key_of
from storage.keys import PeerId

BUCKET: Final = 20  # k of the specification
MAX_RECORD_BYTES: Final = 1 << 12
ADDRESS: Final = "/ip4/10.0.0.1/tcp/4701"


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

    library: Any = dht
    parsed = [address for text in info.addresses if (address := addresses.parse(text)) is not None]
    return bool(
        await table.add_peer(library.LibP2pInfo(addresses.to_id(info.peer), parsed), skip_server_mode_check=True)
    )


class Space(Protocol):
    """The network as a lookup sees it: who knows whom, who answers, and the records that nodes were given."""

    records: dict[bytes, dict[bytes, set[bytes]]]  # node -> key -> providers

    def known(self, peer: bytes) -> list[bytes]:
        """Whom a node knows."""

    async def ask(self, peer: bytes) -> bool:
        """Send a query. Returns: whether it was answered."""

    def closest(self, peer: bytes, key: int) -> list[bytes]:
        """Whom a node names when it is asked for the closest to a key."""


class _Told:
    """The stream of records to one peer, which takes all that are whole."""

    def __init__(self, records: dict[bytes, set[bytes]], provider: bytes) -> None:
        from protocols.net_libp2p import dht

        self._library: Any = dht
        self._records, self._provider = records, provider
        self._reader = FrameReader(MAX_RECORD_BYTES)

    async def write(self, data: bytes) -> None:
        for body in self._reader.feed(data):
            message = self._library.Message()
            message.ParseFromString(bytes(body))
            self._records.setdefault(message.key, set()).add(self._provider)

    async def read(self, n: int) -> bytes:
        await trio.sleep_forever()
        return b""

    async def close(self) -> None:
        pass


class PeerLookups:
    """One node's DHT: it stands where `protocols.net_libp2p.dht` expects py-libp2p's.

    The lookup is py-libp2p's own, over a routing table of its own; queries go to a `Space`.
    """

    def __init__(self, space: Space, peer: bytes) -> None:
        from protocols.net_libp2p import addresses, dht

        library: Any = dht
        self._space, self._peer, self._to_id = space, peer, addresses.to_id
        self.local_peer_id = addresses.to_id(PeerId(peer))
        self.host = self
        self.table = new_table(PeerId(peer), 0)
        self.peer_routing = _routing(library.kad_dht.PeerRouting)(self, self.table)
        self.peer_routing.query = self._query
        self.provider_store = self
        self._info = library.LibP2pInfo

    async def fill(self) -> None:
        """Put those whom the node knows into its table."""
        for other in self._space.known(self._peer):
            await add(self.table, PeerInfo(PeerId(other), (ADDRESS,)))

    # --- the host, as far as a lookup asks

    def get_id(self) -> Any:
        """Our id."""
        return self.local_peer_id

    def get_live_peers(self) -> list[Any]:
        """Nobody beside those in the table."""
        return []

    get_connected_peers = get_addrs = get_live_peers

    async def new_stream(self, peer_id: Any, protocols: Any) -> "_Told":
        """A stream on which records can be sent. Raises: DialFailed where the peer is gone."""
        peer = peer_id.to_bytes()
        if not await self._space.ask(peer):
            raise DialFailed(f"{peer_id} is gone")
        return _Told(self._space.records[peer], self._peer)

    def get_peerstore(self) -> "PeerLookups":
        """It holds our own address record, which nobody here looks into."""
        return self

    def get_local_record(self) -> "PeerLookups":
        """See above."""
        return self

    def _env_addrs_set(self) -> set[Any]:
        return set()

    def marshal_envelope(self) -> bytes:
        """See above."""
        return b"record"

    # --- the store of records

    def add_provider(self, key: bytes, provider: Any) -> None:
        """We keep our own record too."""
        self._space.records[self._peer].setdefault(key, set()).add(provider.peer_id.to_bytes())

    def get_providers(self, key: bytes) -> list[Any]:
        """What we were told of ourselves."""
        return [self._provider(one) for one in sorted(self._space.records[self._peer].get(key, ()))]

    async def _get_providers_from_peer_with_closers(self, peer_id: Any, key: bytes) -> tuple[list[Any], list[Any]]:
        peer = peer_id.to_bytes()
        providers = self._space.records[peer].get(key, set()) if await self._space.ask(peer) else set[bytes]()
        return [self._provider(one) for one in sorted(providers)], []

    def _provider(self, peer: bytes) -> Any:
        return self._info(self._to_id(PeerId(peer)), [])

    async def _query(self, peer_id: Any, key: bytes) -> list[Any] | None:
        peer = peer_id.to_bytes()
        if not await self._space.ask(peer):
            self.table.remove_peer(peer_id)
            return None
        return [self._to_id(PeerId(one)) for one in self._space.closest(peer, key_of(key))]


def _routing(base: Any) -> Any:
    """py-libp2p's lookup, with its queries answered here."""

    class Routing(base):  # type: ignore[misc]
        query: Any

        async def _query_single_peer_for_closest(self, peer: Any, key: bytes, new_peers: list[Any]) -> None:
            new_peers += [one for one in await self.query(peer, key) or () if one not in new_peers]

    return Routing
