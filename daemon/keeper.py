"""Keeps the store within its room: takes down what was used, sweeps what was unused for longest, gives room back.

What is pinned or published is never touched; when that alone fills the quota, new content is refused and says so.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from daemon.config import StorageConfig
from storage.collect import Collected, OnKept, collect
from storage.errors import CannotCollect, StoreFull
from storage.packs import PackBlockstore
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

    def make_room(self, n_bytes: int) -> bool:
        """Sweep the longest unused until `n_bytes` more fit well within the quota; False when that was in vain."""
        with self._alone:
            need_bytes = self._excess(self.store.usage(), n_bytes)
            if need_bytes <= 0:
                return True
            try:
                swept = collect(self.store, self._pins, self._roots.list, need_bytes=need_bytes)
            except CannotCollect as error:
                log.warning("no_room_made", error=str(error))
                self._note("garbage_not_collected", {"text": str(error)})
                return False
            freed_bytes = self._compact(need_bytes)
        if not swept.n_swept_blocks and freed_bytes <= 0:
            return False
        self._note("garbage_collected", {"n_blocks": swept.n_swept_blocks, "size_bytes": max(0, freed_bytes)})
        return True

    def _compact(self, need_bytes: int) -> int:
        """Compact until so much came back, the packs that are the least work first; return how much did."""
        freed_bytes = 0
        try:
            for min_dead_frac in DEAD_FRACS:
                freed_bytes += self.store.compact(min_dead_frac).net_bytes
                if freed_bytes >= need_bytes:
                    break
        except StoreFull as error:  # what it had done stays done
            log.warning("compaction_found_no_room", error=str(error))
        return freed_bytes

    def _excess(self, usage: Usage, n_bytes: int) -> int:
        """How much is to go, for `n_bytes` more to fit: nothing below FULL_FRAC, else all down to ROOMY_FRAC."""
        quota = self.store.quota
        wanted = usage.n_bytes + n_bytes
        lacking = quota.min_free_bytes + n_bytes - usage.free_bytes
        over = wanted - int(ROOMY_FRAC * quota.n_bytes) if wanted > FULL_FRAC * quota.n_bytes else 0
        return max(over, lacking)

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
