"""An experiment that its user is done with: what it left on this node goes, however often that is cut short.

`CID.forgetting` in the folder is written first and removed last; a start that finds one goes on with it. What this node
signed itself stays as `CID.aside`, with the grants that let it in, and so does `CID.budget`: who began anew would sign
numbers a second time, which is a fork, and tell more of its examples than it may. Both count again when it is joined.
"""

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agents.adapters.ports import Ports
from agents.federation.node.journal import Journal
from agents.journal import ASIDE
from protocols.entry import Entry
from protocols.rounds import Grant
from storage.blockstore import Visibility
from storage.cid import Cid
from storage.durable import sync_folder, write_file
from storage.errors import InvalidCid, UnknownVersion
from storage.keys import PeerId
from storage.pins import Pin
from storage.roots import Root

MARK: Final = ".forgetting"
BUDGET: Final = ".budget"
LEFT: Final = (".json", ".cut", ".secrets", ".memories", ".variates")  # beside a journal


class Forgotten(NamedTuple):
    """What went: files that are held no more, the bytes of those that nothing else holds, roots that are shown no more,
    and the bytes of the journal and what was beside it."""

    n_files: int = 0
    n_bytes: int = 0
    n_hidden: int = 0
    n_journal_bytes: int = 0


class _Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    shown_to: tuple[bytes, ...]


Holders = Mapping[str, Collection[PeerId]]
"""By the names of the pins of each other experiment, whom it shows things."""


def mark(folder: Path, experiment: Cid, shown_to: Iterable[PeerId]) -> None:
    """From now on it is to go; `shown_to` can have been shown things for it. Raises: StoreFull, OSError."""
    found = _Mark(tuple(sorted(map(bytes, shown_to))))
    write_file(_path(folder, experiment, MARK), msgspec.json.encode(found))


def is_marked(folder: Path, experiment: Cid) -> bool:
    """Did it begin to go?"""
    return _path(folder, experiment, MARK).exists()


def marked(folder: Path) -> Iterator[Cid]:
    """Those that began to go."""
    for path in sorted(folder.glob(f"b*{MARK}")):
        with suppress(InvalidCid):
            yield Cid.parse(path.stem)


def clear(ports: Ports, folder: Path, experiment: Cid, others: Holders) -> Forgotten:
    """Have a marked one go; nothing may run it. Raises: StorageError, OSError; what is left goes with the next call."""
    from agents.federation.files.shelf import pins_of, sizes_of  # numpy comes with it

    _keep_own(ports.identity.peer_id, folder, experiment)
    shown_to = _shown_to(_path(folder, experiment, MARK))
    all_pins, names = ports.pins.list(), pins_of(experiment)
    pins = [pin for pin in all_pins if pin.name in names]
    held = list(dict.fromkeys(pin.cid for pin in pins))
    beside = _names_beside(all_pins, names)
    n_bytes = sum(sizes_of(ports, [cid for cid in held if cid not in beside]).values())
    n_hidden = _hide(ports, held, beside, shown_to, others)
    for pin in pins:  # behind that: by its pins a second try knows what was shown
        ports.pins.remove(pin.cid, pin.name)
    n_journal_bytes = _remove_files(folder, experiment)
    sync_folder(folder)
    _path(folder, experiment, MARK).unlink()
    sync_folder(folder)
    return Forgotten(len(held), n_bytes, n_hidden, n_journal_bytes)


def brought_back(folder: Path, plan: Entry) -> tuple[Journal, list[Entry]] | None:
    """What was kept of one that is followed again, and the journal that it stands in; None where nothing was."""
    found = Journal.brought_back(folder / str(plan.body_cid))
    if found is None or found[1][0].body_cid == plan.body_cid:
        return found
    found[0].refuse("it does not begin with the plan that it is named by")
    found[0].path.rename(found[0].path.with_suffix(".damaged"))
    return None


def _path(folder: Path, experiment: Cid, suffix: str = "") -> Path:
    return folder / f"{experiment}{suffix}"


def _keep_own(me: PeerId, folder: Path, experiment: Cid) -> None:
    """Put aside what this node signed; nothing where that was done before, or it signed nothing."""
    path, aside = _path(folder, experiment), _path(folder, experiment, ASIDE)
    if not path.exists():
        return
    aside.unlink(missing_ok=True)  # cut short
    try:
        journal, entries = Journal.open(path)
    except UnknownVersion:
        return
    journal.close()
    if not any(entry.author == me for entry in entries[1:]):
        return
    kept = Journal.create(aside, entries[0])
    try:
        kept.append(entry for entry in entries[1:] if entry.author == me or entry.kind == Grant.kind)
    finally:
        kept.close()


def _shown_to(path: Path) -> frozenset[PeerId]:
    try:
        return frozenset(map(PeerId, msgspec.json.decode(path.read_bytes(), type=_Mark).shown_to))
    except (FileNotFoundError, msgspec.ValidationError, msgspec.DecodeError):
        return frozenset()


def _names_beside(pins: Iterable[Pin], names: Collection[str]) -> dict[Cid, set[str]]:
    """By CID, under which other names it is pinned."""
    found: dict[Cid, set[str]] = {}
    for pin in pins:
        if pin.name not in names:
            found.setdefault(pin.cid, set()).add(pin.name)
    return found


def _hide(
    ports: Ports, held: Iterable[Cid], beside: Mapping[Cid, set[str]], shown_to: frozenset[PeerId], others: Holders
) -> int:
    """Take from its members what only it showed them: what is shown to more, or is pinned otherwise, stays as it is."""
    roots = {root.cid: root for root in ports.roots.list()}
    gone: list[Root] = []
    n_narrowed = 0
    for cid in held:
        root, names = roots.get(cid), beside.get(cid, set())
        if root is None or root.level is not Visibility.MEMBERS or not names <= others.keys():
            continue
        left = root.members - shown_to.difference(*(others[name] for name in names))
        if not left:
            gone.append(root)
        elif left != root.members:
            ports.roots.publish(cid, Visibility.MEMBERS, left, root.without)
            n_narrowed += 1
    ports.roots.withdraw_all(gone)
    return len(gone) + n_narrowed


def _remove_files(folder: Path, experiment: Cid) -> int:
    """The journal last: while it is there, what was kept of it is made again."""
    is_aside = _path(folder, experiment, ASIDE).exists()
    n_bytes = 0
    for suffix in (*LEFT, *(() if is_aside else (BUDGET,)), ""):
        path = _path(folder, experiment, suffix)
        n_bytes += sum(one.lstat().st_size for one in [path, *path.glob("*")] if one.is_file())
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return n_bytes
