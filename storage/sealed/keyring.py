"""Content keys that this node keeps outside of any root, so that deleting one erases what it opens."""

import os
from pathlib import Path
from typing import Final

from storage.durable import create_file, make_folder, sync_folder, write_all
from storage.errors import Corrupt
from storage.sealed.keys import KEY_BYTES, fits
from storage.sealed.root import Root

_FOLDER_MODE: Final = 0o700


class Keyring:
    """One file a key, named by the binding of what it opens; readable by its owner alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, root: Root, key: bytes) -> None:
        """Keep a key, durably; keeping it twice is harmless. Raises: StoreFull, OSError."""
        make_folder(self._folder, _FOLDER_MODE)
        if self.get(root) is None:
            create_file(self._path(root), key)
        else:  # one that is there may have got its name a moment before a crash, too
            sync_folder(self._folder)

    def get(self, root: Root) -> bytes | None:
        """The key of a root, or None where none is kept. Raises: Corrupt."""
        try:
            key = self._path(root).read_bytes()
        except FileNotFoundError:
            return None
        if len(key) != KEY_BYTES or not fits(root.content, key):
            raise Corrupt(f"{self._path(root)} does not hold the key that it is named for. Restore it from a backup")
        return key

    def erase(self, root: Root) -> bool:
        """Overwrite a key's file and remove it, durably; was there one?"""
        try:
            fd = os.open(self._path(root), os.O_WRONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            write_all(fd, bytes(KEY_BYTES), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        self._path(root).unlink()
        sync_folder(self._folder)
        return True

    def _path(self, root: Root) -> Path:
        return self._folder / root.content.binding.hex()
