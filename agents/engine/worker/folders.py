"""Finished folders take their place whole or not at all, also when the process or the machine stops at any point."""

import os
import shutil
from pathlib import Path

from storage.durable import sync_folder


def publish(staging: Path, folder: Path) -> None:
    """Give the finished `staging` folder its name: after a crash `folder` is there whole, or not at all."""
    _sync(staging)
    staging.rename(folder)
    sync_folder(folder.parent)


def replace(staging: Path, folder: Path) -> None:
    """Put the finished `staging` in the place of `folder`: after a crash and `restore` one of the two stands there."""
    _sync(staging)
    restore(folder)
    earlier = _earlier(folder)
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        folder.rename(earlier)
    try:
        staging.rename(folder)
    except BaseException:
        restore(folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def restore(folder: Path) -> None:
    """Bring back what a `replace` that was cut short had put aside."""
    if not folder.exists() and _earlier(folder).exists():
        _earlier(folder).rename(folder)


def _earlier(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.earlier")


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(folder)
