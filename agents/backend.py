"""The model of a backend among those of this node: a row of the catalog like any other, without a folder of weights."""

from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from agents.engine.messages import ModelCard
from agents.errors import BackendRefused
from agents.models import default_name
from storage.catalog import Catalog
from storage.catalog.models import ModelRow

SOURCE: Final = "backend:"


def is_backend(row: ModelRow) -> bool:
    """Does a server answer for this model?"""
    return row.source.startswith(SOURCE)


def check_here(row: ModelRow) -> ModelRow:
    """The row of a model whose weights this node has. Raises: BackendRefused for a backend's."""
    if is_backend(row):
        raise BackendRefused(
            f"{row.name} is the model of the backend, which has its weights: name a model of this node; "
            "those there are: covey model list"
        )
    return row


def name_of(catalog: Catalog, model: str) -> str:
    """What the backend's model is called here: as there, unless a model of this node has that name."""
    name = default_name(model)
    known = catalog.models.get(name)
    return name if known is None or is_backend(known) else f"{name[:56]}-backend"


def folder_of(models: Path, name: str) -> str:
    """What stands for the model where a folder is asked for; there is nothing in it."""
    return str(models / f".{name}.backend")


def note_backend(catalog: Catalog, models: Path, url: str, card: ModelCard, unix_s: float) -> ModelRow | None:
    """Put the backend's model into the catalog, or what is known of it by now; None where that is there already."""
    name = name_of(catalog, card.name)
    known = catalog.models.get(name)
    row = ModelRow(
        name=name,
        fingerprint=card.fingerprint,
        derived_from=card.derived_from,
        folder=folder_of(models, name),
        source=f"{SOURCE}{url}",
        card=msgspec.to_builtins(card),
        added_unix_s=known.added_unix_s if known else unix_s,
    )
    if row == known:
        return None
    catalog.models.upsert(row)
    return row


def forget_backends(catalog: Catalog, but: Collection[str] = ()) -> None:
    """Forget the models of backends that are configured no more."""
    for row in catalog.models.list():
        if is_backend(row) and row.name not in but:
            catalog.models.remove(row.name)
