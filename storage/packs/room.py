"""How much room the store may take, and the reserve that lets it make room again on a full disk."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from storage.durable import write_all
from storage.errors import OverQuota, StoreFull

RESERVE_BYTES: Final = 16 << 20
START_BYTES: Final = 4 << 20  # that a start takes: even to read, a database begins a log
INDEX_BYTES: Final = 8 << 20
"""What the index may grow by while blocks are moved: its log, before SQLite begins it anew."""

_UNLIMITED: Final = 1 << 62
_MEASURE_EVERY_BYTES: Final = 64 << 20


class Quota(NamedTuple):
    """What new blocks may use up. Deleting, notes and compaction are never refused by it.

    `n_bytes`, `n_files`: of the store in all. `min_free_bytes`, `min_free_files`: what is left of the disk for others.
    """

    n_bytes: int = _UNLIMITED
    n_files: int = _UNLIMITED
    min_free_bytes: int = 0
    min_free_files: int = 0


NO_QUOTA: Final = Quota()


class Usage(NamedTuple):
    """What the store takes on the disk, and what of the disk is free."""

    n_bytes: int
    n_files: int
    free_bytes: int
    free_files: int


def disk_use(folder: Path) -> tuple[int, int]:
    """The bytes on the disk, and the files, of the store in `folder`."""
    n_bytes = n_files = 0
    for path in (*(folder / "packs").iterdir(), *folder.glob("index.db*")):
        with suppress(FileNotFoundError):  # a pack may be compacted away meanwhile
            n_bytes += path.stat().st_blocks * 512
            n_files += 1
    return n_bytes, n_files


class Room:
    """Watches the quota. Measures anew now and then: others write to the same disk. Used under the store's lock.

    The reserve is a file that holds some room: given up when a start or a deletion finds the disk full, and made again
    later.
    """

    def __init__(self, folder: Path, quota: Quota, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._folder = folder
        self._reserve = folder / "reserve"
        self._reserve_bytes = reserve_bytes
        self.quota = quota
        if self.measure().free_bytes < START_BYTES and self.release():
            self.measure()

    def measure(self) -> Usage:
        """Look at the disk."""
        n_bytes, n_files = disk_use(self._folder)
        disk = os.statvfs(self._folder)
        # A file system without inodes says 0 for both: there, files are not counted.
        free_files = disk.f_favail if disk.f_files else _UNLIMITED
        self.usage = Usage(n_bytes, n_files, disk.f_bavail * disk.f_frsize, free_files)
        self._grown = 0
        if self.usage.free_bytes > 4 * self._reserve_bytes and not self._reserve.exists():
            self._make_reserve()
        return self.usage

    def release(self) -> bool:
        """Give up the reserve; was there one?"""
        try:
            self._reserve.unlink()
        except FileNotFoundError:
            return False
        return True

    def is_scarce(self) -> bool:
        """Is the disk all but full? The reserve is missing where that was so a while ago, and not enough came back."""
        return self.measure().free_bytes < self._reserve_bytes or not self._reserve.exists()

    def fits(self, n_bytes: int) -> bool:
        """Is there room on the disk for a copy of so many bytes, and for what the index makes of it?

        Whatever the quota says. Gives up the reserve where that helps.
        """
        needed = n_bytes + INDEX_BYTES
        return self.measure().free_bytes >= needed or (self.release() and self.measure().free_bytes >= needed)

    def _make_reserve(self) -> None:
        fd = os.open(self._reserve, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, self._reserve_bytes)
            else:
                write_all(fd, bytes(self._reserve_bytes), 0)
        except (OSError, StoreFull):  # some file systems cannot; then there is none
            self._reserve.unlink()
        finally:
            os.close(fd)

    def grew(self, n_bytes: int) -> None:
        """Note what was written since."""
        self._grown += n_bytes

    def check(self, n_bytes: int) -> None:
        """May blocks of so many bytes be written? Raises: OverQuota, StoreFull."""
        if self._grown + n_bytes > _MEASURE_EVERY_BYTES or self._is_over(n_bytes):
            self.measure()
            self._is_over(n_bytes, refuse=True)

    def _is_over(self, n_bytes: int, *, refuse: bool = False) -> bool:
        usage, quota = self.usage, self.quota
        more = self._grown + n_bytes
        has_too_many = usage.n_files >= quota.n_files
        is_over = usage.n_bytes + more > quota.n_bytes or has_too_many
        is_full = usage.free_bytes - more < quota.min_free_bytes or usage.free_files < quota.min_free_files
        if refuse and has_too_many:
            raise OverQuota(
                f"the store has {usage.n_files} files; its quota is {quota.n_files} (storage.quota_files). Run"
                " `covey repo gc`, unpin what is not needed, or raise it"
            )
        if refuse and is_over:
            raise OverQuota(
                f"the store takes {usage.n_bytes >> 20} MiB; its quota is {quota.n_bytes >> 20} MiB (storage.quota_gb)."
                " Run `covey repo gc`, unpin what is not needed, or raise it"
            )
        if refuse and is_full:
            raise StoreFull(
                f"the disk has {usage.free_bytes >> 20} MiB and {usage.free_files} files free;"
                f" {quota.min_free_bytes >> 20} MiB and {quota.min_free_files} files are left for others"
            )
        return is_over or is_full
