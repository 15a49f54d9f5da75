"""Fill the catalog again from blocks: what is pinned as an artifact is read, verified and noted, as at first.

A pin under the name of an artifact is the record that it is registered here; so content that the user merely pinned, or
that a peer's content links to, does not come in by this door. What no block holds is not restored: see
storage/FORMAT.md, "Catalog".
"""

from dataclasses import dataclass, field
from pathlib import Path

from agents.adapters import manifests
from agents.adapters.manifests import pinned_state, row_of
from agents.adapters.ports import Ports
from agents.adapters.shelf import put_on_shelf
from agents.artifacts import keep
from agents.artifacts.rows import artifact_row
from agents.errors import AgentError
from agents.models import rebuild_models
from protocols import adapters as wire
from protocols.entry import Entry, stored_entry
from protocols.errors import Remote
from storage.catalog.adapters import AdapterState
from storage.cid import Cid
from storage.errors import StorageError
from storage.pins import PinKind


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild came to. `problems` are artifacts that could not be read, or are not here whole, and why."""

    n_artifacts: int = 0
    n_new: int = 0
    n_models: int = 0
    problems: dict[Cid, str] = field(default_factory=dict)


def needs_rebuild(ports: Ports) -> bool:
    """Is the catalog new, or from a version that did not read manifests?"""
    return not ports.catalog.artifacts.find(with_removed=True, limit=1) or bool(ports.catalog.artifacts.unverified())


def rebuild(ports: Ports, models: Path) -> Rebuilt:
    """Read every registered manifest again, check its signature, and note what it says; `models` is their folder."""
    rebuilt = Rebuilt(n_models=rebuild_models(ports.catalog, models, ports.unix_s()))
    for manifest in _registered(ports):
        try:
            entry = stored_entry(ports.store, manifest)
            is_new = _note(ports, entry)
        except (StorageError, Remote) as error:
            rebuilt.problems[manifest] = str(error)
            continue
        rebuilt.n_artifacts += 1
        rebuilt.n_new += is_new
        problem = _settle_adapter(ports, entry) if entry.kind == wire.KIND else None
        if problem is not None:
            rebuilt.problems[manifest] = problem
    for manifest, tags in keep.own_tags(ports).items():
        if ports.catalog.artifacts.get(manifest) is not None:
            ports.catalog.artifacts.set_own_tags(manifest, tags)
    return rebuilt


def _registered(ports: Ports) -> list[Cid]:
    """The manifests that are held as artifacts, each by a pin of its own name."""
    names = (manifests.PIN, keep.PIN)
    return sorted(
        pin.cid
        for pin in ports.pins.list()
        if pin.kind is PinKind.DIRECT and pin.name in {f"{name}/{pin.cid}" for name in names}
    )


def _note(ports: Ports, entry: Entry) -> bool:
    return ports.catalog.artifacts.put(artifact_row(entry, is_own=entry.author == ports.identity.peer_id))


def _settle_adapter(ports: Ports, entry: Entry) -> str | None:
    """Note how far an adapter has come, as its pins tell it. Returns: what is wrong with it, if anything is."""
    if ports.catalog.adapters.get(entry.cid) is not None:
        return None
    manifest = wire.read_manifest(entry.content)
    state, folder, problem = pinned_state(ports, entry, manifest), None, None
    if state is AdapterState.READY:
        try:
            folder = str(put_on_shelf(ports, entry.cid, manifest))
        except (AgentError, Remote, StorageError, OSError) as error:
            state, problem = AdapterState.FETCHING, str(error)
    created_unix_s = float(manifest.created_unix_s)  # when it was heard of, no block says
    is_own = entry.author == ports.identity.peer_id
    with ports.catalog.transaction():
        ports.catalog.adapters.upsert(row_of(entry, manifest, created_unix_s, is_own=is_own))
        ports.catalog.adapters.set_state(entry.cid, state, created_unix_s, folder=folder)
    return problem
