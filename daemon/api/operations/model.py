"""The base models on this machine."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from daemon.api.operation import Done, Nothing, Operation, Params, Result

if TYPE_CHECKING:
    from daemon.app import Node
    from storage.catalog.models import ModelRow


class Import(Params, frozen=True):
    """A model to bring in."""

    source: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=4096,
            description="A folder, a .gguf file, wheel:NAME of an installed package, ORG/NAME of a hub, or tiny: a "
            "very small model that is trained on the spot, to try things out.",
            extra={"path_if_there": True},
        ),
    ]
    name: Annotated[str, Meta(max_length=64, description="What to call it here.")] | None = None


class Named(Params, frozen=True):
    """A model by its name here."""

    name: Annotated[str, Meta(max_length=64, description="What `covey model ls` calls it.")]


class Model(Result, frozen=True):
    """A base model. An adapter fits it when it names `fingerprint` or `derived_from` as its base."""

    name: str
    architecture: str
    n_params: int
    context_tokens: int
    dtype: str
    fingerprint: str
    derived_from: str | None
    licence: str | None
    source: str
    folder: str
    is_usual: bool


def described(node: "Node", row: "ModelRow") -> Model:
    """A row of the catalog as people see it."""
    from agents.models import card_of

    card = card_of(row)
    return Model(
        name=row.name,
        architecture=card.architecture,
        n_params=card.n_params,
        context_tokens=card.context_tokens,
        dtype=card.dtype,
        fingerprint=row.fingerprint,
        derived_from=row.derived_from,
        licence=card.licence,
        source=row.source,
        folder=row.folder,
        is_usual=row.name == node.config.engine.model,
    )


async def import_(node: "Node", params: Import) -> Model:
    """Bring a model in, once; adapters for it are listened for from then on."""
    from agents.models import default_name, import_model
    from daemon import wall

    name = params.name or default_name(params.source)
    row = await import_model(node.engine, node.catalog, node.home.models, params.source, name, wall.unix_s())
    node.events.note("model_imported", {"name": row.name, "fingerprint": row.fingerprint, "source": row.source})
    await node.adapters.listen()
    return described(node, row)


async def ls(node: "Node", _params: Nothing) -> list[Model]:
    """Every model."""
    return [described(node, row) for row in node.catalog.models.list()]


async def show(node: "Node", params: Named) -> Model:
    """One model."""
    from agents.models import find_model

    return described(node, find_model(node.catalog, params.name, node.config.engine.model))


async def rm(node: "Node", params: Named) -> Done:
    """Forget a model and delete its folder."""
    import shutil

    import trio

    from agents.models import find_model

    row = find_model(node.catalog, params.name, params.name)
    node.catalog.models.remove(row.name)
    node.desk.forget(row)
    await trio.to_thread.run_sync(lambda: shutil.rmtree(row.folder, ignore_errors=True))
    return Done(text=f"{row.name} is gone")


OPERATIONS = (
    Operation(
        noun="model",
        verb="import",
        summary="Bring a base model to this machine, once.",
        params=Import,
        result=Model,
        handler=import_,
        arguments=("source",),
        begins="importing {source}: this takes up to some minutes; `tiny` is trained on the spot ...",
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
        result=Done,
        handler=rm,
        arguments=("name",),
    ),
)
