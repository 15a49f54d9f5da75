"""The network as this node sees it: connections, speeds, and where blocks came from."""

from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta

from daemon.api.operation import Nothing, Operation, Params, Result
from daemon.api.operations.peer import PeerName, Way, resolve, way_of

if TYPE_CHECKING:
    from daemon.app import Node
    from protocols.bitswap.trace import Origin
    from protocols.net import Link
    from protocols.sources import Giver
    from storage.cid import Cid
    from storage.keys import PeerId

Reachable = Literal["yes", "no", "unknown"]
MAX_TRACED_BLOCKS: Final = 1 << 16


class Connection(Result, frozen=True):
    """A connection. Bytes are those on the wire. `way`: one that is punched is direct, through routers at both ends."""

    peer: str
    name: str | None
    way: Way
    address: str
    is_dialled: bool
    n_streams: int
    sent_bytes: int
    received_bytes: int


class Refused(Result, frozen=True):
    """A peer that broke the protocols too often, the code of what it did last, and for how long it is refused.

    Or an address or a network of several such peers, which is closed to strangers: `breach` is null then.
    """

    peer: str
    breach: str | None
    n_breaches: int
    refused_s: float


class Relayed(Result, frozen=True):
    """A peer that others reach over this node: it has reserved, and now so many circuits lead from or to it."""

    peer: str
    name: str | None
    hold_s: float
    n_circuits: int


class Stats(Result, frozen=True):
    """What the node does in the network now. `n_duplicates`: blocks that came twice since the start.

    `n_suspects`: peers that broke a protocol of late, and are not refused.
    `reachable`: what those say who tried to dial this node. `relays`: where it has reserved, to be reached by them;
    `no_relay`: why nowhere, and what to do, where it lacks one.
    `n_circuits`, `carried_bytes`, `reserved`: what it carries for others as a relay.
    """

    addresses: list[str]
    observed: list[str]
    reachable: Reachable
    relays: list[str]
    no_relay: str | None
    n_circuits: int
    carried_bytes: int
    n_peers: int
    n_connections: int
    sent_bytes: int
    received_bytes: int
    n_wanting_peers: int
    n_duplicates: int
    upload_limit_bytes_per_s: float | None
    connections: list[Connection]
    n_suspects: int
    refused: list[Refused]
    reserved: list[Relayed]


class Bench(Params, frozen=True):
    """A peer, and how much to send there and back."""

    peer: PeerName
    mb: Annotated[int, Meta(ge=1, le=1000, description="MB each way.")] = 32


class Speeds(Result, frozen=True):
    """What the connection to a peer carries."""

    peer: str
    up_bytes_per_s: float
    down_bytes_per_s: float


class Traced(Params, frozen=True):
    """What to trace."""

    cid: Annotated[str, Meta(max_length=4096, description="CID, CID/path or /ipns/NAME/path of what is here.")]


class From(Result, frozen=True):
    """What one peer gave, or a server over HTTP, whose URL is in `peer` then.

    `bytes_per_s` is over the time from its first block to its last.
    """

    peer: str
    name: str | None
    n_blocks: int
    n_bytes: int
    median_wait_ms: float
    bytes_per_s: float


class Trace(Result, frozen=True):
    """Where a DAG's blocks came from since the node started; others were here before, or were made here.

    `is_whole` is false where blocks are missing, or where there are more than 65,536.
    """

    cid: str
    n_blocks: int
    n_bytes: int
    n_here_before: int
    is_whole: bool
    peers: list[From]


async def stats(node: "Node", _params: Nothing) -> Stats:
    """Connections, and what went over them."""
    import trio

    links, now_s = node.network.connections(), trio.current_time()
    holds_s = node.relay.reserved(now_s) if node.relay else {}
    circuits = node.relay.circuits if node.relay else []
    names = await trio.to_thread.run_sync(_names, node, [*(link.peer for link in links), *holds_s])
    reach = node.outlook.reach(now_s)
    is_client = node.config.network.relay == "client"
    return Stats(
        addresses=node.network.addresses(),
        observed=node.network.observed_addresses(),
        reachable=reach.value,
        relays=sorted(map(str, node.network.relays())),
        no_relay=node.reservations.why_none(now_s, reach) if is_client else None,
        n_circuits=len(circuits),
        carried_bytes=(node.relay.n_carried if node.relay else 0) + sum(circuit.n_bytes for circuit in circuits),
        n_peers=len(node.network.peers()),
        n_connections=len(links),
        sent_bytes=sum(link.sent_bytes for link in links),
        received_bytes=sum(link.received_bytes for link in links),
        n_wanting_peers=node.exchange.serving.n_wanting,
        n_duplicates=node.exchange.wants.n_duplicates,
        upload_limit_bytes_per_s=1e6 * node.config.network.upload_mb_per_s or None,
        connections=[
            _connection(link, names.get(link.peer))
            for link in sorted(links, key=lambda link: (link.peer, link.address))
        ],
        n_suspects=sum(not one.refused_s for one in node.network.conduct.offenders(now_s)),
        refused=_refused(node, now_s),
        reserved=[
            Relayed(
                peer=str(peer),
                name=names.get(peer),
                hold_s=round(hold_s),
                n_circuits=sum(peer in (circuit.source, circuit.target) for circuit in circuits),
            )
            for peer, hold_s in holds_s.items()
        ],
    )


def _connection(link: "Link", name: str | None) -> Connection:
    return Connection(
        peer=str(link.peer),
        name=name,
        way=way_of(link),
        address=link.address,
        is_dialled=link.is_dialled,
        n_streams=link.n_streams,
        sent_bytes=link.sent_bytes,
        received_bytes=link.received_bytes,
    )


def _refused(node: "Node", now_s: float) -> list[Refused]:
    """Peers that are refused, and the addresses and networks that are closed."""
    peers = [
        Refused(peer=str(one.peer), breach=one.code, n_breaches=one.n_breaches, refused_s=round(one.refused_s, 1))
        for one in node.network.conduct.offenders(now_s)
        if one.refused_s
    ]
    closed = node.network.conduct.closed(now_s)
    return peers + [Refused(peer=name, breach=None, n_breaches=0, refused_s=round(s, 1)) for name, s in closed.items()]


async def bench(node: "Node", params: Bench) -> Speeds:
    """Send bytes to a peer and have as many sent back."""
    from protocols.perf import measure

    peer = await resolve(node, params.peer)
    speed = await measure(node.network, peer, params.mb * 1_000_000)
    return Speeds(peer=str(peer), up_bytes_per_s=round(speed.up), down_bytes_per_s=round(speed.down))


async def trace(node: "Node", params: Traced) -> Trace:
    """Say who gave which part of a DAG."""
    import trio

    from daemon.content import parse
    from daemon.naming import followed
    from storage.errors import NotFound
    from storage.unixfs import resolve as below

    root, path = parse(await followed(node, params.cid))
    for name in path:
        root = await trio.to_thread.run_sync(below, node.store, root, name)
    sizes, is_whole = await trio.to_thread.run_sync(_sizes, node, root)
    if not sizes:
        raise NotFound(f"{root} is not here. To fetch it: covey get {root}")
    origins = [origin for cid in sizes if (origin := node.exchange.trace.get(cid)) is not None]
    by_peer: dict[Giver, list[Origin]] = {}
    for origin in origins:
        by_peer.setdefault(origin.peer, []).append(origin)
    names = await trio.to_thread.run_sync(_names, node, [one for one in by_peer if isinstance(one, bytes)])
    peers = [
        _from(peer, names.get(peer) if isinstance(peer, bytes) else None, given) for peer, given in by_peer.items()
    ]
    return Trace(
        cid=str(root),
        n_blocks=len(sizes),
        n_bytes=sum(sizes.values()),
        n_here_before=len(sizes) - len(origins),
        is_whole=is_whole,
        peers=sorted(peers, key=lambda one: -one.n_bytes),
    )


def _from(peer: "Giver", name: str | None, given: "list[Origin]") -> From:
    import statistics

    n_bytes = sum(origin.n_bytes for origin in given)
    begin_s = min(origin.at_s - origin.wait_s for origin in given)
    spent_s = max(origin.at_s for origin in given) - begin_s
    return From(
        peer=str(peer),
        name=name,
        n_blocks=len(given),
        n_bytes=n_bytes,
        median_wait_ms=round(1000 * statistics.median(origin.wait_s for origin in given), 1),
        bytes_per_s=round(n_bytes / max(1e-6, spent_s)),
    )


def _sizes(node: "Node", root: "Cid") -> "tuple[dict[Cid, int], bool]":
    """The blocks of a DAG that are here, with their sizes; and whether those are all."""
    from storage.dag import reach

    sizes: dict[Cid, int] = {}
    is_whole = True
    for reached in reach(node.store, root):
        size_bytes = node.store.size(reached.cid)
        if size_bytes is None:
            is_whole = False
            continue
        if len(sizes) == MAX_TRACED_BLOCKS:
            return sizes, False
        sizes[reached.cid] = size_bytes
    return sizes, is_whole


def _names(node: "Node", peers: "list[PeerId]") -> "dict[PeerId, str]":
    rows = [node.catalog.peers.get(peer) for peer in dict.fromkeys(peers)]
    return {row.peer: row.name for row in rows if row is not None and row.name is not None}


OPERATIONS = (
    Operation(
        noun="net",
        verb="stats",
        summary="Show connections, and what went over them.",
        params=Nothing,
        result=Stats,
        handler=stats,
    ),
    Operation(
        noun="net",
        verb="bench",
        summary="Measure how fast bytes go to a peer and back.",
        params=Bench,
        result=Speeds,
        handler=bench,
        arguments=("peer",),
        begins="sending {mb} MB to {peer} and back",
    ),
    Operation(
        noun="net",
        verb="trace",
        summary="Show which peer gave which part of a DAG, how fast.",
        params=Traced,
        result=Trace,
        handler=trace,
        arguments=("cid",),
    ),
)
