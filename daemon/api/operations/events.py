"""What happened on the node."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, field

from daemon.api.operation import Operation, Params, Result

if TYPE_CHECKING:
    from daemon.app import Node


_PEERS: Final = frozenset({"peer", "publisher"})  # fields that name one


class Read(Params, frozen=True):
    """Which events."""

    since: Annotated[int, Meta(ge=0, description="The events behind this id.")] | None = None
    last: Annotated[int, Meta(ge=0, description="Without --since: how many of the newest.")] = 50
    is_follow: Annotated[bool, Meta(description="Go on as events come.")] = False


class Event(Result, frozen=True):
    """Something that happened. Ids rise by one; a first one above `since` + 1 says that older were dropped.

    `names` are what the user calls the peers that `fields` name, under the names of those fields.
    """

    id: int
    unix_s: float
    kind: str
    fields: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)


async def read(node: "Node", params: Read) -> AsyncIterator[Event]:
    """Stream events."""
    import trio

    after_id = params.since
    if after_id is None:
        after_id = max(0, node.catalog.events.last_id - params.last)
    async for event in node.events.follow(after_id, forever=params.is_follow):
        yield Event(
            id=event.id,
            unix_s=event.unix_s,
            kind=event.kind,
            fields=event.fields,
            names=await trio.to_thread.run_sync(_names, node, event.fields),
        )


def _names(node: "Node", fields: dict[str, Any]) -> dict[str, str]:
    from storage.keys import InvalidPeerId, PeerId

    names = {}
    for key in _PEERS & fields.keys():
        try:
            row = node.catalog.peers.get(PeerId.parse(str(fields[key])))
        except InvalidPeerId:
            continue
        if row is not None and row.name is not None:
            names[key] = row.name
    return names


OPERATIONS = (
    Operation(
        noun="events",
        verb="read",
        summary="Show what happened: peers, transfers, refusals with reasons.",
        params=Read,
        result=Event,
        handler=read,
        is_stream=True,
        command=("events",),
    ),
)
