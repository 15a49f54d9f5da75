"""Who may see content that is here: given and taken back."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from daemon.api.audience import Members, Who, audience
from daemon.api.operation import Operation, Params, Result

if TYPE_CHECKING:
    from daemon.app import Node
    from storage.blockstore import Visibility
    from storage.cid import Cid
    from storage.keys import PeerId


class Share(Params, frozen=True):
    """What is to be seen, and by whom from now on. Narrower than before takes it back."""

    cid: Annotated[str, Meta(max_length=512, description="Content, or the manifest of an artifact.")]
    visibility: Who
    members: Members = ()


class Shared(Result, frozen=True):
    """Who may see it now: `visibility` is wider than asked for where other content that is shared holds it too."""

    cid: str
    visibility: str
    warnings: list[str]


async def share(node: "Node", params: Share) -> Shared:
    """Set who may see content that is here, and everything below it."""
    from functools import partial

    import trio

    from daemon.content import seen_by
    from daemon.kubo import publish_beside
    from protocols.bitswap.shell import offer_below
    from storage.blockstore import Visibility
    from storage.cid import Cid

    cid = Cid.parse(params.cid)
    level, members = await audience(node, params.visibility, params.members)
    await trio.to_thread.run_sync(partial(_share, node, cid, level, members))
    if level > Visibility.PRIVATE:
        await offer_below(node.exchange, cid)
    if level == Visibility.PUBLIC:
        node.provider.provide_soon(cid)
    warnings = await publish_beside(node, cid, level)
    visibility = await trio.to_thread.run_sync(seen_by, node, cid)
    node.events.note("content_shared", {"cid": str(cid), "visibility": visibility})
    return Shared(cid=str(cid), visibility=visibility, warnings=warnings)


def _share(node: "Node", cid: "Cid", level: "Visibility", members: "list[PeerId]") -> None:
    """Raises: NotFoundHere, Unfit."""
    from daemon.errors import NotFoundHere, Unfit
    from protocols.entry import stored_entry
    from storage.blockstore import Visibility
    from storage.dag import reach

    if not node.store.has(cid):
        raise NotFoundHere(f"{cid} is not here. To fetch and keep it: covey pin add {cid}")
    if node.catalog.artifacts.get(cid) is not None:  # its parents have levels of their own
        node.roots.publish(cid, level, members, without=stored_entry(node.store, cid).prev)
        return
    if level > Visibility.PRIVATE and any(reached.n_bytes is None for reached in reach(node.store, cid)):
        raise Unfit(f"{cid} is not here whole. To fetch the rest: covey pin add {cid}")
    node.roots.publish(cid, level, members)


OPERATIONS = (
    Operation(
        noun="content",
        verb="share",
        summary="Set who may see content that is here, or take it back.",
        params=Share,
        result=Shared,
        handler=share,
        arguments=("cid",),
        command=("share",),
    ),
)
