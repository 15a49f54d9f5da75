"""Base models as operations take and tell them."""

from typing import Annotated, Literal

from msgspec import Meta

from daemon.api.audience import Members, Who
from daemon.api.operation import Params, Result

Words = tuple[Annotated[str, Meta(max_length=64)], ...]


class Pull(Params, frozen=True):
    """A model to bring in."""

    source: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=4096,
            description="A folder, a .gguf file, wheel:NAME of an installed package, ORG/NAME of a hub; of a model "
            "that a trusted peer published its CID, its name, or the base that an adapter asks for; or tiny: a very "
            "small model that is trained on the spot, to try things out.",
            extra={"path_if_there": True},
        ),
    ]
    name: Annotated[str, Meta(max_length=64, description="What to call it here.")] | None = None
    is_shared: Annotated[
        bool, Meta(description="From a peer: keep its blocks too, for others; takes the room twice.")
    ] = False
    provider: Annotated[
        tuple[Annotated[str, Meta(max_length=512)], ...],
        Meta(max_length=16, description="Addresses of peers that have it."),
    ] = ()
    timeout_s: Annotated[float, Meta(gt=0, le=86_400, description="Give up when no block came for so long.")] = 60.0


class Named(Params, frozen=True):
    """A model by its name here."""

    name: Annotated[str, Meta(max_length=64, description="What `covey model ls` calls it.")]


class Publish(Params, frozen=True):
    """A model to publish: `flock` are the peers that you trust, `public` is everybody."""

    model: Annotated[str, Meta(max_length=64, description="What `covey model ls` calls it.")]
    name: Annotated[str, Meta(max_length=64, description="What others call it (default: as here).")] | None = None
    version: Annotated[int, Meta(ge=1, description="Default: one more than the last.")] | None = None
    tag: Annotated[Words, Meta(max_length=16, description="Words to find it by")] = ()
    description: Annotated[str, Meta(max_length=4096)] = ""
    licence: Annotated[str, Meta(max_length=128, description="Default: as its source says.")] | None = None
    visibility: Who = "flock"
    members: Members = ()


class Model(Result, frozen=True):
    """A base model. An adapter fits it when it names `fingerprint` or `derived_from` as its base.

    `state` is partial while some of it is still with a peer: pull it again to go on. `manifest` is what it was
    published or pulled as; its `n_bytes` are those of its files, beside which there may be blocks. `merged` tells of
    which model and adapter it was made, if of such.
    """

    name: str
    state: Literal["ready", "partial"]
    architecture: str
    n_params: int
    n_bytes: int
    context_tokens: int
    dtype: str
    fingerprint: str
    derived_from: str | None
    merged: str | None
    licence: str | None
    source: str
    folder: str | None
    is_usual: bool
    manifest: str | None


class Pulled(Model, frozen=True, tag_field="type", tag="pulled"):
    """It stands here, complete and checked."""


class Removed(Result, frozen=True):
    """It is gone from this node. `freed_bytes` are those of its files; blocks that nothing holds go with `repo gc`."""

    name: str
    freed_bytes: int


class Resident(Result, frozen=True):
    """An adapter in memory."""

    name: str
    version: int | None
    n_bytes: int
    rank: int
    n_running: int


class Loaded(Result, frozen=True):
    """What is in memory. What the engine does not tell is null; `used_by` is what works with the model now."""

    model: str
    used_by: list[str]
    pid: int | None
    adapters: list[Resident]
    device: str | None = None
    dtype: str | None = None
    resident_bytes: int | None = None
    cache_bytes: int | None = None
    cache_budget_bytes: int | None = None
    n_running: int | None = None
    n_waiting: int | None = None
    tokens_per_s: float | None = None
