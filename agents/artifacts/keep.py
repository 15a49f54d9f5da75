"""What holds an artifact on this node: pins, which say that it is registered, and the note of the user's own tags.

Both are in the store's packs, like the manifests' blocks: so the catalog can be lost (see `rebuild`).
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from agents.adapters.ports import Ports
from agents.errors import UnknownName
from protocols.adapters import Tag
from protocols.entry import Entry, stored_entry
from storage.catalog.artifacts import MAX_OWN_TAGS, ArtifactRow
from storage.cid import Cid
from storage.codecs import dag_cbor
from storage.errors import TooLarge
from storage.pins import PinKind, PinState

PIN: Final = "artifact"
TAGS_NOTE: Final = "artifact-tags/"


class BadTag(UnknownName):
    """A tag is 1 to 32 small letters, digits, dots, dashes and underscores, and begins with a letter or digit."""

    code = "invalid_name"


class _OwnTags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tags: list[str]


def pin_manifest(ports: Ports, entry: Entry) -> None:
    """Hold the manifest's two blocks: from now on the artifact is registered. Its parents may never come here."""
    for block in entry.blocks:
        ports.pins.add(block.cid, pin_name(entry.cid), PinKind.DIRECT, PinState.COMPLETE)


def pin_files(ports: Ports, manifest: Cid, files: Cid, state: PinState) -> None:
    """Hold what the artifact consists of."""
    ports.pins.add(files, pin_name(manifest), PinKind.RECURSIVE, state)


def let_go(ports: Ports, row: ArtifactRow) -> None:
    """Show it no more, hold its blocks no more, forget it. What others need of them stays held by those."""
    entry = stored_entry(ports.store, row.manifest)
    ports.roots.withdraw(entry.cid, without=entry.prev)
    ports.store.delete_note(_note_of(row.manifest))
    for cid in (*([row.files] if row.files else []), entry.body_cid, entry.cid):
        ports.pins.remove(cid, pin_name(row.manifest))  # the entry last: as long as it is pinned, this is not done
    ports.catalog.artifacts.remove(row.manifest)


def put_own_tags(ports: Ports, manifest: Cid, tags: Iterable[str]) -> None:
    """Put the user's tags on an artifact, in place of those before. Raises: BadTag, TooLarge, NotFound."""
    wanted = sorted(set(tags))
    for tag in wanted:
        try:
            msgspec.convert(tag, Tag)
        except msgspec.ValidationError:
            raise BadTag(
                f"{tag[:64]!r} is no tag: use small letters, digits, dots, dashes and underscores, 32 at most"
            ) from None
    if len(wanted) > MAX_OWN_TAGS:
        raise TooLarge(f"{len(wanted)} tags for {manifest}; the limit is {MAX_OWN_TAGS}")
    with ports.catalog.transaction():  # a tag that the note cannot take is not in the catalog either
        ports.catalog.artifacts.set_own_tags(manifest, wanted)
        if wanted:
            ports.store.put_note(_note_of(manifest), dag_cbor.encode({"tags": wanted}))
        else:
            ports.store.delete_note(_note_of(manifest))


def own_tags(ports: Ports) -> dict[Cid, list[str]]:
    """The tags that the user put on artifacts, as the notes have them."""
    notes = ports.store.notes(TAGS_NOTE)
    return {
        Cid.parse(key.removeprefix(TAGS_NOTE)): msgspec.convert(dag_cbor.decode(value), _OwnTags).tags
        for key, value in notes.items()
    }


def pin_name(manifest: Cid) -> str:
    """Each artifact holds for itself: any may name the files of another."""
    return f"{PIN}/{manifest}"


def _note_of(manifest: Cid) -> str:
    return f"{TAGS_NOTE}{manifest}"
