"""How this node joins the network: what its settings and its home say, as libp2p is told it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from daemon import wall
from daemon.config import Config
from daemon.errors import BadConfig
from daemon.paths import Home
from protocols.errors import Local
from protocols.net import Network
from protocols.pnet import FlockKey
from storage.keys import Identity

DHTS: Final = {"lan": "/ipfs/lan/kad/1.0.0", "public": "/ipfs/kad/1.0.0"}
PRIVATE_DHT: Final = "/covey/kad/1.0.0"
EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - a node is there to be reached; every connection is authenticated


def listening(config: Config) -> tuple[str, ...]:
    """Where to listen. `::` is for both families: who has an address of one alone reaches a node with both."""
    hosts = EVERYWHERE if config.network.host == "::" else (config.network.host,)
    return tuple(f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{config.network.port}" for host in hosts)


@asynccontextmanager
async def joined(identity: Identity, config: Config, *, home: Home, first_sequence: int) -> AsyncIterator[Network]:
    """The real network; the flock's own where the home has its key.

    Raises: BadConfig when the address cannot be listened on, BadFlockKey: a key that is damaged never opens the node to
        all.
    """
    from protocols.net_libp2p import NetConfig, open_network  # a second of imports: only a daemon pays it

    flock_key = FlockKey.load(home.flock_key) if home.flock_key.exists() else None
    chosen = NetConfig(
        listen=listening(config),
        mdns=config.network.has_mdns,
        kad_protocol=PRIVATE_DHT if flock_key else DHTS[config.network.dht],
        first_sequence=first_sequence,
        only_protected=config.network.is_private,
        flock_key=flock_key,
        unix_s=wall.unix_s,
    )
    async with AsyncExitStack() as stack:
        try:
            network = await stack.enter_async_context(open_network(identity, chosen))
        except Local as error:
            raise BadConfig(f"network.host, network.port: {error}") from None
        yield network
