"""What to do about an announcement, and does a manifest keep its promises? Pure decisions over facts."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from protocols import adapters as wire
from protocols.adapters import Announcement, Manifest, read_manifest
from protocols.entry import Entry
from storage.catalog.adapters import AdapterRow, AdapterState
from storage.cid import Cid
from storage.keys import PeerId

TRUST_KIND: Final = "adapters"
MAX_BYTES: Final = wire.MAX_ADAPTER_BYTES
_SETTLED: Final = (AdapterState.READY, AdapterState.REFUSED, AdapterState.REMOVED)


@dataclass(frozen=True, slots=True)
class Accept:
    """Fetch the manifest."""


@dataclass(frozen=True, slots=True)
class AlreadyKnown:
    """Nothing to do: it is ready, in work, superseded, or was refused or removed for good."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Go no further. `code` is stable; `text` is for people and says what to do next."""

    code: str
    text: str


Decision = Accept | AlreadyKnown | Refuse


class Facts(NamedTuple):
    """What this node knows when an announcement comes.

    `is_settled`: it is being fetched, or was refused. `known` is the row of its manifest; `versions` are the manifests
    known under the same publisher, name and base.
    """

    me: PeerId
    is_trusted: bool
    is_settled: bool = False
    known: AdapterRow | None = None
    versions: tuple[AdapterRow, ...] = ()
    max_bytes: int = MAX_BYTES


def decide(announcement: Announcement, author: PeerId, facts: Facts) -> Decision:
    """Is this announcement worth a fetch?"""
    if author == facts.me or facts.is_settled:
        return AlreadyKnown()
    if not facts.is_trusted:
        return Refuse(
            "untrusted", f"its publisher is not trusted. To trust it: covey peer trust {author} --kinds adapters"
        )
    if facts.known is not None and facts.known.state in _SETTLED:
        return AlreadyKnown()
    if announcement.n_bytes > facts.max_bytes:
        return Refuse("too_big", f"it has {announcement.n_bytes} bytes; the limit is {facts.max_bytes}")
    others = [row for row in facts.versions if row.manifest != announcement.manifest]
    if any(row.version == announcement.version for row in others):
        return Refuse(
            "version_conflict",
            f"version {announcement.version} of {announcement.name} is another adapter already. Its publisher has to"
            " raise the version",
        )
    if any(row.version > announcement.version and row.state is AdapterState.READY for row in others):
        return AlreadyKnown()
    return Accept()


def judge_manifest(
    entry: Entry, announcement: Announcement, author: PeerId, base: Cid, accepted: Collection[str]
) -> Manifest | Refuse:
    """Is the entry what `author` announced on the topic of `base`, for a model that stands here?

    `accepted` are the fingerprints that local models accept. Raises: Malformed.
    """
    if entry.author != author:
        return Refuse("forged", f"its manifest is signed by {entry.author}, not by its announcer")
    if entry.kind != wire.KIND:
        return Refuse("bad_manifest", f"it is an entry of kind {entry.kind}, not {wire.KIND}")
    if len(entry.body_block) > wire.MAX_MANIFEST_BYTES:
        return Refuse(
            "too_big", f"its manifest has {len(entry.body_block)} bytes; the limit is {wire.MAX_MANIFEST_BYTES}"
        )
    manifest = read_manifest(entry.content)
    if entry.prev != (() if manifest.parent is None else (manifest.parent,)):
        return Refuse("bad_manifest", "it links to other entries than its parent")
    fingerprint = str(manifest.base.fingerprint)
    if entry.scope != fingerprint or manifest.base.fingerprint != base or fingerprint not in accepted:
        return Refuse(
            "wrong_base",
            f"it was made for {manifest.base.name or 'another model'} ({fingerprint}). To use it, add that model: "
            f"covey model pull {fingerprint}",
        )
    for field in ("name", "version", "n_bytes"):
        said, is_so = getattr(announcement, field), getattr(manifest, field)
        if said != is_so:
            return Refuse("misstated", f"it was announced with {field} {said}, its manifest says {is_so}")
    return manifest
