"""Peers in the network: who is not spoken with, where one is, how far away."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from daemon.api.operation import Nothing, Operation, Params, Result
from daemon.api.operations.peer import CONNECT_LIMIT_S, PeerName, resolve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from daemon.app import Node
    from protocols.net import PeerInfo
    from storage.keys import PeerId

FIND_LIMIT_S: Final = 60.0


class Ban(Params, frozen=True):
    """A peer to have nothing to do with."""

    peer: PeerName
    reason: Annotated[str, Meta(max_length=200, description="For yourself: why.")] = ""


class Named(Params, frozen=True):
    """A peer."""

    peer: PeerName


class Banned(Result, frozen=True):
    """A peer that this node does not speak with. `was_banned`: it was so before."""

    peer: str
    reason: str
    was_banned: bool


class OnList(Result, frozen=True):
    """A peer that the user banned, and what it is called here."""

    peer: str
    name: str | None
    reason: str


class Unbanned(Result, frozen=True):
    """The peer may connect again; trust does not come back by itself. `was_refused`: for what it did, by the node."""

    peer: str
    was_banned: bool
    was_refused: bool


class Found(Result, frozen=True):
    """Where a peer is said to be: by itself when it was connected, by the DHT, and by the routers of the settings."""

    peer: str
    is_connected: bool
    addresses: list[str]


class Ping(Params, frozen=True):
    """A peer, and how often to ask it."""

    peer: PeerName
    count: Annotated[int, Meta(ge=1, le=100, description="How many round trips.")] = 4


class Pinged(Result, frozen=True):
    """Round trips, in milliseconds."""

    peer: str
    least_ms: float
    median_ms: float
    most_ms: float
    each_ms: list[float]


async def ban(node: "Node", params: Ban) -> Banned:
    """Hang up on a peer, and speak with it no more."""
    import trio

    from daemon import wall
    from daemon.api.operations.peer import refuse_self

    peer = await resolve(node, params.peer)
    refuse_self(node, peer)
    book = node.catalog.peers
    before = await trio.to_thread.run_sync(book.banned)
    reason = params.reason or before.get(peer, "")
    await trio.to_thread.run_sync(lambda: book.ban(peer, reason, wall.unix_s()))
    await node.named.tell()
    node.events.note("peer_banned", {"peer": str(peer), "text": reason})
    return Banned(peer=str(peer), reason=reason, was_banned=peer in before)


async def unban(node: "Node", params: Named) -> Unbanned:
    """Let a peer connect again, whoever refused it: the user, or the node for what it did."""
    import trio

    peer = await resolve(node, params.peer)
    book = node.catalog.peers
    was_banned = await trio.to_thread.run_sync(book.unban, peer)
    await node.named.tell()
    was_refused = node.network.conduct.forgive(peer)
    if was_banned or was_refused:
        node.events.note("peer_unbanned", {"peer": str(peer)})
    return Unbanned(peer=str(peer), was_banned=was_banned, was_refused=was_refused)


async def bans(node: "Node", _params: Nothing) -> list[OnList]:
    """The banned peers."""
    import trio

    banned = await trio.to_thread.run_sync(node.catalog.peers.banned)
    names = await trio.to_thread.run_sync(node.catalog.peers.names)
    return [OnList(peer=str(peer), name=names.get(peer), reason=reason) for peer, reason in banned.items()]


async def find(node: "Node", params: Named) -> Found:
    """Ask the DHT, and the routers, where a peer is."""
    import trio

    from daemon.errors import NotFoundHere
    from protocols.delegated_routing import find_peer

    peer = await resolve(node, params.peer)
    said: list[str] = []

    async def ask(finder: "Callable[[PeerId], Awaitable[PeerInfo]]") -> None:
        with trio.move_on_after(FIND_LIMIT_S):
            said.extend((await finder(peer)).addresses)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, node.network.find_peer)
        if node.routers is not None:
            nursery.start_soon(ask, partial(find_peer, node.routers))
    noted = await trio.to_thread.run_sync(node.catalog.peers.addresses, peer)
    addresses = list(dict.fromkeys([*said, *noted]))
    is_connected = peer in node.network.peers()
    if not (addresses or is_connected):
        wish = "It may be off, or known to nobody that is connected here (covey peer ls)"
        raise NotFoundHere(f"nobody who can be asked knows where {peer} is. {wish}")
    return Found(peer=str(peer), is_connected=is_connected, addresses=addresses)


async def ping(node: "Node", params: Ping) -> Pinged:
    """Measure round trips to a peer, connecting if need be."""
    import statistics

    import trio

    from protocols.net import PeerInfo
    from protocols.ping import ping as measure

    peer = await resolve(node, params.peer)
    if peer not in node.network.peers():
        addresses = await trio.to_thread.run_sync(node.catalog.peers.addresses, peer)
        with trio.move_on_after(CONNECT_LIMIT_S):
            await node.network.connect(PeerInfo(peer, addresses))
    each_ms = [round(1000 * trip_s, 3) for trip_s in await measure(node.network, peer, params.count)]
    return Pinged(
        peer=str(peer),
        least_ms=min(each_ms),
        median_ms=statistics.median(each_ms),
        most_ms=max(each_ms),
        each_ms=each_ms,
    )


OPERATIONS = (
    Operation(
        noun="peer",
        verb="ban",
        summary="Hang up on a peer, and speak with it no more.",
        params=Ban,
        result=Banned,
        handler=ban,
        arguments=("peer",),
    ),
    Operation(
        noun="peer",
        verb="unban",
        summary="Let a peer that is banned or refused connect again.",
        params=Named,
        result=Unbanned,
        handler=unban,
        arguments=("peer",),
    ),
    Operation(
        noun="peer",
        verb="bans",
        summary="List the banned peers, with your reasons.",
        params=Nothing,
        result=list[OnList],
        handler=bans,
    ),
    Operation(
        noun="peer",
        verb="find",
        summary="Ask the DHT, and the routers, where a peer is.",
        params=Named,
        result=Found,
        handler=find,
        arguments=("peer",),
        begins="asking the DHT for {peer}",
    ),
    Operation(
        noun="peer",
        verb="ping",
        summary="Measure how far away a peer is.",
        params=Ping,
        result=Pinged,
        handler=ping,
        arguments=("peer",),
    ),
    Operation(
        noun="net",
        verb="ping",
        summary="Measure how far away a peer is: covey peer ping.",
        params=Ping,
        result=Pinged,
        handler=ping,
        arguments=("peer",),
    ),
)
