"""Publish an adapter: look into its folder, add its files, sign its manifest, show it, and have it announced."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from agents.adapters.finite import check_finite
from agents.adapters.fits import Layers
from agents.adapters.inspect import WEIGHTS_FILE, Inspection, inspect_folder
from agents.adapters.manifests import pin, read_stored, row_of, show, take_back
from agents.adapters.ports import Ports
from agents.adapters.shelf import put_on_shelf
from agents.artifacts.rows import artifact_row
from agents.engine.messages import ModelCard
from agents.errors import BadAdapter
from protocols import adapters as wire
from protocols.adapters import Audience, Base, Manifest, audience_of, check_manifest, manifest_content
from protocols.bitswap.shell import offer_below
from protocols.entry import external_aad, make_entry
from protocols.errors import Malformed
from storage import unixfs
from storage.blockstore import Visibility
from storage.catalog.adapters import AdapterOrder, AdapterRow, AdapterState
from storage.cid import Cid
from storage.keys import PeerId
from storage.pins import PinState


class Release(NamedTuple):
    """What the publisher says about an adapter. Without `version`: one more than the last one under this name.

    `base` is the card of the model that it was trained on, `layers` the shapes of that one's layers. `members` are who
    may see it at Visibility.MEMBERS.
    """

    name: str
    base: ModelCard
    layers: Layers | None = None
    version: int | None = None
    parent: Cid | None = None
    tags: Sequence[str] = ()
    metrics: Mapping[str, float] = {}
    licence: str | None = None
    visibility: Visibility = Visibility.FLOCK
    members: Sequence[PeerId] = ()

    @property
    def audience(self) -> Audience:
        """To whom those who fetch it may pass it on."""
        return audience_of(self.visibility)


async def publish(ports: Ports, folder: Path, release: Release, published: trio.MemorySendChannel[Cid]) -> AdapterRow:
    """Publish the PEFT folder; the same files under the same name again change no more than who may see them.

    Returns its row. Raises: BadAdapter, WrongBase, StoreFull.
    """
    row, is_new = await ports.exchange.work(partial(store_adapter, ports, folder, release))
    if is_new:
        ports.emit(
            "adapter_published",
            manifest=str(row.manifest),
            name=row.name,
            version=row.version,
            base=row.base,
            n_bytes=row.n_bytes,
            visibility=release.visibility.name.lower(),
        )
    await offer_below(ports.exchange, row.manifest)
    if release.visibility >= Visibility.FLOCK:
        await published.send(row.manifest)
    return row


def store_adapter(ports: Ports, folder: Path, release: Release) -> tuple[AdapterRow, bool]:
    """All of publishing that needs no network, durably; is it new? Raises: BadAdapter, WrongBase, StoreFull."""
    inspection = inspect_folder(folder, release.base, release.layers)
    check_finite(folder / WEIGHTS_FILE)
    with ports.store.lease(), ports.numbering:  # nothing of it is swept before it is pinned
        files = unixfs.add_path(ports.store, folder, unixfs.COVEY_WEIGHTS)
        versions = _versions(ports, release)
        same = _same(ports, versions, files, release)
        if same is not None:
            show(ports, read_stored(ports.store, same.manifest)[0], release.visibility, release.members)
        row = same or _store(ports, _manifest(ports, inspection, files, release, versions), release)
        take_back(ports, [row.manifest for row in versions], files, release.visibility, release.members)
        return row, same is None


def _store(ports: Ports, manifest: Manifest, release: Release) -> AdapterRow:
    """Sign the manifest and make it ready here."""
    scope = str(manifest.base.fingerprint)
    entry = make_entry(
        ports.identity,
        wire.KIND,
        scope,
        ports.catalog.sequences.next(external_aad(wire.KIND, scope)),
        [] if manifest.parent is None else [manifest.parent],
        manifest_content(manifest),
    )
    ports.store.put_many(entry.blocks)
    # The folder may have changed since it was looked into: what counts is what the blocks hold.
    shelf = put_on_shelf(ports, entry.cid, manifest)
    pin(ports, entry, manifest, PinState.COMPLETE)
    show(ports, entry, release.visibility, release.members)
    with ports.catalog.transaction():
        ports.catalog.artifacts.put(artifact_row(entry, is_own=True))
        ports.catalog.adapters.upsert(row_of(entry, manifest, ports.unix_s(), is_own=True))
        ports.catalog.adapters.set_state(entry.cid, AdapterState.READY, ports.unix_s(), folder=str(shelf))
    row = ports.catalog.adapters.get(entry.cid)
    assert row is not None
    return row


def _versions(ports: Ports, release: Release) -> list[AdapterRow]:
    """What this node published under the name for the base before, the highest version first."""
    return ports.catalog.adapters.query(
        is_own=True, name=release.name, base=release.base.base, order=AdapterOrder.VERSION
    )


def _same(ports: Ports, versions: Sequence[AdapterRow], files: Cid, release: Release) -> AdapterRow | None:
    """The version that holds exactly these files already, for the same audience."""
    for row in versions:
        if row.state is AdapterState.READY and release.version in (None, row.version):
            before = read_stored(ports.store, row.manifest)[1]
            if before.files == files and before.audience == release.audience:
                return row
    return None


def _manifest(
    ports: Ports, inspection: Inspection, files: Cid, release: Release, versions: Sequence[AdapterRow]
) -> Manifest:
    """The manifest to sign. Raises: BadAdapter."""
    base = Base(
        fingerprint=Cid.parse(release.base.base), name=release.base.name, architecture=release.base.architecture
    )
    version, parent = release.version, release.parent
    if versions:
        last = versions[0]
        if version is not None and version <= last.version:
            raise BadAdapter(f"{release.name} has version {last.version} already: publish it as {last.version + 1}")
        version = version or last.version + 1
        if (
            parent is None
            and last.state is AdapterState.READY
            and ports.roots.level(last.manifest) >= release.visibility
        ):
            parent = last.manifest
    if parent is not None and ports.store.has(parent) and ports.roots.level(parent) < release.visibility:
        # Whoever may see an entry may see what it links to.
        raise BadAdapter(f"its parent {parent} is seen by fewer than it: publish the parent to as many first")
    try:
        return check_manifest(
            Manifest(
                name=release.name,
                version=version or 1,
                base=base,
                files=files,
                n_bytes=inspection.n_bytes,
                n_params=inspection.n_params,
                rank=inspection.rank,
                alpha=inspection.alpha,
                targets=inspection.targets,
                parent=parent,
                training=dict(inspection.training),
                metrics=dict(release.metrics),
                tags=tuple(sorted(set(release.tags))),
                licence=release.licence,
                audience=release.audience,
                created_unix_s=int(ports.unix_s()),
            )
        )
    except Malformed as error:
        raise BadAdapter(f"it cannot be published so: {error}") from None
