"""Keeps the store within its room: takes down what was used, sweeps what was unused for longest, gives room back.

What is pinned or published is never touched; when that alone fills the quota, new content is refused and says so.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog
import trio

from daemon.config import StorageConfig
from storage.collect import Collected, OnKept, collect
from storage.errors import CannotCollect, StorageError
from storage.packs import PackBlockstore
from storage.packs.compaction import OnPack
from storage.packs.room import Quota, Usage
from storage.pins import Pins
from storage.roots import Roots

LOOK_S: Final = 60.0
MAX_LOOK_S: Final = 3600.0  # where the looks before were in vain: each walks everything that is kept
FULL_FRAC: Final = 0.9  # of the quota: from here on the unused is swept
ROOMY_FRAC: Final = 0.8  # down to here
DEAD_FRACS: Final = (0.5, 0.3, 0.1, 0.02)  # of a pack, to be worth compacting: the less, the more is copied
MIN_FREE_FILES: Final = 1000

log = structlog.get_logger(__name__)


def quota_of(config: StorageConfig, folder: Path) -> Quota:
    """What the settings allow on the disk that `folder` is on."""
    disk = os.statvfs(folder)
    half = disk.f_blocks * disk.f_frsize // 2
    return Quota(
        n_bytes=int(config.quota_gb * 1e9) if config.quota_gb else half,
        n_files=config.quota_files,
        min_free_bytes=int(config.reserve_gb * 1e9),
        min_free_files=MIN_FREE_FILES if config.reserve_gb else 0,
    )


class Tidied(NamedTuple):
    """What went, what of its room came back, what did not, and why."""

    n_kept_blocks: int = 0
    n_swept_blocks: int = 0
    n_swept_bytes: int = 0
    freed_bytes: int = 0
    left_bytes: int = 0
    problem: StorageError | None = None

    def after(self, swept: Collected) -> "Tidied":
        """With one more collection counted."""
        return self._replace(
            n_kept_blocks=swept.n_kept_blocks,
            n_swept_blocks=self.n_swept_blocks + swept.n_swept_blocks,
            n_swept_bytes=self.n_swept_bytes + swept.n_swept_bytes,
        )


class Keeper:
    """Collects and compacts for one store, one errand at a time. Its methods block: call them in threads."""

    def __init__(self, store: PackBlockstore, pins: Pins, roots: Roots, note: Callable[[str, dict[str, Any]], None]):
        self.store: Final = store
        self._pins = pins
        self._roots = roots
        self._note = note
        self._alone = threading.Lock()
        store.make_room = self.make_room

    def collect(self, *, is_rehearsal: bool = False, on_kept: OnKept = lambda n_kept: None) -> Collected:
        """Sweep everything that nothing keeps. Raises: CannotCollect."""
        with self._alone:
            return collect(self.store, self._pins, self._roots.list, is_rehearsal=is_rehearsal, on_kept=on_kept)

    def tidy(self, min_dead_frac: float, on_kept: OnKept, on_pack: OnPack) -> Tidied:
        """Sweep everything that nothing keeps, and give its room back; on a full disk by turns, while that helps.

        What was swept is told even where its room did not come back. Raises: CannotCollect, and nothing was swept.
        """
        done = Tidied()
        with self._alone:
            while True:
                try:
                    swept = collect(self.store, self._pins, self._roots.list, on_kept=on_kept)
                    done = done.after(swept)
                    compacted = self.store.compact(min_dead_frac, on_pack)
                except StorageError as error:
                    if not done.n_swept_blocks:
                        raise
                    return done._replace(problem=error)
                done = done._replace(
                    freed_bytes=done.freed_bytes + compacted.net_bytes,
                    left_bytes=compacted.n_left_bytes,
                    problem=swept.problem or compacted.problem,
                )
                if swept.problem is None or (not swept.n_swept_blocks and compacted.net_bytes <= 0):
                    return done

    def make_room(self, n_bytes: int) -> bool:
        """Sweep the longest unused until `n_bytes` more fit well within the quota; False when that was in vain."""
        with self._alone:
            usage = self.store.usage()
            n_excess_files = self._excess_files(usage)
            if n_excess_files > 0:  # first of all what costs nobody a block
                self.store.merge(n_excess_files)
                usage = self.store.usage()
            need_bytes = self._need_bytes(usage, n_bytes)
            if need_bytes <= 0:
                return True
            try:
                swept = collect(self.store, self._pins, self._roots.list, need_bytes=need_bytes)
            except CannotCollect as error:
                log.warning("no_room_made", error=str(error))
                self._note("garbage_not_collected", {"text": str(error)})
                return False
            freed_bytes = self._compact(need_bytes)
            if n_excess_files > 0 and swept.n_swept_blocks:
                self.store.merge(self._excess_files(self.store.usage()))
        if not swept.n_swept_blocks and freed_bytes <= 0:
            return False
        self._note("garbage_collected", {"n_blocks": swept.n_swept_blocks, "size_bytes": max(0, freed_bytes)})
        return True

    def _compact(self, need_bytes: int) -> int:
        """Compact until so much came back, the packs that are the least work first; return how much did."""
        freed_bytes = 0
        for min_dead_frac in DEAD_FRACS:
            done = self.store.compact(min_dead_frac)
            freed_bytes += done.net_bytes
            if done.problem is not None:
                log.warning("compaction_found_no_room", error=str(done.problem), left_bytes=done.n_left_bytes)
            if freed_bytes >= need_bytes or done.problem is not None:
                break
        return freed_bytes

    def _need_bytes(self, usage: Usage, n_bytes: int) -> int:
        """How much is to go, for `n_bytes` more to fit, and for packs that are too many to be merged with others."""
        n_files = self._excess_files(usage)
        return max(self._excess(usage, n_bytes), n_files * self.store.max_pack_bytes)

    def _excess(self, usage: Usage, n_bytes: int) -> int:
        """How much is over: nothing below FULL_FRAC, else all down to ROOMY_FRAC."""
        quota = self.store.quota
        wanted = usage.n_bytes + n_bytes
        lacking = quota.min_free_bytes + n_bytes - usage.free_bytes
        over = wanted - int(ROOMY_FRAC * quota.n_bytes) if wanted > FULL_FRAC * quota.n_bytes else 0
        return max(over, lacking)

    def _excess_files(self, usage: Usage) -> int:
        """The same of files. Packs are nearly all of them, and each holds up to a fixed number of bytes."""
        quota = self.store.quota
        is_full = usage.n_files >= quota.n_files or usage.n_files > FULL_FRAC * quota.n_files
        over = usage.n_files - int(ROOMY_FRAC * quota.n_files) if is_full else 0
        return max(over, quota.min_free_files - usage.free_files, 0)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the store until cancelled."""
        task_status.started()
        next_look_s = wait_s = LOOK_S
        while True:
            await trio.sleep(LOOK_S)
            await trio.to_thread.run_sync(self.store.note_uses)
            next_look_s -= LOOK_S
            if next_look_s <= 0:
                has_room = await trio.to_thread.run_sync(self.make_room, 0)
                next_look_s = wait_s = LOOK_S if has_room else min(2 * wait_s, MAX_LOOK_S)
