"""What the name in a request means: a base model, an adapter on its base, or an encoder; and the list of them all."""

from typing import Final, NamedTuple

from agents.chat.events import Adapter
from agents.chat.ready import named_adapters, resolve
from agents.encoders import Encoder
from agents.errors import UnknownName
from agents.models import card_of
from daemon.api.openai.problems import invalid, no_model
from daemon.api.openai.replies import Json
from storage.catalog import Catalog
from storage.catalog.models import ModelRow
from storage.cid import Cid

OWNER: Final = "covey"
_POLICIES: Final = ("latest", "none")  # what a chat follows; here a name is a name


class Served(NamedTuple):
    """Who answers. `fingerprint` tells exactly which: the CID of the adapter's manifest, or of the base."""

    model: ModelRow
    adapter: Adapter | None

    @property
    def folder(self) -> str | None:
        """The adapter as the engine takes it."""
        return self.adapter.folder if self.adapter else None

    @property
    def fingerprint(self) -> str:
        """By content."""
        return self.adapter.cid if self.adapter else self.model.fingerprint


def served(catalog: Catalog, name: str, usual: str, encoder: Encoder | None) -> Served:
    """The base model of that name, or the adapter by its name, NAME@VERSION or CID. Raises: Refusal."""
    models = _models(catalog, usual)
    for model in models:
        if model.name == name:
            return Served(model, None)
    if encoder is not None and name == encoder.name:
        raise invalid(f"{name} is an encoder: it makes embeddings, and answers nothing", "model")
    if name in _POLICIES or name.startswith("best:"):
        raise no_model(name)
    for model in models:
        try:
            return Served(model, resolve(catalog, model, name))
        except UnknownName:
            continue
    raise no_model(name)


def listed(catalog: Catalog, usual: str, encoder: Encoder | None) -> list[Json]:
    """Every name that a request can use, as `/v1/models` has it: the usual model first, each with its adapters.

    The newest version of an adapter goes by its name alone, the others by NAME@VERSION. `root` is what the name stands
    for, by content (its CID); `parent` is the base model that an adapter works on. A base says too how much it reads
    (`max_model_len`, as vLLM calls it), and has its whole `card`.
    """
    models = _models(catalog, usual)
    taken = {model.name for model in models}
    entries = []
    for model in models:
        about = {"max_model_len": card_of(model).context_tokens, "card": model.card}
        entries.append(_entry(model.name, model.added_unix_s, OWNER, model.fingerprint, None) | about)
        for wish, adapter in named_adapters(catalog, model):
            name = wish if wish not in taken else f"{adapter.name}@{adapter.version}"
            if name in taken:  # it fits several models, and is on the first
                continue
            taken.add(name)
            row = catalog.adapters.get(Cid.parse(adapter.cid))
            created_unix_s = row.created_unix_s if row else 0.0
            entries.append(_entry(name, created_unix_s, adapter.publisher, adapter.cid, model.name))
    if encoder is not None and encoder.name not in taken:
        entries.append(_entry(encoder.name, 0.0, OWNER, encoder.name, None))
    return entries


def one_listed(catalog: Catalog, name: str, usual: str, encoder: Encoder | None) -> Json:
    """One name as the list has it, or an adapter by its version or CID. Raises: Refusal."""
    for entry in listed(catalog, usual, encoder):
        if entry["id"] == name:
            return entry
    found = served(catalog, name, usual, encoder)
    assert found.adapter is not None, "every base model is in the list"
    row = catalog.adapters.get(Cid.parse(found.adapter.cid))
    created_unix_s = row.created_unix_s if row else 0.0
    return _entry(name, created_unix_s, found.adapter.publisher, found.adapter.cid, found.model.name)


def _models(catalog: Catalog, usual: str) -> list[ModelRow]:
    """The usual one first: an adapter that fits several goes on it."""
    return sorted(catalog.models.list(), key=lambda model: (model.name != usual, model.name))


def _entry(name: str, created_unix_s: float, owner: str, root: str, parent: str | None) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": int(created_unix_s),
        "owned_by": owner,
        "root": root,
        "parent": parent,
    }
