"""Publish a model, dataset or checkpoint: add its files, sign its manifest, hold it, and show it to whom it is for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from agents.adapters.manifests import show, take_back
from agents.adapters.ports import Ports
from agents.artifacts.keep import pin_files, pin_manifest
from agents.artifacts.rows import artifact_row
from agents.errors import BadArtifact
from protocols.adapters import Audience, Base, Fact, audience_of
from protocols.artifacts import KINDS, PREVIOUS, Artifact, Parent, artifact_content, check_artifact, open_artifact
from protocols.entry import external_aad, make_entry, stored_entry
from protocols.errors import Malformed, ProtocolError
from storage import unixfs
from storage.blockstore import Visibility
from storage.catalog.artifacts import ArtifactRow
from storage.cid import Cid
from storage.errors import StorageError
from storage.keys import PeerId
from storage.pins import PinState
from storage.unixfs import COVEY_WEIGHTS


class Release(NamedTuple):
    """What the publisher says about an artifact. Without `version`: one more than the last one under this name.

    `base`, `derived_from` and `step` are for the kinds that have them. `members` are who may see it at MEMBERS.
    """

    kind: str
    name: str
    version: int | None = None
    parents: Sequence[Parent] = ()
    capabilities: Sequence[str] = ()
    tags: Sequence[str] = ()
    metrics: Mapping[str, float] = {}
    facts: Mapping[str, Fact] = {}
    description: str = ""
    licence: str | None = None
    base: Base | None = None
    derived_from: Cid | None = None
    step: int | None = None
    visibility: Visibility = Visibility.FLOCK
    members: Sequence[PeerId] = ()

    @property
    def audience(self) -> Audience:
        """To whom those who fetch it may pass it on."""
        return audience_of(self.visibility)


def store_artifact(
    ports: Ports, path: Path, release: Release, on_bytes: Callable[[int], None] = lambda n_bytes: None
) -> tuple[ArtifactRow, bool]:
    """Publish a file or folder, durably; is it new?

    The same files with the same words under the same name again change no more than who may see them.
    Raises: BadArtifact, StorageError, OSError.
    """
    if release.kind not in KINDS:
        raise BadArtifact(f"{release.kind!r} is no kind of artifact: choose from {', '.join(KINDS)}")
    sizes: list[int] = []

    def count(n_bytes: int) -> None:
        sizes.append(n_bytes)
        on_bytes(n_bytes)

    with ports.store.lease():  # nothing of it is swept before it is pinned
        files = unixfs.add_path(ports.store, path, COVEY_WEIGHTS, count)
        with ports.numbering:
            versions = ports.catalog.artifacts.find(kind=release.kind, name=release.name, is_own=True)
            versions.sort(key=lambda row: row.version, reverse=True)
            artifact = _artifact(ports, files, sum(sizes), release, versions)
            row = _same(ports, versions, artifact, release)
            if row is not None:
                show(ports, stored_entry(ports.store, row.manifest), release.visibility, release.members)
            published = row or _store(ports, artifact, release, versions)
            take_back(ports, [row.manifest for row in versions], files, release.visibility, release.members)
            return published, row is None


def _store(ports: Ports, artifact: Artifact, release: Release, versions: Sequence[ArtifactRow]) -> ArtifactRow:
    """Sign the manifest, hold it and its files, show it, and note it. Raises: BadArtifact, TooLarge."""
    if versions and artifact.version <= versions[0].version:
        last = versions[0].version
        raise BadArtifact(f"{release.name} has version {last} already: publish it as {last + 1}")
    kind, scope = artifact.kind, artifact.name
    entry = make_entry(
        ports.identity,
        kind,
        scope,
        ports.catalog.sequences.next(external_aad(kind, scope)),
        [parent.entry for parent in artifact.parents],
        artifact_content(artifact),
    )
    row = artifact_row(entry, is_own=True)
    ports.store.put_many(entry.blocks)
    with ports.catalog.transaction():  # a full catalog refuses before anything is held, and nothing is half there
        ports.catalog.artifacts.put(row)
        pin_files(ports, entry.cid, artifact.files, PinState.COMPLETE)
        pin_manifest(ports, entry)
        show(ports, entry, release.visibility, release.members)
    return row


def _same(ports: Ports, versions: Sequence[ArtifactRow], artifact: Artifact, release: Release) -> ArtifactRow | None:
    """The version that says the same already."""
    for row in versions:
        if release.version not in (None, row.version):
            continue
        try:
            before = open_artifact(stored_entry(ports.store, row.manifest))
        except (StorageError, ProtocolError):  # its blocks are gone: it is published anew
            continue
        if _comparable(before) == _comparable(artifact):
            return row
    return None


def _comparable(artifact: Artifact) -> dict[str, Any]:
    """What a publisher says, without what follows from when it is said."""
    parents = tuple(parent for parent in artifact.parents if parent.role != PREVIOUS)
    settled = msgspec.structs.replace(artifact, version=1, created_unix_s=0, parents=parents)
    return artifact_content(settled)


def _artifact(ports: Ports, files: Cid, n_bytes: int, release: Release, versions: Sequence[ArtifactRow]) -> Artifact:
    """The manifest to sign. Raises: BadArtifact."""
    fields: dict[str, Any] = {
        "base": release.base,
        "derived_from": release.derived_from,
        "step": release.step,
    }
    form = KINDS[release.kind]
    unfit = [name for name, value in fields.items() if value is not None and name not in form.__struct_fields__]
    if unfit:
        raise BadArtifact(f"a {release.kind} has no {' and no '.join(unfit)}")
    artifact = form(
        name=release.name,
        version=release.version or (versions[0].version + 1 if versions else 1),
        files=files,
        n_bytes=n_bytes,
        parents=_parents(ports, release, versions),
        capabilities=tuple(sorted(set(release.capabilities))),
        tags=tuple(sorted(set(release.tags))),
        metrics=dict(release.metrics),
        facts=dict(release.facts),
        description=release.description,
        licence=release.licence,
        audience=release.audience,
        created_unix_s=int(ports.unix_s()),
        **{name: value for name, value in fields.items() if name in form.__struct_fields__},
    )
    try:
        return check_artifact(artifact)
    except Malformed as error:
        raise BadArtifact(f"it cannot be published so: {error}") from None


def _parents(ports: Ports, release: Release, versions: Sequence[ArtifactRow]) -> tuple[Parent, ...]:
    """What was named, and the version before where as many may see that one. Raises: BadArtifact."""
    parents = set(release.parents)
    for parent in parents:
        if ports.store.has(parent.entry) and ports.roots.level(parent.entry) < release.visibility:
            # Whoever may see an entry may see what it links to.
            raise BadArtifact(
                f"its parent {parent.entry} is seen by fewer than it: publish the parent to as many first"
            )
    before = [row for row in versions if release.version is None or row.version < release.version]
    if before and ports.roots.level(before[0].manifest) >= release.visibility:
        parents.add(Parent(entry=before[0].manifest, role=PREVIOUS))
    return tuple(sorted(parents, key=lambda parent: (parent.entry, parent.role)))
