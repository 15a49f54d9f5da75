"""Who has content, and what a name stands for: asked of the DHT and of the routers that the settings name."""

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from daemon.api.operation import Operation, Params, Result
from daemon.api.operations.name import Name, NameAdded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from daemon.app import Node
    from protocols.net import PeerInfo

    Finder = Callable[[], Awaitable[Sequence[PeerInfo]]]

FIND_LIMIT_S: Final = 60.0
MAX_FOUND: Final = 100


class Sought(Params, frozen=True):
    """What to look for."""

    cid: Annotated[str, Meta(max_length=256, description="A CID.")]


class Provider(Result, frozen=True):
    """A peer that is said to have it. `said_by` is `dht`, `routers`, or both."""

    peer: str
    name: str | None
    is_connected: bool
    said_by: list[str]
    addresses: list[str]


class Looked(Params, frozen=True):
    """A name to look up."""

    name: Name


async def providers(node: "Node", params: Sought) -> list[Provider]:
    """Ask all at once; what is found in time is told."""
    from functools import partial

    import trio

    from protocols.delegated_routing import find_providers
    from storage.cid import Cid

    cid = Cid.parse(params.cid)
    said: dict[str, list[PeerInfo]] = {}

    async def ask(who: str, finder: "Finder") -> None:
        with trio.move_on_after(FIND_LIMIT_S):
            said[who] = list(await finder())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "dht", partial(node.network.find_providers, cid, MAX_FOUND))
        if node.routers is not None:
            nursery.start_soon(ask, "routers", partial(find_providers, node.routers, cid))
    return await trio.to_thread.run_sync(_told, node, said)


async def name_find(node: "Node", params: Looked) -> NameAdded:
    """Ask for the record of a name, verify it, and keep it."""
    import trio

    from daemon import wall
    from daemon.api.operations.name import keep_best
    from daemon.naming import look_up, unrecorded
    from protocols.ipns import parse_name

    name = parse_name(params.name)
    records = await look_up(node, name)
    if not records:
        raise unrecorded(name)
    return await trio.to_thread.run_sync(keep_best, node, records, name, wall.unix_s())


def _told(node: "Node", said: "dict[str, list[PeerInfo]]") -> list[Provider]:
    connected = set(node.network.peers())
    infos = [(who, info) for who, found in said.items() for info in found]
    told = []
    for peer in dict.fromkeys(info.peer for _, info in infos):
        row = node.catalog.peers.get(peer)
        told.append(
            Provider(
                peer=str(peer),
                name=row.name if row is not None else None,
                is_connected=peer in connected,
                said_by=list(dict.fromkeys(who for who, info in infos if info.peer == peer)),
                addresses=list(dict.fromkeys(one for _, info in infos if info.peer == peer for one in info.addresses)),
            )
        )
    return told


OPERATIONS = (
    Operation(
        noun="net",
        verb="providers",
        summary="Ask the DHT and the routers who has content.",
        params=Sought,
        result=list[Provider],
        handler=providers,
        arguments=("cid",),
        begins="asking who has {cid}",
    ),
    Operation(
        noun="name",
        verb="find",
        summary="Ask DHT and routers for the record of a name; keep it.",
        params=Looked,
        result=NameAdded,
        handler=name_find,
        arguments=("name",),
        begins="asking for {name}",
    ),
)
