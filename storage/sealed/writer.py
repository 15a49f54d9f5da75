"""Sealed content as files again, whole or not at all, without trusting a word of its maker."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from storage.durable import sync_data, sync_folder
from storage.sealed.opener import Sealed
from storage.sealed.table import Entry
from storage.staging import beside
from storage.unixfs.exporter import check_symlink, write_pieces

_FILE_MODE: Final = 0o400  # at least; at most 0755: nothing becomes writable to others
_FOLDER_MODE: Final = 0o700
_MOST_MODE: Final = 0o755

OnProgress = Callable[[int], None]


def export_sealed(sealed: Sealed, path: str, target: Path, on_progress: OnProgress = lambda n_bytes: None) -> None:
    """Write the file or folder at `path` inside the content to `target`. `on_progress` gets each piece's bytes.

    Raises: TargetExists, DiskFull, NotFound, BrokenSeal, OSError.
    """
    top = sealed.find(path)
    n_bytes = sum(entry.n_bytes for entry in sealed.entries() if entry.path[: len(top.path)] == top.path)
    with beside(target, n_bytes) as base:
        _write_tree(sealed, top, base, on_progress)


def export_range(
    sealed: Sealed,
    entry: Entry,
    target: Path,
    offset: int,
    length: int | None,
    on_progress: OnProgress = lambda n_bytes: None,
) -> None:
    """Write a range of a sealed file to `target`. Raises: as `export_sealed`."""
    n_bytes = max(entry.n_bytes - offset, 0)
    with (
        beside(target, n_bytes if length is None else min(length, n_bytes)) as base,
        base.open("xb", buffering=0) as file,
    ):
        write_pieces(file, sealed.read(entry, offset, length), on_progress)
        sync_data(file.fileno())


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
                write_pieces(file, sealed.read(entry), on_progress)
                os.fchmod(file.fileno(), entry.mode & _MOST_MODE | _FILE_MODE)
                sync_data(file.fileno())
    for path, to in symlinks:
        path.symlink_to(os.fsdecode(to))
    for path, mode in reversed(folders):
        path.chmod(mode)
        sync_folder(path)


def check_inside(entry: Entry, depth: int) -> bytes:
    """A symlink's target that stays inside of the part that is written, `depth` folders down. Raises: InvalidName."""
    check_symlink(entry.target, max(len(entry.path) - depth - 1, 0))
    return entry.target
