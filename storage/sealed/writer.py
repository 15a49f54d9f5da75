"""Sealed content as files again, whole or not at all, without trusting a word of its maker."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from storage.durable import sync_data, sync_folder
from storage.errors import TargetExists
from storage.sealed.opener import Sealed
from storage.sealed.table import Entry
from storage.unixfs.exporter import check_symlink

_FILE_MODE: Final = 0o400  # at least; at most 0755: nothing becomes writable to others
_FOLDER_MODE: Final = 0o700
_MOST_MODE: Final = 0o755

OnProgress = Callable[[int], None]


def export_sealed(sealed: Sealed, path: str, target: Path, on_progress: OnProgress = lambda n_bytes: None) -> None:
    """Write the file or folder at `path` inside the content to `target`. `on_progress` gets each piece's bytes.

    Raises: TargetExists, NotFound, BrokenSeal, OSError.
    """
    with _beside(target) as base:
        _write_tree(sealed, sealed.find(path), base, on_progress)


def export_range(
    sealed: Sealed,
    entry: Entry,
    target: Path,
    offset: int,
    length: int | None,
    on_progress: OnProgress = lambda n_bytes: None,
) -> None:
    """Write a range of a sealed file to `target`. Raises: as `export_sealed`."""
    with _beside(target) as base, base.open("xb", buffering=0) as file:
        _write(file, sealed.read(entry, offset, length), on_progress)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A place beside `target` that takes its name at the end, if all goes well. Raises: TargetExists."""
    if os.path.lexists(target):
        raise TargetExists(f"{target} is there already: choose another name, or move it away")
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", dir=target.parent))
    try:
        yield folder / "content"
        os.rename(folder / "content", target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(folder)


def _write_tree(sealed: Sealed, top: Entry, base: Path, on_progress: OnProgress) -> None:
    """All is made anew in an empty folder of ours, symlinks last, so that nothing is written through one."""
    folders: list[tuple[Path, int]] = []
    symlinks: list[tuple[Path, bytes]] = []
    depth = len(top.path)
    for entry in sealed.entries():
        if entry.path[:depth] != top.path:
            continue
        path = base.joinpath(*map(os.fsdecode, entry.path[depth:]))
        if entry.kind == "folder":
            path.mkdir(mode=_FOLDER_MODE)
            folders.append((path, entry.mode & _MOST_MODE | _FOLDER_MODE))
            on_progress(0)
        elif entry.kind == "symlink":
            symlinks.append((path, check_inside(entry, depth)))
        else:
            with path.open("xb", buffering=0) as file:
                _write(file, sealed.read(entry), on_progress)
                os.fchmod(file.fileno(), entry.mode & _MOST_MODE | _FILE_MODE)
    for path, to in symlinks:
        path.symlink_to(os.fsdecode(to))
    for path, mode in reversed(folders):
        path.chmod(mode)
        sync_folder(path)


def check_inside(entry: Entry, depth: int) -> bytes:
    """A symlink's target that stays inside of the part that is written, `depth` folders down. Raises: InvalidName."""
    check_symlink(entry.target, max(len(entry.path) - depth - 1, 0))
    return entry.target


def _write(file: BinaryIO, pieces: Iterable[bytes], on_progress: OnProgress) -> None:
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[file.write(view) :]
        on_progress(len(piece))
    sync_data(file.fileno())
