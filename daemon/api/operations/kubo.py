"""The Kubo node beside this one: what it is, content from it, content to it, its pins."""

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from daemon.api.operation import Done, Nothing, Operation, Params, Progress, Result, reporting

if TYPE_CHECKING:
    from daemon.api.progress import Report
    from daemon.app import Node

CidText = Annotated[str, Meta(max_length=512, description="The root of the content.")]
Name = Annotated[str, Meta(max_length=128, description="A name for the pin; an older Kubo knows none.")]


class Status(Result, frozen=True):
    """The Kubo that answers; `publishes` says whether what is made public here is sent to it."""

    api: str
    version: str
    commit: str
    publishes: bool


class Get(Params, frozen=True):
    """What to fetch from Kubo, and where to write it."""

    cid: CidText
    out: (
        Annotated[
            str,
            Meta(
                max_length=4096, description="Where to write it (default: only into the store).", extra={"path": True}
            ),
        ]
        | None
    ) = None
    is_offline: Annotated[bool, Meta(description="Only what Kubo has itself.")] = False


class Got(Result, frozen=True, tag_field="type", tag="got"):
    """The content is here, verified; `reused_bytes` were here before."""

    cid: str
    out: str | None
    fetched_bytes: int
    reused_bytes: int


class Publish(Params, frozen=True):
    """What to send to Kubo. It shows it to everybody that its own configuration lets in."""

    cid: CidText
    name: Name = ""


class Published(Result, frozen=True, tag_field="type", tag="published"):
    """Kubo has every block, under the same CIDs, and keeps them."""

    cid: str
    n_blocks: int
    n_bytes: int


class Pin(Params, frozen=True):
    """What Kubo is to keep; it looks for what it lacks."""

    cid: CidText
    name: Name = ""
    is_recursive: bool = True


class KuboKeeps(Result, frozen=True, tag_field="type", tag="kept"):
    """Kubo has it, and keeps it."""

    cid: str
    is_recursive: bool


class Unpin(Params, frozen=True):
    """What Kubo is to keep no longer."""

    cid: CidText
    is_recursive: bool = True


class Which(Params, frozen=True):
    """Which of its pins."""

    kind: Annotated[Literal["recursive", "direct", "indirect", "all"], Meta(description="What kind of pins.")] = (
        "recursive"
    )


class Pinned(Result, frozen=True):
    """A pin of Kubo's."""

    cid: str
    kind: str
    name: str


async def status(node: "Node", _params: Nothing) -> Status:
    """Ask Kubo which version it is."""
    from daemon.kubo import kubo_of
    from protocols import kubo_rpc

    async with kubo_of(node) as post:
        about = await kubo_rpc.version(post)
    return Status(
        api=node.config.kubo.api, version=about.version, commit=about.commit, publishes=node.config.kubo.publish
    )


async def unpin(node: "Node", params: Unpin) -> Done:
    """Have Kubo keep content no longer."""
    from daemon.kubo import kubo_of
    from protocols import kubo_rpc
    from storage.cid import Cid

    cid = Cid.parse(params.cid)
    async with kubo_of(node) as post:
        await kubo_rpc.unpin(post, cid, is_recursive=params.is_recursive)
    return Done(text=f"Kubo keeps {cid} no longer; its blocks stay until it collects garbage")


async def pins(node: "Node", params: Which) -> list[Pinned]:
    """What Kubo keeps."""
    from daemon.kubo import kubo_of
    from protocols import kubo_rpc

    async with kubo_of(node) as post:
        found = await kubo_rpc.pins(post, params.kind)
    return [Pinned(cid=one.cid, kind=one.kind, name=one.name) for one in found]


@reporting
async def get(node: "Node", params: Get, report: "Report") -> Got:
    """Fetch a DAG from Kubo, block by block, each hashed; write it out where that is asked for."""
    from daemon.api.progress import in_thread
    from daemon.asked import new_target
    from daemon.kubo import kubo_of
    from protocols import kubo_rpc
    from protocols.kubo_rpc import Fetched
    from storage.cid import Cid
    from storage.unixfs import export

    cid = Cid.parse(params.cid)
    target = None if params.out is None else new_target(params.out)

    def on_progress(fetched: Fetched) -> None:
        report(Progress(step=f"fetching {cid} from Kubo", n_done=fetched.n_bytes + fetched.n_reused_bytes))

    with node.store.lease():
        async with kubo_of(node) as post:
            fetched = await kubo_rpc.fetch_dag(
                post, cid, node.store, is_offline=params.is_offline, on_progress=on_progress
            )
        if target is not None:
            step = f"writing {target.name}"
            await in_thread(lambda on_bytes: export(node.store, cid, target, on_bytes), step, None, report)
    return Got(cid=str(cid), out=params.out, fetched_bytes=fetched.n_bytes, reused_bytes=fetched.n_reused_bytes)


@reporting
async def publish(node: "Node", params: Publish, report: "Report") -> Published:
    """Send content that is here to Kubo, and have it pinned there."""
    from daemon.kubo import publish_to_kubo
    from storage.cid import Cid

    cid = Cid.parse(params.cid)
    sent = await publish_to_kubo(node, cid, name=params.name, report=report)
    return Published(cid=str(cid), n_blocks=sent.n_blocks, n_bytes=sent.n_bytes)


@reporting
async def pin(node: "Node", params: Pin, report: "Report") -> KuboKeeps:
    """Have Kubo keep content."""
    from daemon.kubo import kubo_of
    from protocols import kubo_rpc
    from storage.cid import Cid

    cid = Cid.parse(params.cid)

    def on_progress(n_nodes: int) -> None:
        report(Progress(step=f"pinning {cid}", n_done=n_nodes, unit="blocks"))

    async with kubo_of(node) as post:
        await kubo_rpc.pin(post, cid, name=params.name, is_recursive=params.is_recursive, on_progress=on_progress)
    return KuboKeeps(cid=str(cid), is_recursive=params.is_recursive)


OPERATIONS = (
    Operation(
        noun="kubo",
        verb="status",
        summary="Ask the Kubo node beside this one which version it is.",
        params=Nothing,
        result=Status,
        handler=status,
    ),
    Operation(
        noun="kubo",
        verb="get",
        summary="Fetch content from Kubo, and verify it.",
        params=Get,
        result=Progress | Got,
        handler=get,
        is_stream=True,
        arguments=("cid",),
    ),
    Operation(
        noun="kubo",
        verb="publish",
        summary="Send content to Kubo, under the same CID, and pin it there.",
        params=Publish,
        result=Progress | Published,
        handler=publish,
        is_stream=True,
        arguments=("cid",),
    ),
    Operation(
        noun="kubo",
        verb="pin",
        summary="Have Kubo keep content.",
        params=Pin,
        result=Progress | KuboKeeps,
        handler=pin,
        is_stream=True,
        arguments=("cid",),
    ),
    Operation(
        noun="kubo",
        verb="unpin",
        summary="Have Kubo keep content no longer.",
        params=Unpin,
        result=Done,
        handler=unpin,
        arguments=("cid",),
    ),
    Operation(
        noun="kubo",
        verb="pins",
        summary="List what Kubo keeps.",
        params=Which,
        result=list[Pinned],
        handler=pins,
    ),
)
