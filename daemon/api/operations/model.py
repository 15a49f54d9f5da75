"""The base models on this machine: brought in from anywhere, shared with peers, let go of."""

from typing import TYPE_CHECKING, Final

from daemon.api.artifacts import Published
from daemon.api.audience import audience
from daemon.api.models import Loaded, Model, Named, Publish, Pull, Pulled, Removed, Resident
from daemon.api.operation import Nothing, Operation, Progress, reporting

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.artifacts.models import Unfinished
    from agents.engine.messages import EngineStatus, ImportStep
    from daemon.api.progress import Report
    from daemon.app import Node
    from protocols.net import PeerInfo
    from storage.catalog.artifacts import ArtifactRow
    from storage.catalog.models import ModelRow
    from storage.cid import Cid

STATUS_TIMEOUT_S: Final = 2.0
NAME: Final = r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:@([0-9]{1,9}))?"


def described(node: "Node", row: "ModelRow") -> Model:
    """A row of the catalog as people see it."""
    from pathlib import Path

    from agents.artifacts.models import n_bytes_of, published
    from agents.models import card_of

    card = card_of(row)
    artifacts = published(node.adapters.ports, row)
    return Model(
        name=row.name,
        state="ready",
        architecture=card.architecture,
        n_params=card.n_params,
        n_bytes=n_bytes_of(Path(row.folder)),
        context_tokens=card.context_tokens,
        dtype=card.dtype,
        fingerprint=row.fingerprint,
        derived_from=row.derived_from,
        merged=_merged(card.merged_base_name or card.merged_base, card.merged_adapter_name or card.merged_adapter),
        licence=card.licence,
        source=row.source,
        folder=row.folder,
        is_usual=row.name == node.config.engine.model,
        manifest=str(artifacts[0].manifest) if artifacts else None,
    )


def _merged(base: str | None, adapter: str | None) -> str | None:
    return f"{base} with {adapter}" if base and adapter else None


async def ls(node: "Node", _params: Nothing) -> list[Model]:
    """Every model, those too whose fetch was begun and not finished."""
    import trio

    from agents.artifacts.models import unfinished

    def models() -> list[Model]:
        ready = [described(node, row) for row in node.catalog.models.list()]
        return ready + [_partial(item) for item in unfinished(node.adapters.ports)]

    return await trio.to_thread.run_sync(models)


async def show(node: "Node", params: Named) -> Model:
    """One model."""
    import trio

    from agents.models import find_model

    def model() -> Model:
        return described(node, find_model(node.catalog, params.name, node.config.engine.model))

    return await trio.to_thread.run_sync(model)


async def rm(node: "Node", params: Named) -> Removed:
    """Delete a model, its blocks too; one whose fetch is unfinished as well. Raises: InUse."""
    from functools import partial

    from agents.artifacts.keep import let_go
    from agents.artifacts.models import remove_model, unfinished
    from agents.backend import check_here
    from agents.models import find_model

    work, ports = node.exchange.work, node.adapters.ports
    for begun in await work(partial(unfinished, ports)):
        if begun.row.name == params.name and node.catalog.models.get(params.name) is None:
            await work(partial(let_go, ports, begun.row))
            return Removed(name=params.name, freed_bytes=0)
    row = check_here(find_model(node.catalog, params.name, params.name))
    _refuse_in_use(node, row)
    node.desk.forget(row)
    freed_bytes = await work(partial(remove_model, ports, row))
    node.events.note("model_removed", {"name": row.name, "fingerprint": row.fingerprint})
    return Removed(name=row.name, freed_bytes=freed_bytes)


async def ps(node: "Node", _params: Nothing) -> list[Loaded]:
    """The model in memory, with what the engine tells of it."""
    from agents.engine.messages import EngineStatus, Status
    from agents.errors import AgentError

    row = node.desk.loaded(node.catalog.models.list())
    if node.engine.pid is None or row is None:
        return []
    import trio

    status: EngineStatus | None = None
    with trio.move_on_after(STATUS_TIMEOUT_S):
        try:
            reply = await node.engine.one(Status())
            status = reply if isinstance(reply, EngineStatus) else None
        except AgentError:  # an engine that does not tell, or that died meanwhile
            pass
    return [_loaded(node, row, status)]


def _loaded(node: "Node", row: "ModelRow", status: "EngineStatus | None") -> Loaded:
    users, pid = node.desk.users(row), node.engine.pid
    if status is None:
        return Loaded(model=row.name, used_by=users, pid=pid, adapters=[])
    names = {adapter.folder: adapter for adapter in node.catalog.adapters.query()}
    adapters = [
        Resident(
            name=names[item.folder].name if item.folder in names else item.folder,
            version=names[item.folder].version if item.folder in names else None,
            n_bytes=item.n_bytes,
            rank=item.rank,
            n_running=item.n_running,
        )
        for item in status.adapters
    ]
    return Loaded(
        model=row.name,
        used_by=users,
        pid=pid,
        device=status.device,
        dtype=status.dtype,
        resident_bytes=status.resident_bytes,
        cache_bytes=status.cache_bytes,
        cache_budget_bytes=status.cache_budget_bytes,
        n_running=status.n_running,
        n_waiting=status.n_waiting,
        tokens_per_s=status.tokens_per_s,
        adapters=adapters,
    )


def _refuse_in_use(node: "Node", row: "ModelRow") -> None:
    from agents.errors import InUse

    n_chats = sum(chat.model.name == row.name for chat in node.chats)
    users = [*node.desk.users(row), *([f"{n_chats} open chat{'s' * (n_chats > 1)}"] if n_chats else [])]
    if users:
        how = "/exit ends a chat, Ctrl-C pauses a training"
        raise InUse(f"{row.name} is in use by {' and '.join(users)}. End that first: {how}")


@reporting
async def pull(node: "Node", params: Pull, report: "Report") -> Pulled:
    """Bring a model in, once; adapters for it are listened for from then on."""
    import os

    import msgspec
    import trio

    from agents.artifacts.models import Wish, pull_model
    from agents.models import default_name, import_model
    from daemon import wall
    from protocols.net import PeerInfo

    manifest, offering = None, list[PeerInfo]()
    if not (os.path.exists(params.source) or params.source == "tiny" or params.source.startswith("wheel:")):
        named = await trio.to_thread.run_sync(_manifest_of, node, params.source)
        manifest, offering = await _offered(node, params.source, named)
    if manifest is None:
        name = params.name or default_name(params.source)

        def on_step(step: "ImportStep") -> None:
            report(Progress(step=step.step, n_done=step.n_done, n_total=step.n_total, unit=step.unit))

        row = await import_model(
            node.workshop, node.catalog, node.home.models, params.source, name, wall.unix_s(), on_step
        )
    else:
        providers = [*map(PeerInfo.parse, params.provider), *offering, *map(PeerInfo, node.network.peers())]
        wish = Wish(params.name, params.is_shared, providers, params.timeout_s)
        row = await pull_model(node.adapters.ports, node.home.models, manifest, wish, _teller(report))
    node.events.note("model_pulled", {"name": row.name, "fingerprint": row.fingerprint, "source": row.source})
    await node.adapters.listen()
    model = await trio.to_thread.run_sync(described, node, row)
    return Pulled(**msgspec.structs.asdict(model))


def _teller(report: "Report") -> "Callable[[str, int, int | None], None]":
    """What passes on how far it is, and ends a thread's work when the command was left."""
    from contextlib import suppress

    import trio

    def tell(step: str, n_done: int, n_total: int | None) -> None:
        with suppress(RuntimeError):  # on the event loop itself
            trio.from_thread.check_cancelled()
        report(Progress(step=step, n_done=n_done, n_total=n_total))

    return tell


def _manifest_of(node: "Node", source: str) -> "Cid | None":
    """The manifest that `source` names, by its CID or by a name that is known here; None for any other source."""
    from agents.artifacts.models import CAPABILITY, KIND
    from daemon.artifacts import find_artifact
    from storage.cid import Cid
    from storage.errors import InvalidCid

    try:
        return Cid.parse(source)
    except InvalidCid:
        name = source.rpartition("@")[0] or source
        known = node.catalog.artifacts.find(kind=KIND, name=name, capability=CAPABILITY, limit=1)
        return find_artifact(node.catalog, source).manifest if known else None


async def _offered(node: "Node", source: str, named: "Cid | None") -> "tuple[Cid | None, list[PeerInfo]]":
    """The manifest of a model that a trusted peer offers by this name, or for adapters with this base."""
    import re
    from functools import partial

    from agents.artifacts.offers import find_offer
    from protocols.models import Ask
    from storage.cid import DAG_CBOR

    if named is not None:
        is_known = await node.exchange.work(partial(node.catalog.artifacts.get, named)) is not None
        if is_known or named.codec != DAG_CBOR:
            return named, []
        found = await find_offer(node.adapters.ports, Ask(base=named))
    elif name := re.fullmatch(NAME, source):
        found = await find_offer(node.adapters.ports, Ask(name=name[1]), int(name[2]) if name[2] else None)
    else:
        return None, []
    return (found[0].manifest, found[1]) if found else (named, [])


@reporting
async def publish(node: "Node", params: Publish, report: "Report") -> Published:
    """Check its files, store them as blocks, sign the manifest, and show it to whom it is for."""
    from pathlib import Path

    from agents.artifacts.models import Words, n_bytes_of, store_model
    from agents.backend import check_here
    from agents.models import find_model
    from daemon.api.operations.artifact import shown
    from daemon.api.progress import in_thread

    row = check_here(find_model(node.catalog, params.model, params.model))
    level, members = await audience(node, params.visibility, params.members)
    words = Words(params.name, params.version, params.tag, params.description, params.licence, level, members)

    def store(on_bytes: "Callable[[int], None]") -> "tuple[ArtifactRow, bool]":
        return store_model(node.adapters.ports, row, words, on_bytes)

    stored, is_new = await in_thread(store, f"adding {row.name}", n_bytes_of(Path(row.folder)), report)
    return await shown(node, stored, level, report, is_new=is_new)


def _partial(item: "Unfinished") -> Model:
    row, model = item
    assert model.base is not None

    def fact(name: str) -> int:
        value = model.facts.get(name)
        return value if isinstance(value, int) else 0

    return Model(
        name=row.name,
        state="partial",
        architecture=model.base.architecture,
        n_params=fact("n_params"),
        n_bytes=model.n_bytes,
        context_tokens=fact("context_tokens"),
        dtype=str(model.facts.get("dtype")),
        fingerprint=str(model.base.fingerprint),
        derived_from=str(model.derived_from) if model.derived_from else None,
        merged=None,
        licence=model.licence,
        source=str(row.manifest),
        folder=None,
        is_usual=False,
        manifest=str(row.manifest),
    )


OPERATIONS = (
    Operation(
        noun="model",
        verb="pull",
        summary="Bring a base model to this machine, once.",
        params=Pull,
        result=Progress | Pulled,
        handler=pull,
        is_stream=True,
        arguments=("source",),
    ),
    Operation(
        noun="model",
        verb="publish",
        summary="Sign a base model, store it, show it to whom it is for.",
        params=Publish,
        result=Progress | Published,
        handler=publish,
        is_stream=True,
        arguments=("model",),
    ),
    Operation(
        noun="model",
        verb="ls",
        summary="List the base models here.",
        params=Nothing,
        result=list[Model],
        handler=ls,
    ),
    Operation(
        noun="model",
        verb="ps",
        summary="Show what is in memory: the model, its adapters, their use.",
        params=Nothing,
        result=list[Loaded],
        handler=ps,
    ),
    Operation(
        noun="model",
        verb="show",
        summary="Show a base model: its fingerprint, size and source.",
        params=Named,
        result=Model,
        handler=show,
        arguments=("name",),
    ),
    Operation(
        noun="model",
        verb="rm",
        summary="Delete a base model from this machine.",
        params=Named,
        result=Removed,
        handler=rm,
        arguments=("name",),
    ),
)
