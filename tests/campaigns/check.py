"""What has to be true of a folder after a crash. Each breach is a sentence."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from storage.blockstore import MadeBlock, Visibility
from storage.cid import Cid
from storage.dag import reach
from storage.errors import StorageError
from storage.packs import PackBlockstore, Recovery
from storage.pins import PinState
from tests.campaigns.model import Files, Model
from tests.campaigns.world import PACK_BYTES, World

_PROBE = b"written after the crash "


def check(folder: Path, model: Model, probe: int) -> list[str]:
    """Open the store in `folder`, compare it with the model, use it, and rebuild it."""
    try:
        world = World(folder)
    except (StorageError, OSError) as error:
        return [f"start-up failed: {error!r}"]
    problems: list[str] = []
    try:
        problems += _blocks(world, model)
        problems += _pins(world, model)
        problems += _notes(world, model)
        problems += _levels(world, model)
        problems += _files(world, model)
        problems += _rows(world, model)
        problems += _goes_on(world, probe)
        problems += _rebuild(world)
    except (StorageError, OSError) as error:
        problems.append(f"failed in use: {error!r}")
    finally:
        world.close()
    return problems


def _blocks(world: World, model: Model) -> Iterator[str]:
    for cid, data in model.must.items():
        try:
            if world.store.get(cid) != data:
                yield f"wrong bytes for {cid}"
        except StorageError as error:
            yield f"an acknowledged block is lost: {error}"
    for cid in world.store.cids():
        if cid in model.must or cid in model.may:
            continue
        if not world.store.get(cid).startswith(_PROBE):
            yield f"a deleted or unknown block is back: {cid}"


def _pins(world: World, model: Model) -> Iterator[str]:
    found: dict[Cid, PinState | None] = {pin.cid: pin.state for pin in world.pins.list()}
    for cid in model.pins.keys() | found.keys():
        if found.get(cid) not in model.pins.get(cid, [None]):
            yield f"the pin of {cid} is {found.get(cid)}, not one of {model.pins.get(cid)}"
    for cid, state in found.items():
        if state is PinState.COMPLETE and any(below.n_bytes is None for below in reach(world.store, cid)):
            yield f"the pin of {cid} dangles"


def _notes(world: World, model: Model) -> Iterator[str]:
    found = world.store.notes("note/")
    for name in model.notes.keys() | found.keys():
        if found.get(name) not in model.notes.get(name, [None]):
            yield f"the note {name} is not as acknowledged"


def _levels(world: World, model: Model) -> Iterator[str]:
    if world.roots.hidden:
        yield f"published roots cannot be shown: {world.roots.hidden}"
    least: dict[Cid, Visibility] = {}
    most = dict(model.floors)
    for root, levels in model.roots.items():
        if world.roots.level(root) not in levels:
            yield f"the root {root} is {world.roots.level(root).name}, not one of {levels}"
        for cid in model.dags[root]:
            least[cid] = max(least.get(cid, Visibility.PRIVATE), min(levels))
            most[cid] = max(most.get(cid, Visibility.PRIVATE), max(levels))
    for cid in model.must:
        seen = world.store.seen(cid)
        if seen is not None and not least.get(cid, 0) <= seen.level <= most.get(cid, 0):
            yield f"{cid} is shown at {seen.level.name}"


def _files(world: World, model: Model) -> Iterator[str]:
    for name, possible in model.files.items():
        if name.startswith("keys/") and None in possible[1:]:
            continue  # it is being erased: a part of it may be overwritten
        if _tree(world.files / name) not in possible:
            yield f"the file {name} is not as acknowledged"


def _rows(world: World, model: Model) -> Iterator[str]:
    """The catalog, which is synced by itself, says of each artifact what was acknowledged."""
    for cid, versions in model.rows.items():
        row = world.catalog.artifacts.get(cid)
        if (row.version if row is not None else None) not in versions:
            yield f"the catalog's row of {cid} is {row}, not one of {versions}"


def _tree(path: Path) -> Files | None:
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {"": path.read_bytes()} if path.exists() else None


def _goes_on(world: World, probe: int) -> Iterator[str]:
    block = MadeBlock.of(_PROBE + b"%d" % probe)
    world.store.put_many([block])
    world.close()
    world.open()
    if world.store.recovery != Recovery():
        yield f"a clean stop leaves something to mend: {world.store.recovery}"
    if world.store.get(block.cid) != block.data:
        yield "what is written after the crash is lost"


def _rebuild(world: World) -> Iterator[str]:
    """What the index says is what the packs say."""
    folder = world.folder.parent / "rebuilt"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "packs").mkdir(parents=True)
    for pack in (world.folder / "store" / "packs").glob("*.pack"):
        os.link(pack, folder / "packs" / pack.name)
    rebuilt = PackBlockstore(folder, max_pack_bytes=PACK_BYTES)
    try:
        if rebuilt.recovery.damaged_packs or rebuilt.recovery.cut_bytes:
            yield f"more than whole records in a pack in use: {rebuilt.recovery.text()}"
        if set(rebuilt.cids()) != set(world.store.cids()):
            yield f"a rebuilt index has other blocks: {set(rebuilt.cids()) ^ set(world.store.cids())}"
        if rebuilt.notes("") != world.store.notes(""):
            yield "a rebuilt index has other notes"
    finally:
        rebuilt.close()
