"""Artifacts of every kind: models, datasets, checkpoints and adapters, by their signed manifests."""

from typing import TYPE_CHECKING

from daemon.api.artifacts import (
    Add,
    Added,
    Artifact,
    Details,
    Kept,
    Kinship,
    Lineage,
    List,
    Named,
    Problem,
    Publish,
    Published,
    Rebuilt,
    Relative,
    Search,
    Tags,
    Told,
)
from daemon.api.audience import audience
from daemon.api.operation import Done, Nothing, Operation, Progress, reporting

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.artifacts.publish import Release
    from daemon.api.progress import Report
    from daemon.app import Node
    from protocols.adapters import Base, Fact
    from storage.blockstore import Visibility
    from storage.catalog.artifacts import ArtifactRow
    from storage.catalog.lineage import Kin
    from storage.cid import Cid


def described(node: "Node", row: "ArtifactRow") -> Artifact:
    """A row of the catalog as people see it."""
    peer = node.catalog.peers.get(row.publisher)
    return Artifact(
        kind=row.kind,
        name=row.name,
        version=row.version,
        publisher=str(row.publisher),
        publisher_name=peer.name if peer else None,
        is_own=row.is_own,
        n_bytes=row.n_bytes,
        base=row.base,
        tags=list(row.tags),
        own_tags=list(row.own_tags),
        capabilities=list(row.capabilities),
        metrics=dict(row.metrics),
        created_unix_s=row.created_unix_s,
        state=row.state,
        manifest=str(row.manifest),
    )


async def ls(node: "Node", params: List) -> list[Artifact]:
    """What the catalog knows: the newest first, or the best."""
    return await _find(node, params)


async def search(node: "Node", params: Search) -> list[Artifact]:
    """What has all the words: what fits them best first."""
    from daemon.errors import BadRequest
    from storage.catalog.words import match_of

    if match_of(" ".join(params.words)) is None:
        raise BadRequest("name a word to search for, of letters or digits. All that there is: covey artifact ls")
    return await _find(node, params, " ".join(params.words))


async def show(node: "Node", params: Named) -> Details:
    """One artifact."""
    import msgspec
    import trio

    from daemon.artifacts import find_artifact
    from daemon.content import seen_by

    def details() -> Details:
        row = find_artifact(node.catalog, params.artifact)
        return Details(
            **msgspec.structs.asdict(described(node, row)),
            description=row.description,
            licence=row.licence,
            files=str(row.files) if row.files else None,
            visibility=seen_by(node, row.manifest),
            is_verified=row.is_verified,
            parents=[Kept(manifest=str(parent.manifest), role=parent.role) for parent in row.parents],
            origins=[Told(content=str(one.content), role=one.role, label=one.label) for one in row.origins],
        )

    return await trio.to_thread.run_sync(details)


async def lineage(node: "Node", params: Kinship) -> Lineage:
    """Ancestors and descendants, the nearest first."""
    import trio

    from daemon.artifacts import find_artifact

    def walk() -> Lineage:
        row = find_artifact(node.catalog, params.artifact)
        up = node.catalog.lineage.ancestors(row.manifest, params.limit)
        down = node.catalog.lineage.descendants(row.manifest, params.limit)
        return Lineage(
            manifest=str(row.manifest),
            ancestors=_relatives(node, up),
            descendants=_relatives(node, down),
            is_whole=up.is_whole and down.is_whole,
        )

    return await trio.to_thread.run_sync(walk)


async def tag(node: "Node", params: Tags) -> Artifact:
    """Put tags of your own on an artifact, or take them off."""
    import trio

    from agents.artifacts.keep import put_own_tags
    from daemon.artifacts import find_artifact

    def change() -> Artifact:
        row = find_artifact(node.catalog, params.artifact)
        put_own_tags(node.adapters.ports, row.manifest, {*row.own_tags, *params.tags} - set(params.remove))
        return described(node, find_artifact(node.catalog, str(row.manifest)))

    return await trio.to_thread.run_sync(change)


async def rm(node: "Node", params: Named) -> Done:
    """Forget an artifact, show it no more, and let go of its blocks."""
    import trio

    from agents.artifacts.keep import let_go
    from daemon.artifacts import find_artifact
    from storage.catalog.artifacts import ADAPTER

    row = await trio.to_thread.run_sync(find_artifact, node.catalog, params.artifact)
    adapter = node.catalog.adapters.get(row.manifest) if row.kind == ADAPTER else None
    if adapter is not None:
        await node.adapters.forget(adapter)
    else:
        await trio.to_thread.run_sync(let_go, node.adapters.ports, row)
        node.events.note("artifact_removed", {"manifest": str(row.manifest), "kind": row.kind, "name": row.name})
    return Done(text=f"{row.kind} {row.name} v{row.version} is gone from this node; other nodes that have it keep it")


async def rebuild(node: "Node", _params: Nothing) -> Rebuilt:
    """Read every registered manifest from its blocks again, check its signature, and fill the catalog."""
    import trio

    from agents.artifacts.rebuild import rebuild as rebuild_catalog

    done = await trio.to_thread.run_sync(rebuild_catalog, node.adapters.ports, node.home.models)
    node.events.note(
        "catalog_rebuilt",
        {"n_artifacts": done.n_artifacts, "n_new": done.n_new, "n_problems": len(done.problems)},
    )
    return Rebuilt(
        n_artifacts=done.n_artifacts,
        n_new=done.n_new,
        n_models=done.n_models,
        problems=[Problem(manifest=str(cid), text=text) for cid, text in done.problems.items()],
    )


async def _find(node: "Node", params: List, words: str | None = None) -> list[Artifact]:
    import trio

    from daemon.api.operations.peer import resolve
    from daemon.artifacts import bases_of, read_best, read_condition

    publisher = await resolve(node, params.publisher) if params.publisher else None
    conditions = [read_condition(text) for text in params.metric]
    best = read_best(params.best) if params.best is not None else None

    def find() -> list[Artifact]:
        rows = node.catalog.artifacts.find(
            kind=params.kind,
            name=params.name,
            bases=bases_of(node.catalog, params.base) if params.base else (),
            publisher=publisher,
            capability=params.capability,
            tag=params.tag,
            metrics=conditions,
            words=words,
            best=best,
            limit=params.limit,
        )
        return [described(node, row) for row in rows]

    return await trio.to_thread.run_sync(find)


@reporting
async def publish(node: "Node", params: Publish, report: "Report") -> Published:
    """Add the files, sign the manifest, hold both, and show them to whom they are for."""
    from pathlib import Path

    import trio

    from agents.artifacts.publish import store_artifact
    from daemon.api.progress import in_thread
    from daemon.content import bytes_below

    path = Path(params.path)
    release = await _release(node, params)
    n_bytes = await trio.to_thread.run_sync(bytes_below, path)

    def store(on_bytes: "Callable[[int], None]") -> "tuple[ArtifactRow, bool]":
        return store_artifact(node.adapters.ports, path, release, on_bytes)

    row, is_new = await in_thread(store, f"adding {path.name}", n_bytes, report)
    return await shown(node, row, release.visibility, report, is_new=is_new)


async def shown(node: "Node", row: "ArtifactRow", level: "Visibility", report: "Report", *, is_new: bool) -> Published:
    """Tell those who may see a stored artifact of our own that it is there."""
    from daemon.kubo import publish_beside
    from protocols.bitswap.shell import offer_below
    from storage.blockstore import Visibility

    assert row.files is not None
    visibility = level.name.lower()
    if level > Visibility.PRIVATE:
        await offer_below(node.exchange, row.manifest)
    if level == Visibility.PUBLIC:
        node.provider.provide_soon(row.manifest, row.files)
    if is_new:
        told = {"manifest": str(row.manifest), "kind": row.kind, "name": row.name, "version": row.version}
        node.events.note("artifact_published", {**told, "n_bytes": row.n_bytes, "visibility": visibility})
    return Published(
        kind=row.kind,
        name=row.name,
        version=row.version,
        n_bytes=row.n_bytes,
        visibility=visibility,
        manifest=str(row.manifest),
        files=str(row.files),
        is_new=is_new,
        warnings=await publish_beside(node, row.manifest, level, report=report),
    )


async def _release(node: "Node", params: Publish) -> "Release":
    import trio

    from agents.artifacts.publish import Release
    from daemon.artifacts import read_metrics, read_name, read_parent
    from storage.cid import Cid

    base, derived_from = await trio.to_thread.run_sync(_base, node, params.base) if params.base else (None, None)
    visibility, members = await audience(node, params.visibility, params.members)
    facts = await trio.to_thread.run_sync(_making, params.path) if params.kind == "model" else {}
    return Release(
        kind=params.kind,
        name=read_name(params.name),
        version=params.version,
        parents=[await trio.to_thread.run_sync(read_parent, node.catalog, text) for text in params.parent],
        capabilities=params.capability,
        tags=params.tag,
        metrics=read_metrics(params.metric),
        facts=facts,
        description=params.description,
        licence=params.licence,
        base=base,
        derived_from=Cid.parse(derived_from) if derived_from and params.kind == "model" else None,
        step=params.step,
        visibility=visibility,
        members=members,
    )


def _making(path: str) -> "dict[str, Fact]":
    """What an exported GGUF says of its making: of which model and adapter it was made. Raises: OSError."""
    from pathlib import Path

    from agents.engine.gguf_header import MERGED_KEYS, read_gguf_header
    from agents.engine.model_folder import MAX_MERGED_CHARS
    from agents.errors import BadModel

    if not (path.endswith(".gguf") and Path(path).is_file()):
        return {}
    try:
        values = read_gguf_header(Path(path)).values
    except BadModel:  # whatever it is, its publisher may have it published
        return {}
    said = {fact: values.get(key) for fact, key in MERGED_KEYS.items()}
    return {fact: value[:MAX_MERGED_CHARS] for fact, value in said.items() if isinstance(value, str)}


def _base(node: "Node", name: str) -> "tuple[Base, str | None]":
    from agents.models import card_of, find_model
    from protocols.adapters import Base
    from storage.cid import Cid

    card = card_of(find_model(node.catalog, name, name))
    return Base(
        fingerprint=Cid.parse(card.fingerprint), name=card.name, architecture=card.architecture
    ), card.derived_from


@reporting
async def add(node: "Node", params: Add, report: "Report") -> Added:
    """Fetch a manifest by its CID, verify it, and register what it describes, where its publisher is trusted."""
    from agents.artifacts.obtain import fetch_files, register
    from protocols.fetch.dag import Progress as Fetched
    from protocols.net import PeerInfo
    from storage.catalog.artifacts import ADAPTER
    from storage.cid import Cid

    ports = node.adapters.ports
    providers = [*map(PeerInfo.parse, params.provider), *map(PeerInfo, node.network.peers())]
    row = await register(ports, Cid.parse(params.cid), providers)

    def tell(progress: "Fetched") -> None:
        n_done = progress.n_bytes + progress.n_reused_bytes
        report(Progress(step=f"fetching {row.name}", n_done=n_done, n_total=row.n_bytes))

    fetched = Fetched()
    adapter = node.catalog.adapters.get(row.manifest) if row.kind == ADAPTER else None
    if adapter is not None and not adapter.is_own and params.is_whole:
        await node.adapters.fetch(adapter)  # goes on by itself, and is judged as any adapter is
    elif params.is_whole and adapter is None:
        fetched = await fetch_files(ports, row, providers, idle_timeout_s=params.timeout_s, on_progress=tell)
    told = {"manifest": str(row.manifest), "kind": row.kind, "name": row.name, "version": row.version}
    node.events.note("artifact_added", {**told, "publisher": str(row.publisher)})
    return Added(
        kind=row.kind,
        name=row.name,
        version=row.version,
        publisher=str(row.publisher),
        n_bytes=row.n_bytes,
        manifest=str(row.manifest),
        files=str(row.files) if row.files else None,
        fetched_bytes=fetched.n_bytes,
        is_whole=params.is_whole and adapter is None,
    )


def _relatives(node: "Node", kin: "Kin") -> list[Relative]:
    def told(manifest: "Cid", role: str, of: "Cid", n_steps: int) -> Relative:
        row = node.catalog.artifacts.get(manifest)
        return Relative(
            n_steps=n_steps,
            is_artifact=row is not None,
            role=role,
            kind=row.kind if row else None,
            name=row.name if row else _label(node, manifest, of),
            version=row.version if row else None,
            manifest=str(manifest),
            of=str(of),
        )

    return [told(*relative) for relative in kin.relatives]


def _label(node: "Node", content: "Cid", of: "Cid") -> str | None:
    """What a content is called that no artifact here consists of: by this node, else by who was made from it."""
    models = node.catalog.models.accepting(str(content))
    child = node.catalog.artifacts.get(of)
    labels = [one.label for one in child.origins if one.content == content] if child else []
    return next((name for name in (*(model.name for model in models), *labels) if name), None)


OPERATIONS = (
    Operation(
        noun="artifact",
        verb="publish",
        summary="Sign a model, dataset or checkpoint, and store it.",
        params=Publish,
        result=Progress | Published,
        handler=publish,
        is_stream=True,
        arguments=("path",),
    ),
    Operation(
        noun="artifact",
        verb="ls",
        summary="List the artifacts that are known here, of every kind.",
        params=List,
        result=list[Artifact],
        handler=ls,
    ),
    Operation(
        noun="artifact",
        verb="search",
        summary="Find artifacts by words.",
        params=Search,
        result=list[Artifact],
        handler=search,
        arguments=("words",),
    ),
    Operation(
        noun="artifact",
        verb="show",
        summary="Show an artifact: what its manifest says.",
        params=Named,
        result=Details,
        handler=show,
        arguments=("artifact",),
    ),
    Operation(
        noun="artifact",
        verb="lineage",
        summary="Show what an artifact comes from, and what came of it.",
        params=Kinship,
        result=Lineage,
        handler=lineage,
        arguments=("artifact",),
    ),
    Operation(
        noun="artifact",
        verb="tag",
        summary="Put your own tags on an artifact, or take them off.",
        params=Tags,
        result=Artifact,
        handler=tag,
        arguments=("artifact", "tags"),
    ),
    Operation(
        noun="artifact",
        verb="add",
        summary="Register an artifact by the CID of its manifest.",
        params=Add,
        result=Progress | Added,
        handler=add,
        is_stream=True,
        arguments=("cid",),
    ),
    Operation(
        noun="artifact",
        verb="rm",
        summary="Forget an artifact, and let go of its blocks.",
        params=Named,
        result=Done,
        handler=rm,
        arguments=("artifact",),
    ),
    Operation(
        noun="artifact",
        verb="rebuild",
        summary="Fill the catalog again from the blocks that are here.",
        params=Nothing,
        result=Rebuilt,
        handler=rebuild,
    ),
)
