"""The peers that this node knows, and what each is trusted with."""

from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta

from daemon.api.operation import Nothing, Operation, Params, Result

if TYPE_CHECKING:
    from collections.abc import Iterable

    from daemon.app import Node
    from protocols.net import Link
    from storage.catalog.peers import PeerRow
    from storage.keys import PeerId

CONNECT_LIMIT_S: Final = 15.0
ROLE: Final = "role:"
Kind = Literal["adapters", "rounds", "ask", "workspaces", "models", "datasets", "checkpoints", "content"]
Way = Literal["direct", "punched", "relayed"]
PeerName = Annotated[str, Meta(max_length=512, description="A peer id, or the name that you gave it.")]


class Add(Params, frozen=True):
    """A peer to know and to connect to."""

    address: Annotated[str, Meta(max_length=512, description="/ip4/.../tcp/.../p2p/PEER, or a bare peer id.")]
    name: Annotated[str, Meta(max_length=64, description="What you call it.")] | None = None


class Added(Result, frozen=True):
    """The peer is known. `problem` says why it could not be reached now; Covey goes on trying its `addresses`."""

    peer: str
    is_connected: bool
    addresses: list[str]
    problem: str | None = None


class Named(Params, frozen=True):
    """A peer."""

    peer: PeerName


class TrustChanged(Result, frozen=True):
    """What a peer is trusted with now. `kinds` are those that were asked for; of none, all."""

    peer: str
    kinds: list[str]
    trusted: list[str]
    was_trusted: bool


class Forgotten(Result, frozen=True):
    """The peer is known no more, and trusted with nothing."""

    peer: str
    was_known: bool


class Trust(Params, frozen=True):
    """A peer, and kinds of things."""

    peer: PeerName
    kinds: Annotated[tuple[Kind, ...], Meta(max_length=16, description="What to trust it with")] = ("adapters",)


class Untrust(Params, frozen=True):
    """A peer, and kinds of things; none means all."""

    peer: PeerName
    kinds: Annotated[tuple[Kind, ...], Meta(max_length=16, description="What to trust it with no longer")] = ()


class Peer(Result, frozen=True):
    """A peer: `trusted` lists the kinds whose artifacts may be used here.

    `way`: how it is connected; over a relay only where there is no other. Of `addresses` those where it is come first.
    `breach` is the code of what it last did against the protocols, and `refused_s` for how long it is refused for that.
    """

    peer: str
    name: str | None
    is_connected: bool
    way: Way | None
    trusted: list[str]
    heard_unix_s: float | None
    addresses: list[str]
    breach: str | None = None
    refused_s: float | None = None
    is_banned: bool = False


async def add(node: "Node", params: Add) -> Added:
    """Note a peer and try to reach it."""
    import trio

    from daemon import wall
    from protocols.endpoints import is_dialable
    from protocols.errors import Malformed, Remote
    from protocols.net import PeerInfo

    given = PeerInfo.parse(params.address)
    if not all(map(is_dialable, given.addresses)):
        forms = "/ip4/IP/tcp/PORT/p2p/PEER, /ip6/... or /dns/NAME/..."
        raise Malformed(f"{params.address} is none that can be dialled: Covey speaks TCP alone, as {forms}")
    refuse_self(node, given.peer)
    book = node.catalog.peers
    await _refuse_banned(node, given.peer)
    await trio.to_thread.run_sync(lambda: book.add(given.peer, given.addresses, wall.unix_s(), name=params.name))
    await node.named.tell()  # first: a private node dials nobody else
    info = PeerInfo(given.peer, await trio.to_thread.run_sync(book.addresses, given.peer))
    problem = None
    try:
        with trio.fail_after(CONNECT_LIMIT_S):
            await node.network.connect(info)
            await _heard(node, given.peer)
    except Remote as error:
        problem = str(error) or error.code
    except trio.TooSlowError:
        problem = f"no answer within {CONNECT_LIMIT_S:.0f} s"
    return Added(peer=str(info.peer), is_connected=problem is None, addresses=list(info.addresses), problem=problem)


async def _heard(node: "Node", peer: "PeerId") -> None:
    """Wait for one answer: who turns this node away lets it connect first. Raises: DialFailed."""
    from protocols.errors import DialFailed, ProtocolRefused, Remote
    from protocols.ping import ping

    try:
        await ping(node.network, peer, 1)
    except ProtocolRefused:
        pass
    except Remote:
        why = "it may have banned this node, keep to its own peers (network.is_private), or have no place left"
        raise DialFailed(f"{peer} hung up at once: {why}") from None


async def rm(node: "Node", params: Named) -> Forgotten:
    """Forget a peer with its trust, and hang up."""
    import trio

    peer = await resolve(node, params.peer)
    was_known = await trio.to_thread.run_sync(node.catalog.peers.remove, peer)
    await node.network.disconnect(peer)
    return Forgotten(peer=str(peer), was_known=was_known)


async def ls(node: "Node", _params: Nothing) -> list[Peer]:
    """Known peers, and connected ones that nobody named."""
    import trio

    rows = await trio.to_thread.run_sync(node.catalog.peers.list)
    banned = await trio.to_thread.run_sync(node.catalog.peers.banned)
    connected = set(node.network.peers())
    links = sorted(node.network.connections(), key=lambda link: -link.is_relayed)
    ways = {link.peer: way_of(link) for link in links}
    reached = {link.peer: link.endpoint.text for link in links if link.is_dialled and link.endpoint}
    offenders = {one.peer: one for one in node.network.conduct.offenders(trio.current_time())}

    def shown(peer: "PeerId", row: "PeerRow | None") -> Peer:
        offender = offenders.get(peer)
        told = node.network.peer_addresses(peer)
        first = [reached[peer]] if peer in reached else told if peer in connected else []
        return Peer(
            peer=str(peer),
            name=row.name if row else None,
            is_connected=peer in connected,
            way=ways.get(peer),
            trusted=sorted(row.kinds) if row else [],
            heard_unix_s=row.heard_unix_s or None if row else None,
            addresses=list(dict.fromkeys([*first, *(row.addresses if row else told)])),
            breach=offender.code if offender else None,
            refused_s=round(offender.refused_s) or None if offender else None,
            is_banned=peer in banned,
        )

    named = {row.peer for row in rows}
    others = {*connected, *(peer for peer, one in offenders.items() if one.refused_s)} - named
    return [*(shown(row.peer, row) for row in rows), *(shown(peer, None) for peer in sorted(others))]


def way_of(link: "Link") -> Way:
    """How a connection goes."""
    return "relayed" if link.is_relayed else "punched" if link.is_punched else "direct"


async def trust(node: "Node", params: Trust) -> TrustChanged:
    """Trust a publisher."""
    import trio

    from daemon import wall

    peer = await resolve(node, params.peer)
    refuse_self(node, peer)
    await _refuse_banned(node, peer)
    was = set(await _trusted(node, peer))
    await trio.to_thread.run_sync(lambda: node.catalog.peers.trust(peer, params.kinds, wall.unix_s()))
    if "adapters" in params.kinds:
        await node.adapters.trusts(peer)
    node.events.note("peer_trusted", {"peer": str(peer), "kinds": list(params.kinds)})
    return TrustChanged(
        peer=str(peer),
        kinds=list(params.kinds),
        trusted=await _trusted(node, peer),
        was_trusted=was.issuperset(params.kinds),
    )


async def untrust(node: "Node", params: Untrust) -> TrustChanged:
    """Trust a publisher no longer."""
    import trio

    peer = await resolve(node, params.peer)
    was = await trio.to_thread.run_sync(lambda: node.catalog.peers.untrust(peer, params.kinds or None))
    node.events.note("peer_untrusted", {"peer": str(peer), "kinds": list(params.kinds)})
    return TrustChanged(peer=str(peer), kinds=list(params.kinds), trusted=await _trusted(node, peer), was_trusted=was)


async def _trusted(node: "Node", peer: "PeerId") -> list[str]:
    import trio

    row = await trio.to_thread.run_sync(node.catalog.peers.get, peer)
    return sorted(row.kinds) if row else []


def refuse_self(node: "Node", peer: "PeerId") -> None:
    """Raises: Unfit where the peer is this node."""
    from daemon.errors import Unfit

    if peer == node.identity.peer_id:
        raise Unfit("that is this node itself. Another node prints its address with: covey id")


async def _refuse_banned(node: "Node", peer: "PeerId") -> None:
    """Raises: Unfit where the user banned it: what it may do would come to nothing."""
    import trio

    from daemon.errors import Unfit

    if peer in await trio.to_thread.run_sync(node.catalog.peers.banned):
        raise Unfit(f"{peer} is banned here. To speak with it again: covey peer unban {peer}")


async def resolve(node: "Node", text: str) -> "PeerId":
    """The peer of that id or name. Raises: InvalidPeerId, NotFoundHere, Unfit when a name is not unique."""
    import trio

    from daemon.errors import NotFoundHere, Unfit
    from storage.keys import InvalidPeerId, PeerId

    try:
        return PeerId.parse(text.rpartition("/p2p/")[2])
    except InvalidPeerId:
        rows = await trio.to_thread.run_sync(node.catalog.peers.named, text)
    if not rows:
        raise NotFoundHere(f"{text!r} is neither a peer id nor the name of a peer. See: covey peer ls")
    if len(rows) > 1:
        raise Unfit(f"{len(rows)} peers are called {text!r}. Name one by its id: covey peer ls")
    return rows[0].peer


async def resolve_all(node: "Node", texts: "Iterable[str]") -> "list[PeerId]":
    """The peers of these ids and names, each once; for `role:ROLE@WORKSPACE` those whose agents have that role there.

    Raises: as `resolve`, UnknownWorkspace.
    """
    found: dict[PeerId, None] = {}
    for text in texts:
        found |= dict.fromkeys(_of_role(node, text) if text.startswith(ROLE) else [await resolve(node, text)])
    return list(found)


def _of_role(node: "Node", text: str) -> "list[PeerId]":
    from agents.roster.announced import performers
    from daemon.errors import NotFoundHere
    from daemon.workspaces import find

    role, _, workspace = text.removeprefix(ROLE).partition("@")
    hosts = performers(find(node, workspace).space, None, role)
    if not hosts:
        raise NotFoundHere(f"no agent of {workspace} has the role {role!r}. See: covey agent ls {workspace}")
    return sorted(hosts)


OPERATIONS = (
    Operation(
        noun="peer",
        verb="add",
        summary="Note a peer's address and connect to it. Gives it no trust.",
        params=Add,
        result=Added,
        handler=add,
        arguments=("address",),
    ),
    Operation(
        noun="peer",
        verb="rm",
        summary="Forget a peer, its trust included, and hang up.",
        params=Named,
        result=Forgotten,
        handler=rm,
        arguments=("peer",),
    ),
    Operation(
        noun="peer",
        verb="ls",
        summary="List the peers that are known or connected.",
        params=Nothing,
        result=list[Peer],
        handler=ls,
    ),
    Operation(
        noun="peer",
        verb="trust",
        summary="Let what this peer publishes be used here.",
        params=Trust,
        result=TrustChanged,
        handler=trust,
        arguments=("peer",),
    ),
    Operation(
        noun="peer",
        verb="untrust",
        summary="Take trust back.",
        params=Untrust,
        result=TrustChanged,
        handler=untrust,
        arguments=("peer",),
    ),
)
