"""Where adapters stand as files, for the engine: `$COVEY_HOME/adapters/<manifest CID>/`, each whole and checked."""

import shutil
from functools import partial
from pathlib import Path

import msgspec

from agents.adapters.finite import check_finite
from agents.adapters.fits import Layers, read_layers
from agents.adapters.inspect import WEIGHTS_FILE, Inspection, check_complete, check_file, inspect_folder
from agents.adapters.manifests import read_stored
from agents.adapters.ports import Ports
from agents.engine.messages import ModelCard
from agents.errors import AgentError, BadAdapter, WrongBase
from protocols.adapters import Base, Manifest
from protocols.errors import Remote
from storage import unixfs
from storage.blockstore import Blockstore
from storage.catalog import Catalog
from storage.catalog.adapters import AdapterState
from storage.cid import Cid
from storage.durable import sync_folder
from storage.errors import StorageError


class Misstated(BadAdapter):
    """The adapter is not what its manifest says."""

    code = "misstated"


def put_on_shelf(ports: Ports, cid: Cid, manifest: Manifest) -> Path:
    """Write an adapter's files, whose blocks are here, and check them as files; return their folder.

    Raises: BadAdapter, Misstated, WrongBase; NotFound, InvalidBlock, StoreFull.
    """
    target = ports.folder / str(cid)
    if target.exists():  # exports appear whole or not at all, and only checked ones keep their name
        return target
    check_files(ports.store, manifest)
    ports.folder.mkdir(parents=True, exist_ok=True)
    unchecked = ports.folder / f".unchecked-{cid}"
    _discard(unchecked)
    try:
        unixfs.export(ports.store, manifest.files, unchecked)
        check_claims(inspect_folder(unchecked, *base_for(ports.catalog, manifest.base)), manifest)
        check_finite(unchecked / WEIGHTS_FILE)
        unchecked.rename(target)
        sync_folder(ports.folder)
    finally:
        _discard(unchecked)
    return target


def mend_shelf(ports: Ports) -> None:
    """At a start: clear away what a kill left half-written, and write again what is ready and has lost its folder."""
    for left in ports.folder.glob(".*"):
        _discard(left)
    for row in ports.catalog.adapters.query(state=AdapterState.READY):
        if row.folder is None or not Path(row.folder).exists():
            tell = partial(ports.emit, manifest=str(row.manifest), name=row.name, version=row.version)
            try:
                folder = put_on_shelf(ports, row.manifest, read_stored(ports.store, row.manifest)[1])
            except (AgentError, Remote, StorageError, OSError) as error:
                tell("adapter_lost", text=str(error))
                continue
            ready_unix_s = row.ready_unix_s or ports.unix_s()
            ports.catalog.adapters.set_state(row.manifest, AdapterState.READY, ready_unix_s, folder=str(folder))
            tell("adapter_restored", folder=str(folder))


def check_files(store: Blockstore, manifest: Manifest) -> None:
    """May these files be written to disk? Judged by their roots alone. Raises: BadAdapter, NotFound, InvalidBlock."""
    found: dict[str, int] = {}
    for entry in unixfs.list_dir(store, manifest.files):
        if entry.name not in found:
            check_file(entry.name, 0)  # the name first: a directory of a million others ends here
        about = unixfs.stat(store, entry.cid)
        is_regular = not about.is_directory and about.target is None
        check_file(entry.name, about.n_bytes, is_regular=is_regular)
        found[entry.name] = about.n_bytes
    check_complete(found)
    if sum(found.values()) != manifest.n_bytes:
        raise Misstated(f"its files have {sum(found.values())} bytes, its manifest says {manifest.n_bytes}")


def check_claims(found: Inspection, manifest: Manifest) -> None:
    """Is the adapter what its manifest says? Raises: Misstated."""
    for field in ("rank", "alpha", "targets", "n_params", "n_bytes"):
        is_so, said = getattr(found, field), getattr(manifest, field)
        if is_so != said:
            raise Misstated(f"its {field} is {is_so}, its manifest says {said}")


def base_for(catalog: Catalog, base: Base) -> tuple[ModelCard | None, Layers]:
    """The card of a model that takes adapters for `base`, where its shape is known (a backend's may not be), and the
    shapes of its layers. Raises: WrongBase."""
    for model in catalog.models.accepting(str(base.fingerprint)):
        card = msgspec.convert(model.card, ModelCard)
        if not card.hidden_size:
            continue
        if base.architecture != card.architecture:
            raise WrongBase(f"it was made for a {base.architecture}, {card.name} is a {card.architecture}")
        return card, read_layers(Path(model.folder)) if model.folder else {}
    return None, {}


def _discard(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
