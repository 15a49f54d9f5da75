"""How models, datasets and checkpoints are described: manifests, each the content of a signed entry.

The entry's kind is `model`, `dataset` or `checkpoint`, its scope the name that its publisher gives the artifact: under
one publisher, kind and name the versions grow. Its `prev` are the entries that it was made from, which the manifest
names again with the part that each played. Adapters, which are announced too, have a manifest of their own
(`protocols.adapters`); `read_artifact` tells of both what they have in common. Nothing here is announced: a manifest is
fetched by its CID, and verified as any entry is.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from protocols import adapters, envelope
from protocols.adapters import Audience, Base, Fact, Label, Name, Tag, Version
from protocols.content import content_of, read_content
from protocols.entry import MAX_PREV, Entry
from protocols.errors import Malformed, TooBig
from storage.cid import Cid
from storage.errors import InvalidCid

MAX_MANIFEST_BYTES: Final = 64 << 10
MAX_ARTIFACT_BYTES: Final = 1 << 46  # the most that a walk follows
MAX_DESCRIPTION_CHARS: Final = 4096
MAX_CAPABILITIES: Final = 32

Role = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}\Z")]
Metrics = Annotated[dict[Label, float], Meta(max_length=adapters.MAX_FACTS)]
Tags = Annotated[tuple[Tag, ...], Meta(max_length=adapters.MAX_TAGS)]

# What an adapter's one `parent` was for it.
PREVIOUS: Final = "previous"
# And the parts of what is told by its content. Facts with these names (of an adapter: of its training) are CIDs of what
# it was made from; a fact `data_name` says what its publisher calls the `data`.
BASE: Final = "base"
DERIVED_FROM: Final = "derived_from"
ORIGINS: Final = ("data", "checkpoint", "merged_base", "merged_adapter")


class Parent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The entry of an artifact that another was made from, and its part in that: `previous`, `source`, `data` ..."""

    entry: Cid
    role: Role


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every kind says. `files` is the root of a UnixFS file or directory, `n_bytes` the length of its files.

    `capabilities` are what it can be used for, `facts` and `metrics` its publisher's word. `audience` is to whom a node
    that fetched it may pass it on, as with adapters.
    """

    kind: ClassVar[str]

    format: Literal[1] = 1
    name: Name
    version: Version
    files: Cid
    n_bytes: Annotated[int, Meta(ge=0, le=MAX_ARTIFACT_BYTES)]
    parents: Annotated[tuple[Parent, ...], Meta(max_length=MAX_PREV)] = ()
    capabilities: Annotated[tuple[Tag, ...], Meta(max_length=MAX_CAPABILITIES)] = ()
    tags: Tags = ()
    metrics: Metrics = {}
    facts: Annotated[dict[Label, Fact], Meta(max_length=adapters.MAX_FACTS)] = {}
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_CHARS)] = ""
    licence: Label | None = None
    audience: Audience = "flock"
    created_unix_s: Annotated[int, Meta(ge=0, le=envelope.MAX_UNIX_S)]


class Dataset(Artifact, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Data to train or to judge with."""

    kind: ClassVar[str] = "dataset"


class Model(Artifact, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model. `base` says which: adapters fit it that name its fingerprint, or the one that it is `derived_from`."""

    kind: ClassVar[str] = "model"

    base: Base | None = None
    derived_from: Cid | None = None


class Checkpoint(Artifact, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training's state after `step` steps, of the model `base`."""

    kind: ClassVar[str] = "checkpoint"

    base: Base | None = None
    step: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None


KINDS: Final[Mapping[str, type[Artifact]]] = {form.kind: form for form in (Model, Dataset, Checkpoint)}


class Origin(NamedTuple):
    """What an artifact was made from, told by its content alone: the root of files, or a model's fingerprint."""

    content: Cid
    role: str
    label: str = ""


class Described(NamedTuple):
    """What manifests of every kind, the adapters' too, have in common. `base` is the text of a fingerprint.

    `parents` are links to other entries, `origins` contents that the manifest names: its publisher's word, both.
    """

    kind: str
    name: str
    version: int
    base: str | None
    files: Cid
    n_bytes: int
    parents: tuple[Parent, ...]
    origins: tuple[Origin, ...]
    capabilities: tuple[str, ...]
    tags: tuple[str, ...]
    metrics: Mapping[str, float]
    description: str
    licence: str | None
    audience: Audience
    created_unix_s: int


def artifact_content(artifact: Artifact) -> dict[str, Any]:
    """The manifest as a DAG-CBOR value, links as `Cid`."""
    return content_of(artifact)


def check_artifact(artifact: Artifact) -> Artifact:
    """The same manifest, when others will accept it. Raises: Malformed."""
    return _convert(artifact.kind, artifact_content(artifact))


def open_artifact(entry: Entry) -> Artifact:
    """The manifest of a model, dataset or checkpoint in an entry. Raises: Malformed, TooBig."""
    _check_size(entry)
    if entry.kind not in KINDS:
        raise Malformed(f"an entry of kind {entry.kind} describes none of {', '.join(KINDS)}")
    artifact = _convert(entry.kind, entry.content)
    if entry.scope != artifact.name:
        raise Malformed("an artifact's scope is not its name")
    if entry.prev != tuple(sorted({parent.entry for parent in artifact.parents})):
        raise Malformed("an artifact links to other entries than its parents")
    return artifact


def describe(entry: Entry) -> Described:
    """What an artifact of any kind is, by its entry; of an adapter too. Raises: Malformed, TooBig."""
    if entry.kind == adapters.KIND:
        return _describe_adapter(entry)
    artifact = open_artifact(entry)
    base = artifact.base if isinstance(artifact, Model | Checkpoint) else None
    return Described(
        kind=entry.kind,
        name=artifact.name,
        version=artifact.version,
        base=None if base is None else str(base.fingerprint),
        files=artifact.files,
        n_bytes=artifact.n_bytes,
        parents=artifact.parents,
        origins=_origins_of(artifact),
        capabilities=artifact.capabilities,
        tags=artifact.tags,
        metrics=artifact.metrics,
        description=artifact.description,
        licence=artifact.licence,
        audience=artifact.audience,
        created_unix_s=artifact.created_unix_s,
    )


def _describe_adapter(entry: Entry) -> Described:
    _check_size(entry)
    manifest = adapters.read_manifest(entry.content)
    base = str(manifest.base.fingerprint)
    if entry.scope != base:
        raise Malformed("an adapter's scope is not its base")
    if entry.prev != (() if manifest.parent is None else (manifest.parent,)):
        raise Malformed("an adapter links to other entries than its parent")
    return Described(
        kind=entry.kind,
        name=manifest.name,
        version=manifest.version,
        base=base,
        files=manifest.files,
        n_bytes=manifest.n_bytes,
        parents=() if manifest.parent is None else (Parent(entry=manifest.parent, role=PREVIOUS),),
        origins=(_base_origin(manifest.base), *_told(manifest.training)),
        capabilities=manifest.tags,  # its manifest has no list of its own, and tags say what an adapter is good at
        tags=manifest.tags,
        metrics=manifest.metrics,
        description="",
        licence=manifest.licence,
        audience=manifest.audience,
        created_unix_s=manifest.created_unix_s,
    )


def _origins_of(artifact: Artifact) -> tuple[Origin, ...]:
    match artifact:
        case Checkpoint(base=Base() as base):
            return (_base_origin(base), *_told(artifact.facts))
        case Model(derived_from=Cid() as source):
            return (Origin(source, DERIVED_FROM), *_told(artifact.facts))
        case _:
            return _told(artifact.facts)


def _base_origin(base: Base) -> Origin:
    return Origin(base.fingerprint, BASE, base.name)


def _told(facts: Mapping[str, Fact]) -> tuple[Origin, ...]:
    """The contents that facts name: those of `ORIGINS`, where their values are CIDs."""
    told = []
    for role in ORIGINS:
        label = facts.get(f"{role}_name", "")
        try:
            told.append(Origin(Cid.parse(str(facts[role])), role, label if isinstance(label, str) else ""))
        except (KeyError, InvalidCid):
            continue
    return tuple(told)


def _check_size(entry: Entry) -> None:
    if len(entry.body_block) > MAX_MANIFEST_BYTES:
        raise TooBig(f"a manifest of {len(entry.body_block)} bytes; the limit is {MAX_MANIFEST_BYTES}")


def _convert(kind: str, content: Mapping[str, Any]) -> Artifact:
    return read_content(content, KINDS[kind], f"the manifest of a {kind}", every_field=True)
