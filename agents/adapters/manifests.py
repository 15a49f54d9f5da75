"""Manifests that stand in the store, the pins that hold them, and the rows that the catalog keeps of them."""

from collections.abc import Iterable
from typing import Final

from agents.adapters.ports import Ports
from protocols.adapters import Manifest, read_manifest
from protocols.entry import Entry, stored_entry
from storage.blockstore import Blockstore, Visibility
from storage.catalog.adapters import AdapterRow, AdapterState
from storage.cid import Cid
from storage.keys import PeerId
from storage.pins import PinKind, PinState

PIN: Final = "adapter"


def read_stored(store: Blockstore, cid: Cid) -> tuple[Entry, Manifest]:
    """The manifest whose entry block is `cid`. Raises: NotFound; Remote where it is not one."""
    entry = stored_entry(store, cid)
    return entry, read_manifest(entry.content)


def row_of(entry: Entry, manifest: Manifest, unix_s: float, *, is_own: bool = False) -> AdapterRow:
    """An adapter as the catalog keeps it."""
    return AdapterRow(
        manifest=entry.cid,
        name=manifest.name,
        base=str(manifest.base.fingerprint),
        publisher=entry.author,
        version=manifest.version,
        rank=manifest.rank,
        n_bytes=manifest.n_bytes,
        created_unix_s=manifest.created_unix_s,
        heard_unix_s=unix_s,
        tags=manifest.tags,
        metrics=manifest.metrics,
        is_own=is_own,
    )


def pin(ports: Ports, entry: Entry, manifest: Manifest, state: PinState) -> None:
    """Hold the adapter. Its parents, to which the entry links, are not held with it: they may never come here."""
    for cid in (entry.cid, entry.body_cid):
        ports.pins.add(cid, _pin_name(entry), PinKind.DIRECT, PinState.COMPLETE)
    ports.pins.add(manifest.files, _pin_name(entry), PinKind.RECURSIVE, state)


def unpin(ports: Ports, entry: Entry, manifest: Manifest) -> None:
    """Let go of the adapter's blocks; those that others need too stay held by them."""
    for cid in (manifest.files, entry.body_cid, entry.cid):
        ports.pins.remove(cid, _pin_name(entry))


def unpin_files(ports: Ports, entry: Entry, manifest: Manifest) -> None:
    """Let go of all but the manifest: that it is held alone says that the user removed the adapter."""
    ports.pins.remove(manifest.files, _pin_name(entry))


def pinned_state(ports: Ports, entry: Entry, manifest: Manifest) -> AdapterState:
    """How far an adapter whose manifest is held has come, as its pins tell it."""
    pin = ports.pins.get(manifest.files, _pin_name(entry))
    if pin is None:
        return AdapterState.REMOVED
    return AdapterState.READY if pin.state is PinState.COMPLETE else AdapterState.FETCHING


def _pin_name(entry: Entry) -> str:
    """Each manifest holds for itself: any may name the files of another."""
    return f"{PIN}/{entry.cid}"


def show(ports: Ports, entry: Entry, level: Visibility, members: Iterable[PeerId] = ()) -> None:
    """Let others see an artifact of our own, and take back what was wider. Its parents have levels of their own."""
    ports.roots.publish(entry.cid, level, members, without=entry.prev)


def take_back(
    ports: Ports, versions: Iterable[Cid], files: Cid, level: Visibility, members: Iterable[PeerId] = ()
) -> None:
    """Who may not see these files now sees them through none of our earlier manifests `versions` either."""
    now = frozenset(members)
    for version in versions:
        was, before = ports.roots.level(version), ports.roots.members(version)
        if was > level or (was == level and not before <= now):
            entry = stored_entry(ports.store, version)
            if entry.content.get("files") == files:
                show(ports, entry, level, now if was > level else before & now)


def hide(ports: Ports, entry: Entry) -> None:
    """Let nobody see an adapter any more, our own or one that was passed on."""
    ports.roots.withdraw(entry.cid, without=entry.prev)
