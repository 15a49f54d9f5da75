"""Artifacts as operations take and tell them."""

from typing import Annotated, Literal

from msgspec import Meta

from daemon.api.audience import Members, Who
from daemon.api.operation import Params, Result

Reference = Annotated[str, Meta(max_length=256, description="NAME, NAME@VERSION, or the CID of its manifest.")]
CidText = Annotated[str, Meta(max_length=512, description="The CID of its manifest.")]
Kind = Literal["adapter", "model", "dataset", "checkpoint"]
Text = Annotated[str, Meta(max_length=256)]
Texts = tuple[Annotated[str, Meta(max_length=256)], ...]
Words = tuple[Annotated[str, Meta(max_length=64)], ...]


class List(Params, frozen=True):
    """Which artifacts; everything given must fit."""

    kind: Kind | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    base: Annotated[str, Meta(max_length=256, description="Of this model: its name here, or a fingerprint.")] | None = (
        None
    )
    publisher: Annotated[str, Meta(max_length=512, description="Those of this peer (id or name).")] | None = None
    capability: Annotated[str, Meta(max_length=64, description="What it can do; an adapter's tags count.")] | None = (
        None
    )
    tag: Annotated[str, Meta(max_length=64, description="The publisher's tag, or your own.")] | None = None
    metric: Annotated[Texts, Meta(max_length=16, description="What metrics must be, as in 'loss<2.5'")] = ()
    best: Annotated[str, Meta(max_length=160, description="Sort by this metric: loss, or accuracy:max.")] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Search(List, frozen=True, kw_only=True):
    """Words, each from its beginning, and what else must fit."""

    words: Annotated[
        Texts,
        Meta(max_length=16, description="Words of its name, tags and description; all must be there."),
    ]


class Publish(Params, frozen=True):
    """What to publish: `flock` are the peers that you trust, `public` is everybody."""

    path: Annotated[str, Meta(max_length=4096, description="A file or folder.", extra={"path": True})]
    kind: Literal["model", "dataset", "checkpoint"]
    name: Annotated[
        str,
        Meta(max_length=64, description="What others call it: up to 64 letters, digits, dots, dashes, underscores."),
    ]
    version: Annotated[int, Meta(ge=1, description="Default: one more than the last.")] | None = None
    parent: Annotated[
        Texts, Meta(max_length=63, description="What it was made from: NAME, CID, or ROLE=NAME as in data=NAME")
    ] = ()
    base: Annotated[str, Meta(max_length=64, description="Its base model: the name that it has here.")] | None = None
    step: Annotated[int, Meta(ge=0, description="Of a checkpoint: steps trained.")] | None = None
    capability: Annotated[Words, Meta(max_length=32, description="What it can be used for")] = ()
    tag: Annotated[Words, Meta(max_length=16, description="Words to find it by")] = ()
    metric: Annotated[Texts, Meta(max_length=32, description="NAME=NUMBER")] = ()
    description: Annotated[str, Meta(max_length=4096)] = ""
    licence: Annotated[str, Meta(max_length=128)] | None = None
    visibility: Who = "flock"
    members: Members = ()


class Named(Params, frozen=True):
    """An artifact."""

    artifact: Reference


class Kinship(Params, frozen=True):
    """An artifact, and how many ancestors and descendants to list at most, of each."""

    artifact: Reference
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Tags(Params, frozen=True):
    """Your own tags of an artifact: nobody else sees them."""

    artifact: Reference
    tags: Annotated[Words, Meta(max_length=64, description="Tags to put on it.")] = ()
    remove: Annotated[Words, Meta(max_length=64, description="Tags to take off it")] = ()


class Add(Params, frozen=True):
    """Whose manifest to fetch and register."""

    cid: CidText
    is_whole: Annotated[bool, Meta(description="Fetch and keep its files too.")] = False
    provider: Annotated[
        tuple[Annotated[str, Meta(max_length=512)], ...],
        Meta(max_length=16, description="Addresses of peers that have it."),
    ] = ()
    timeout_s: Annotated[float, Meta(gt=0, le=86_400, description="Give up when no block came for so long.")] = 60.0


class Artifact(Result, frozen=True):
    """An artifact. `manifest` names all of it; `state` is how far an adapter has come here.

    `own_tags` are those that you put on it.
    """

    kind: str
    name: str
    version: int
    publisher: str
    is_own: bool
    n_bytes: int
    base: str | None
    tags: list[str]
    own_tags: list[str]
    capabilities: list[str]
    metrics: dict[str, float]
    created_unix_s: float
    state: str | None
    manifest: str
    publisher_name: str | None = None


class Kept(Result, frozen=True):
    """An artifact that another was made from; `role` is its part in that."""

    manifest: str
    role: str


class Told(Result, frozen=True):
    """What an artifact was made from, told by its content: the root of files, or a model's fingerprint."""

    content: str
    role: str
    label: str


class Details(Artifact, frozen=True, kw_only=True):
    """An artifact with all that is known of it. `is_verified`: its signature was checked."""

    description: str
    licence: str | None
    files: str | None
    visibility: str
    is_verified: bool
    parents: list[Kept]
    origins: list[Told]


class Relative(Result, frozen=True):
    """An ancestor or descendant, `n_steps` away. `name` is null where nothing tells it.

    `role` is what the older one was for the younger of the two, `of` the one that is a step nearer. `is_artifact`:
    `manifest` is one that is known here. It may be elsewhere, or name a content that nobody published here: the root
    of files, or a model's fingerprint; then `name` is what its publisher, or this node, calls that.
    """

    n_steps: int
    is_artifact: bool
    role: str
    kind: str | None
    name: str | None
    version: int | None
    manifest: str
    of: str


class Lineage(Result, frozen=True):
    """Where an artifact comes from and what was made from it, as far as this node knows.

    `is_whole` unless there is more than was listed.
    """

    manifest: str
    ancestors: list[Relative]
    descendants: list[Relative]
    is_whole: bool


class Published(Result, frozen=True, tag_field="type", tag="published"):
    """It is signed and stored; `is_new` unless it was before. `files` is what it consists of."""

    kind: str
    name: str
    version: int
    n_bytes: int
    visibility: str
    manifest: str
    files: str
    is_new: bool
    warnings: list[str]


class Added(Result, frozen=True, tag_field="type", tag="added"):
    """The manifest is here and verified. To write its files out: covey get MANIFEST."""

    kind: str
    name: str
    version: int
    publisher: str
    n_bytes: int
    manifest: str
    files: str | None
    fetched_bytes: int
    is_whole: bool


class Problem(Result, frozen=True):
    """An artifact that could not be restored, or not whole, and why."""

    manifest: str
    text: str


class Rebuilt(Result, frozen=True):
    """What was read from blocks again; `n_new` of them were missing, as were `n_models` models."""

    n_artifacts: int
    n_new: int
    n_models: int
    problems: list[Problem]
