"""Models with an adapter in them: merged, or as a file for other programs."""

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from daemon.api.operation import Operation, Params, Result

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.app import Node

Adapter = Annotated[
    str,
    Meta(
        max_length=4096,
        description="What `covey train` called it, NAME or NAME@VERSION of a published one, a CID, or a PEFT folder.",
        extra={"path_if_there": True},
    ),
]


class Merge(Params, frozen=True):
    """A base model, an adapter for it, and the folder to write."""

    model: Annotated[str, Meta(max_length=64, description="The base model: the name that it has here.")]
    adapter: Adapter
    out: Annotated[str, Meta(max_length=4096, description="The folder to write.", extra={"path": True})]


class Export(Params, frozen=True):
    """A model of the Llama family, and the file to write."""

    model: Annotated[str, Meta(max_length=64, description="The name that it has here.")]
    out: Annotated[str, Meta(max_length=4096, description="The .gguf file to write.", extra={"path": True})]
    adapter: Adapter | None = None
    dtype: Annotated[
        Literal["f32", "f16", "bf16", "int8"], Meta(description="Of the weights; int8 is Q8_0, a quarter of f32.")
    ] = "f16"


class Merged(Result, frozen=True):
    """The merged model: another model, with a fingerprint of its own. `n_layers` were changed."""

    folder: str
    fingerprint: str
    n_params: int
    n_layers: int


class Exported(Result, frozen=True):
    """The file."""

    path: str
    n_bytes: int
    n_tensors: int


async def merge(node: "Node", params: Merge) -> Merged:
    """Merge, in the workshop: chats and trainings go on."""
    import os

    from agents.backend import check_here
    from agents.engine import messages
    from agents.models import find_model

    row = check_here(find_model(node.catalog, params.model, params.model))
    name = os.path.basename(params.out.rstrip("/"))[:200]
    adapter = str(_folder(node, params.adapter))
    request = messages.Merge(
        model=row.folder, adapter=adapter, adapter_name=_called(params.adapter), out=params.out, name=name
    )
    with node.desk.keeping(row, "a merge"):
        done = await node.workshop.one(request)
    assert isinstance(done, messages.Merged)
    node.events.note("model_merged", {"model": row.name, "folder": params.out, "fingerprint": done.card.fingerprint})
    return Merged(
        folder=params.out,
        fingerprint=done.card.fingerprint,
        n_params=done.card.n_params,
        n_layers=done.n_layers,
    )


async def export(node: "Node", params: Export) -> Exported:
    """Export, in the workshop: chats and trainings go on."""
    from agents.backend import check_here
    from agents.engine import messages
    from agents.models import find_model

    row = check_here(find_model(node.catalog, params.model, params.model))
    adapter = str(_folder(node, params.adapter)) if params.adapter else None
    request = messages.Export(
        model=row.folder,
        adapter=adapter,
        adapter_name=_called(params.adapter or ""),
        out=params.out,
        dtype=params.dtype,
        name=row.name,
    )
    with node.desk.keeping(row, "an export"):
        done = await node.workshop.one(request)
    assert isinstance(done, messages.Exported)
    node.events.note("model_exported", {"model": row.name, "path": done.path, "n_bytes": done.n_bytes})
    return Exported(path=done.path, n_bytes=done.n_bytes, n_tensors=done.n_tensors)


def _called(adapter: str) -> str:
    """What a merged model calls its adapter: its name here, of a folder the last part, and never where that is."""
    return adapter.rstrip("/").rpartition("/")[2][:64]


def _folder(node: "Node", adapter: str) -> "Path":
    """The folder that the user means. Raises: UnknownName."""
    from pathlib import Path

    from agents.errors import UnknownName
    from daemon.api.operations.adapter import _find

    trained = node.home.training / adapter
    if "/" not in adapter and trained.is_dir():
        return trained
    if Path(adapter).is_absolute() and Path(adapter).is_dir():
        return Path(adapter)
    row = _find(node, adapter)
    if row.folder is None:
        raise UnknownName(f"{row.name} v{row.version} is not here whole. Fetch it: covey adapter fetch {row.name}")
    return Path(row.folder)


OPERATIONS = (
    Operation(
        noun="model",
        verb="merge",
        summary="Put an adapter into its base model; write that as a model.",
        params=Merge,
        result=Merged,
        handler=merge,
        arguments=("model", "adapter", "out"),
        begins="merging {adapter} into {model} ...",
    ),
    Operation(
        noun="model",
        verb="export",
        summary="Write a model as GGUF, with an adapter in it if wanted.",
        params=Export,
        result=Exported,
        handler=export,
        arguments=("model", "out"),
        begins="exporting {model} ...",
    ),
)
