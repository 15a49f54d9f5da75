"""What happened on the node."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from daemon.api.operation import Operation, Params, Result

if TYPE_CHECKING:
    from daemon.app import Node


class Read(Params, frozen=True):
    """Which events."""

    since: Annotated[int, Meta(ge=0, description="The events behind this id.")] | None = None
    last: Annotated[int, Meta(ge=0, description="Without --since: how many of the newest.")] = 50
    is_follow: Annotated[bool, Meta(description="Go on as events come.")] = False


class Event(Result, frozen=True):
    """Something that happened. Ids rise by one; a first one above `since` + 1 says that older were dropped.

    `peer_name` is what the user calls the peer that `fields` name.
    """

    id: int
    unix_s: float
    kind: str
    fields: dict[str, Any]
    peer_name: str | None = None


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
            peer_name=await trio.to_thread.run_sync(_peer_name, node, event.fields),
        )


def _peer_name(node: "Node", fields: dict[str, Any]) -> str | None:
    from storage.keys import InvalidPeerId, PeerId

    try:
        row = node.catalog.peers.get(PeerId.parse(str(fields.get("peer", ""))))
    except InvalidPeerId:
        return None
    return row.name if row else None


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
