"""Adapters: what this node published and heard of."""

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta

from daemon.api.audience import Members, Who, audience
from daemon.api.operation import Done, Operation, Params, Result

if TYPE_CHECKING:
    from daemon.app import Node
    from storage.catalog.adapters import AdapterRow

_LONELY: Final = "you trust nobody yet, so nobody can fetch it: covey peer trust PEER, or --visibility public"
Reference = Annotated[str, Meta(max_length=256, description="NAME, NAME@VERSION, or the CID of its manifest.")]
State = Literal["heard", "wanted", "fetching", "ready", "refused", "removed"]


class List(Params, frozen=True):
    """Which adapters; everything given must fit. Those that were removed are listed only when asked for."""

    model: Annotated[str, Meta(max_length=64, description="Those that fit this model.")] | None = None
    publisher: Annotated[str, Meta(max_length=512, description="Those of this peer (id or name).")] | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    version: Annotated[int, Meta(ge=1)] | None = None
    tag: Annotated[str, Meta(max_length=32)] | None = None
    state: State | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Publish(Params, frozen=True):
    """An adapter to publish: `flock` are the peers that you trust, `public` is everybody."""

    adapter: Annotated[
        str,
        Meta(
            max_length=4096,
            description="What `covey train` was told to call it, or a PEFT folder.",
            extra={"path_if_there": True},
        ),
    ]
    name: Annotated[str, Meta(max_length=64, description="What others call it (default: as here).")] | None = None
    version: Annotated[int, Meta(ge=1, description="Default: one more than the last.")] | None = None
    model: Annotated[str, Meta(max_length=64, description="Its base model, where nothing tells.")] | None = None
    visibility: Who = "flock"
    members: Members = ()
    tags: Annotated[
        tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=16, description="Words to find it by")
    ] = ()
    licence: Annotated[str, Meta(max_length=128)] | None = None


class Named(Params, frozen=True):
    """An adapter."""

    adapter: Reference


class Adapter(Result, frozen=True):
    """An adapter. `manifest` names all of it; `reason` says why it was refused."""

    name: str
    version: int
    state: str
    publisher: str
    is_own: bool
    n_bytes: int
    rank: int
    tags: list[str]
    metrics: dict[str, float]
    base: str
    heard_unix_s: float
    reason: str | None
    folder: str | None
    manifest: str
    publisher_name: str | None = None


class Details(Adapter, frozen=True, kw_only=True):
    """An adapter with what its manifest holds, where that is here.

    `visibility` is who may see it on this node; `audience` is to whom other nodes may pass it on.
    """

    visibility: str
    members: list[str]
    audience: str | None = None
    targets: list[str] | None = None
    alpha: float | None = None
    n_params: int | None = None
    parent: str | None = None
    licence: str | None = None
    created_unix_s: float | None = None
    training: dict[str, str | int | float] | None = None


class Published(Result, frozen=True):
    """It is signed, stored and announced (unless private); `is_new` unless it was before.

    `note` says what keeps others from it, if anything does. `ipns` is the name that stands for the latest public
    version, for ever the same: `covey get /ipns/NAME`.
    """

    name: str
    version: int
    n_bytes: int
    visibility: str
    manifest: str
    is_new: bool
    note: str | None = None
    ipns: str | None = None


def described(node: "Node", row: "AdapterRow") -> Adapter:
    """A row of the catalog as people see it."""
    peer = node.catalog.peers.get(row.publisher)
    return Adapter(
        name=row.name,
        version=row.version,
        state=str(row.state),
        publisher=str(row.publisher),
        is_own=row.is_own,
        n_bytes=row.n_bytes,
        rank=row.rank,
        tags=list(row.tags),
        metrics=dict(row.metrics),
        base=row.base,
        heard_unix_s=row.heard_unix_s,
        reason=row.reason,
        folder=row.folder,
        manifest=str(row.manifest),
        publisher_name=peer.name if peer else None,
    )


async def ls(node: "Node", params: List) -> list[Adapter]:
    """The adapters that fit, the newest first."""
    from agents.models import find_model
    from daemon.api.operations.peer import resolve
    from storage.catalog.adapters import AdapterState

    publisher = await resolve(node, params.publisher) if params.publisher else None
    bases: list[str | None] = [None]
    if params.model is not None:
        bases = [*sorted(find_model(node.catalog, params.model, params.model).accepts)]
    rows = [
        row
        for base in bases
        for row in node.catalog.adapters.query(
            base=base,
            publisher=publisher,
            name=params.name,
            version=params.version,
            tag=params.tag,
            state=AdapterState(params.state) if params.state else None,
            but_not=None if params.state else AdapterState.REMOVED,
            limit=params.limit,
        )
    ]
    return [described(node, row) for row in rows[: params.limit]]


async def show(node: "Node", params: Named) -> Details:
    """One adapter, with its manifest."""
    import msgspec
    import trio

    row = _find(node, params.adapter)
    shown = msgspec.structs.asdict(described(node, row))
    return Details(**shown, **await trio.to_thread.run_sync(_details, node, row))


def _details(node: "Node", row: "AdapterRow") -> "dict[str, Any]":
    from agents.adapters.manifests import read_stored
    from protocols.errors import Remote
    from storage.blockstore import Visibility
    from storage.errors import StorageError

    here = node.store.seen(row.manifest)
    level = here.level if here is not None else Visibility.PRIVATE
    seen = {"visibility": level.name.lower(), "members": sorted(map(str, node.roots.members(row.manifest)))}
    try:
        manifest = read_stored(node.store, row.manifest)[1]
    except (StorageError, Remote):  # heard of, and not fetched; or removed
        return seen
    return seen | {
        "audience": manifest.audience,
        "targets": list(manifest.targets),
        "alpha": manifest.alpha,
        "n_params": manifest.n_params,
        "parent": str(manifest.parent) if manifest.parent else None,
        "licence": manifest.licence,
        "created_unix_s": float(manifest.created_unix_s),
        "training": dict(manifest.training),
    }


async def publish(node: "Node", params: Publish) -> Published:
    """Look into the folder, store, sign and announce it."""
    from pathlib import Path

    from agents.errors import UnknownName
    from daemon.kubo import publish_beside
    from daemon.naming import label_of
    from storage.catalog.adapters import AdapterState

    trained = node.home.training / params.adapter
    folder = trained if "/" not in params.adapter and trained.is_dir() else Path(params.adapter).expanduser()
    if not folder.is_absolute() or not folder.is_dir():
        raise UnknownName(f"{params.adapter!r} is neither an adapter trained here nor a folder. Train one: covey train")
    before = {row.manifest for row in node.catalog.adapters.query(is_own=True, state=AdapterState.READY)}
    visibility, members = await audience(node, params.visibility, params.members)
    row = await node.adapters.publish(
        folder,
        name=params.name or folder.name,
        version=params.version,
        model=params.model,
        tags=params.tags,
        licence=params.licence,
        visibility=visibility,
        members=members,
    )
    beside = await publish_beside(node, row.manifest, visibility)
    lonely = [_LONELY] if params.visibility == "flock" and not node.catalog.peers.flock() else []
    return Published(
        name=row.name,
        version=row.version,
        n_bytes=row.n_bytes,
        visibility=params.visibility,
        manifest=str(row.manifest),
        is_new=row.manifest not in before,
        note="\n".join((*lonely, *beside)) or None,
        ipns=node.names.text_of(label_of(row.name)) if params.visibility == "public" else None,
    )


async def rm(node: "Node", params: Named) -> Done:
    """Announce an adapter no more, let go of its files, and do not fetch it again unasked."""
    row = _find(node, params.adapter)
    await node.adapters.forget(row)
    return Done(text=f"{row.name} v{row.version} is gone from this node; other nodes that have it keep it")


async def fetch(node: "Node", params: Named) -> Done:
    """Take an adapter up again; events tell how it goes."""
    from storage.catalog.adapters import AdapterState

    row = _find(node, params.adapter)
    if row.state is AdapterState.READY:
        return Done(text=f"{row.name} v{row.version} is here already")
    await node.adapters.fetch(row)
    return Done(text=f"{row.name} v{row.version} is being fetched; to see how it goes: covey events --follow")


def _find(node: "Node", reference: str) -> "AdapterRow":
    """The adapter of that CID, or the newest of that name (and version), removed ones last. Raises: UnknownName."""
    from agents.errors import UnknownName
    from storage.catalog.adapters import AdapterOrder, AdapterState
    from storage.cid import Cid
    from storage.errors import InvalidCid

    name, mark, version = reference.rpartition("@")
    try:
        row = node.catalog.adapters.get(Cid.parse(reference))
        found = [row] if row else []
    except InvalidCid:
        found = node.catalog.adapters.query(
            name=name if mark else reference,
            version=int(version) if mark and version.isdecimal() else None,
            order=AdapterOrder.VERSION,
        )
    if not found:
        raise UnknownName(f"there is no adapter {reference!r} here. See what there is: covey adapter ls")
    return next((row for row in found if row.state is not AdapterState.REMOVED), found[0])


OPERATIONS = (
    Operation(
        noun="adapter",
        verb="ls",
        summary="List the adapters that this node published or heard of.",
        params=List,
        result=list[Adapter],
        handler=ls,
    ),
    Operation(
        noun="adapter",
        verb="show",
        summary="Show an adapter: its publisher, base, state, manifest.",
        params=Named,
        result=Details,
        handler=show,
        arguments=("adapter",),
    ),
    Operation(
        noun="adapter",
        verb="publish",
        summary="Sign an adapter, store it, announce it to whom it is for.",
        params=Publish,
        result=Published,
        handler=publish,
        arguments=("adapter",),
    ),
    Operation(
        noun="adapter",
        verb="fetch",
        summary="Fetch an adapter that waits, was refused or removed.",
        params=Named,
        result=Done,
        handler=fetch,
        arguments=("adapter",),
    ),
    Operation(
        noun="adapter",
        verb="rm",
        summary="Delete an adapter here; fetch it no more unless asked to.",
        params=Named,
        result=Done,
        handler=rm,
        arguments=("adapter",),
    ),
)
