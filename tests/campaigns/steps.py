"""The seeded workload: a table of steps. Each is planned from the model alone, so that a parent knows what a child did.

A plan is what the step changes and how it is carried out; None where there is nothing to do it with.
"""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from storage import durable
from storage.blockstore import MadeBlock, Visibility
from storage.cid import Cid
from storage.collect import collect
from storage.errors import StorageError
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from storage.pins import PinState
from storage.sealed.keyring import Keyring
from storage.sealed.keys import commitment, make_root
from storage.sealed.opener import open_sealed
from storage.sealed.root import PREFIX_BYTES, Content, Root
from storage.sealed.sealer import seal_path
from storage.sealed.writer import export_sealed
from storage.unixfs.exporter import export
from storage.unixfs.importer import add_bytes, add_path
from tests.campaigns.model import Effect, Files, Model
from tests.campaigns.upkeep import collect_beside_a_writer, damage_and_verify, evict, register, unregister
from tests.campaigns.world import SMALL_CHUNKS, Planned, World
from tests.storage.losing import lose


class Step(NamedTuple):
    """One thing to do, and what it changes."""

    name: str
    effect: Effect
    run: Callable[[World], object]


Plan = Callable[[Model, Random], Planned]


def _some(chance: Random, cids: list[Cid], most: int) -> list[Cid]:
    return chance.sample(sorted(cids), min(len(cids), chance.randint(1, most)))


def put_small(model: Model, chance: Random) -> Planned:
    blocks = [MadeBlock.of(chance.randbytes(chance.randrange(200))) for _ in range(chance.randint(1, 40))]
    floor = chance.choice([Visibility.PRIVATE, Visibility.PRIVATE, Visibility.FLOCK])
    return Effect(puts=dict(blocks), floor=floor), lambda world: world.store.put_many(blocks, floor)


def put_large(model: Model, chance: Random) -> Planned:
    blocks = [MadeBlock.of(chance.randbytes(chance.randrange(30_000))) for _ in range(chance.randint(1, 3))]
    return Effect(puts=dict(blocks)), lambda world: world.store.put_many(blocks)


def put_again(model: Model, chance: Random) -> Planned:
    known = model.must | model.may
    blocks = [MadeBlock(cid, known[cid]) for cid in _some(chance, list(known), 10)] if known else []

    def run(world: World) -> None:
        for block in blocks:
            with suppress(StorageError):  # one that the disk changed is noticed when it is read
                world.store.get(block.cid)
        world.store.put_many(blocks)

    return (Effect(puts=dict(blocks)), run) if blocks else None


def add(model: Model, chance: Random) -> Planned:
    data = chance.randbytes(chance.randrange(60_000))
    scratch = MemoryBlockstore()
    root = add_bytes(scratch, data, SMALL_CHUNKS)
    puts = {cid: scratch.get(cid) for cid in scratch.cids()}

    def run(world: World) -> None:
        with world.store.lease():
            add_bytes(world.store, data, SMALL_CHUNKS)
            world.pins.add(root, state=PinState.COMPLETE)

    return Effect(puts=puts, pins={root: PinState.COMPLETE}, dag={root: frozenset(puts)}), run


def fetch(model: Model, chance: Random) -> Planned:
    """Wanted first, then the leaves come one by one, the root between them; complete at the end."""
    data = chance.randbytes(chance.randrange(4_001, 20_000))
    scratch = MemoryBlockstore()
    root = add_bytes(scratch, data, SMALL_CHUNKS)
    puts = {cid: scratch.get(cid) for cid in scratch.cids()}

    def run(world: World) -> None:
        world.pins.add(root)
        world.pins.add(root, state=PinState.FETCHING)
        for cid, data in puts.items():
            world.store.put_many([MadeBlock(cid, data)])
        world.pins.add(root, state=PinState.COMPLETE)

    states = Effect(pins={root: PinState.WANTED}, dag={root: frozenset(puts)}), Effect(pins={root: PinState.FETCHING})
    for state in states:
        model.begin(state)
    return Effect(puts=puts, pins={root: PinState.COMPLETE}, dag={root: frozenset(puts)}), run


def unpin(model: Model, chance: Random) -> Planned:
    held = [cid for cid, states in model.pins.items() if states != [None]]
    if not held:
        return None
    (cid,) = _some(chance, held, 1)
    return Effect(pins={cid: None}), lambda world: world.pins.remove(cid)


def delete(model: Model, chance: Random) -> Planned:
    free = [*(model.must.keys() | model.may.keys()) - model.kept()]
    cids = _some(chance, free, 30) if free else []
    return (Effect(deletes=frozenset(cids)), lambda world: lose(world.store, cids)) if cids else None


def note(model: Model, chance: Random) -> Planned:
    name, value = f"note/{chance.randrange(6)}", chance.randbytes(chance.randrange(2000))
    if chance.random() < 0.3:
        return Effect(notes={name: None}), lambda world: world.store.delete_note(name)
    return Effect(notes={name: value}), lambda world: world.store.put_note(name, value)


def publish(model: Model, chance: Random) -> Planned:
    whole = [cid for cid, states in model.pins.items() if states == [PinState.COMPLETE]]
    if not whole:
        return None
    (cid,) = _some(chance, whole, 1)
    level = chance.choice([Visibility.FLOCK, Visibility.PUBLIC])
    return Effect(roots={cid: level}), lambda world: world.roots.publish(cid, level)


def withdraw(model: Model, chance: Random) -> Planned:
    shown = [cid for cid, levels in model.roots.items() if levels != [Visibility.PRIVATE]]
    if not shown:
        return None
    (cid,) = _some(chance, shown, 1)
    return Effect(roots={cid: Visibility.PRIVATE}), lambda world: world.roots.withdraw(cid)


def sweep(model: Model, chance: Random) -> Planned:
    free = frozenset(model.must) - model.kept(surely=True)
    need = chance.choice([None, None, 20_000])
    return Effect(loosens=free), lambda world: collect(world.store, world.pins, world.roots.list, need_bytes=need)


def compact(model: Model, chance: Random) -> Planned:
    frac = chance.choice([0.05, 0.3, 0.6])
    return Effect(), lambda world: world.store.compact(frac)


def reopen(model: Model, chance: Random) -> Planned:
    def run(world: World) -> None:
        world.close()
        world.open()

    return Effect(), run


def write_file(model: Model, chance: Random) -> Planned:
    name, data = f"file{chance.randrange(3)}", chance.randbytes(chance.randrange(9000))
    return Effect(files={name: {"": data}}), lambda world: durable.write_file(world.files / name, data)


def create_large_file(model: Model, chance: Random) -> Planned:
    name, data = f"car{chance.getrandbits(40)}", chance.randbytes(chance.randrange(30_000))

    def run(world: World) -> None:
        with durable.file_created(world.files / name) as file:
            file.write(data)

    return Effect(files={name: {"": data}}), run


def _contents(chance: Random) -> Files:
    return {f"{chance.choice('ab')}/{index}": chance.randbytes(chance.randrange(9000)) for index in range(4)}


def _written(contents: Files, source: Path) -> Path:
    for path, data in contents.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(data)
    return source


def export_tree(model: Model, chance: Random) -> Planned:
    name, contents = f"tree{chance.getrandbits(40)}", _contents(chance)

    def run(world: World) -> None:
        scratch = MemoryBlockstore()
        with tempfile.TemporaryDirectory() as source:
            export(scratch, add_path(scratch, _written(contents, Path(source))), world.files / name)

    return Effect(files={name: contents}), run


def export_sealed_tree(model: Model, chance: Random) -> Planned:
    name, contents, identity = f"opened{chance.getrandbits(40)}", _contents(chance), Identity(bytes(32))

    def run(world: World) -> None:
        scratch = MemoryBlockstore()
        with tempfile.TemporaryDirectory() as source:
            made = seal_path(scratch, _written(contents, Path(source)), [identity.peer_id])
        export_sealed(open_sealed(scratch, made.cid, identity), "", world.files / name)

    return Effect(files={name: contents}), run


def _sealed_root(key: bytes) -> Root:
    content = Content(Cid.of(key), len(key), bytes(PREFIX_BYTES), commitment(key))
    return make_root(content, key, [Identity(bytes(32)).peer_id], bytes)


def keep_key(model: Model, chance: Random) -> Planned:
    key = chance.randbytes(32)
    root = _sealed_root(key)
    name = f"keys/{root.content.binding.hex()}"
    return Effect(files={name: {"": key}}), lambda world: Keyring(world.files / "keys").keep(root, key)


def erase_key(model: Model, chance: Random) -> Planned:
    kept = sorted((n, f[0][""]) for n, f in model.files.items() if n.startswith("keys/") and f and f[0] and len(f) == 1)
    if not kept:
        return None
    name, key = chance.choice(kept)
    root = _sealed_root(key)
    return Effect(files={name: None}), lambda world: Keyring(world.files / "keys").erase(root)


TABLE: Final[dict[Plan, int]] = {
    put_small: 6, put_large: 4, put_again: 2, add: 6, fetch: 2, unpin: 3, delete: 4, note: 4, publish: 3, withdraw: 2,
    sweep: 2, compact: 3, reopen: 1, write_file: 2, create_large_file: 1,
    collect_beside_a_writer: 2, evict: 2, damage_and_verify: 1, register: 2, unregister: 1,
    export_tree: 1, export_sealed_tree: 1, keep_key: 2, erase_key: 1,
}  # fmt: skip


def next_step(model: Model, chance: Random) -> Step:
    """Plan the next step, and begin it in the model."""
    while True:
        (plan,) = chance.choices(list(TABLE), list(TABLE.values()))
        planned = plan(model, chance)
        if planned is not None:
            step = Step(plan.__name__, *planned)
            model.begin(step.effect)
            return step
