"""What this node keeps."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from daemon.api.operation import Done, Nothing, Operation, Params, Progress, Result, reporting

if TYPE_CHECKING:
    from daemon.api.progress import Report
    from daemon.app import Node
    from storage.blockstore import Blockstore
    from storage.cid import Cid

Name = Annotated[str, Meta(max_length=64, description="A name for this pin; one CID may have several.")]
CidText = Annotated[str, Meta(max_length=512, description="The root of what is kept.")]


class Add(Params, frozen=True):
    """What to keep."""

    cid: CidText
    name: Name = ""
    is_direct: Annotated[bool, Meta(description="Keep the one block, not what it links to.")] = False
    timeout_s: Annotated[float, Meta(gt=0, le=86_400, description="Give up when no block came for so long.")] = 60.0


class Remove(Params, frozen=True):
    """What to keep no longer."""

    cid: CidText
    name: Name = ""


class Pin(Result, frozen=True):
    """A pin. Only a `complete` one is held whole; to go on with another, add it again."""

    cid: str
    name: str
    kind: str
    state: str


class Pinned(Pin, frozen=True, tag_field="type", tag="pinned"):
    """The content is held whole, and kept."""


async def rm(node: "Node", params: Remove) -> Done:
    """Unpin."""
    import trio

    from daemon.errors import NotFoundHere
    from storage.cid import Cid

    cid = Cid.parse(params.cid)
    if not await trio.to_thread.run_sync(node.pins.remove, cid, params.name):
        named = f" as {params.name!r}" if params.name else ""
        raise NotFoundHere(f"{cid} is not pinned{named}. See: covey pin ls")
    return Done(text=f"unpinned {cid}; its blocks stay until garbage is collected")


async def ls(node: "Node", _params: Nothing) -> list[Pin]:
    """Every pin."""
    import trio

    pins = await trio.to_thread.run_sync(node.pins.list)
    return [Pin(cid=str(pin.cid), name=pin.name, kind=pin.kind, state=pin.state) for pin in pins]


@reporting
async def add(node: "Node", params: Add, report: "Report") -> Pinned:
    """Pin a DAG: note it, fetch what is missing, and only then call it complete."""
    from functools import partial

    import trio

    from daemon.content import fetch_block, fetch_reference
    from daemon.errors import Unfit
    from storage.cid import Cid
    from storage.pins import PinKind, PinState

    cid = Cid.parse(params.cid)
    kind = PinKind.DIRECT if params.is_direct else PinKind.RECURSIVE

    def note(state: PinState) -> None:
        node.pins.add(cid, params.name, kind, state)

    before = await trio.to_thread.run_sync(node.pins.get, cid, params.name)
    if before is not None and before.kind is PinKind.RECURSIVE and params.is_direct:
        raise Unfit(f"{cid} is pinned with all below it: to keep the one block only, first: covey pin rm {cid}")
    if before is None:
        await trio.to_thread.run_sync(note, PinState.FETCHING)
    try:
        if params.is_direct:
            await fetch_block(node, cid, params.timeout_s)
        else:
            await fetch_reference(node, str(cid), timeout_s=params.timeout_s, report=report)
            await trio.to_thread.run_sync(_check_whole, node.store, cid)
    except BaseException:
        if before is None:  # what failed is not kept: nothing would go on with it
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(partial(node.pins.remove, cid, params.name, unless_complete=True))
        raise
    await trio.to_thread.run_sync(note, PinState.COMPLETE)
    return Pinned(cid=str(cid), name=params.name, kind=kind, state="complete")


def _check_whole(store: "Blockstore", cid: "Cid") -> None:
    """See that everything can be walked: no garbage is collected beside a pin of which it is not known what it keeps.

    Raises: UnknownCodec, NotFound.
    """
    from storage.dag import reach
    from storage.errors import NotFound

    for reached in reach(store, cid):
        if reached.n_bytes is None:
            raise NotFound(f"{reached.cid} is gone again: add the pin once more")


OPERATIONS = (
    Operation(
        noun="pin",
        verb="add",
        summary="Keep a DAG: fetch what is missing of it, and never drop it.",
        params=Add,
        result=Progress | Pinned,
        handler=add,
        is_stream=True,
        arguments=("cid",),
    ),
    Operation(
        noun="pin",
        verb="rm",
        summary="Keep a DAG no longer.",
        params=Remove,
        result=Done,
        handler=rm,
        arguments=("cid",),
    ),
    Operation(
        noun="pin",
        verb="ls",
        summary="List what is kept.",
        params=Nothing,
        result=list[Pin],
        handler=ls,
    ),
)
