"""Notice new adapters in a training folder, once they are completely written, and each content once.

Training writes into `checkpoints/best_model_adapter`, `checkpoint_epoch_3_adapter` or any other folder that holds an
`adapter_config.json`. Polling finds them on every system and every file system, network mounts included.
"""

import hashlib
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import trio

from agents.adapters.inspect import CONFIG_FILE, WEIGHTS_FILE, inspect_folder
from agents.adapters.ports import Emit
from agents.errors import AgentError, BadAdapter, WrongBase

POLL_S: Final = 1.0
SETTLE_S: Final = 2.0
FIRST_RETRY_S: Final = 5.0  # while the model that an adapter was trained on is not here
LONGEST_RETRY_S: Final = 60.0
MAX_DEPTH: Final = 4
MAX_FOLDERS: Final = 10_000
MAX_REMEMBERED: Final = 4096

_CHUNK_BYTES: Final = 1 << 20

Signature = tuple[tuple[str, int, int], ...]
"""Name, size in bytes and time of change in ns of each file of a folder, by name."""


class _Retry(NamedTuple):
    """When a folder is examined again, and the wait before that."""

    at_s: float
    wait_s: float


class Settling:
    """Which folders have come to rest, and is their content news? No IO, no clock: the caller looks and hashes."""

    def __init__(self, settle_s: float = SETTLE_S) -> None:
        self._settle_s = settle_s
        self._since_s: dict[Path, tuple[Signature, float]] = {}
        self._examined: dict[Path, Signature] = {}
        self._digests: dict[bytes, None] = {}
        self._retries: dict[Path, _Retry] = {}

    def scanned(self, found: Mapping[Path, Signature], now_s: float) -> list[Path]:
        """Note how the folders look now; return those to be examined: complete, at rest and not yet examined so."""
        for gone in self._since_s.keys() - found.keys():
            del self._since_s[gone]
            self._examined.pop(gone, None)
            self._retries.pop(gone, None)
        ripe = []
        for folder, signature in sorted(found.items()):
            if not {CONFIG_FILE, WEIGHTS_FILE} <= {name for name, _, _ in signature}:
                continue
            known = self._since_s.get(folder)
            if known is None or known[0] != signature:
                self._since_s[folder] = (signature, now_s)
                self._retries.pop(folder, None)
            elif folder in self._retries and now_s < self._retries[folder].at_s:
                continue
            elif now_s - known[1] >= self._settle_s and self._examined.get(folder) != signature:
                self._examined[folder] = signature
                ripe.append(folder)
        return ripe

    def is_news(self, digest: bytes) -> bool:
        """Was this content never reported before? Remember that it is now."""
        if digest in self._digests:
            return False
        if len(self._digests) >= MAX_REMEMBERED:
            del self._digests[next(iter(self._digests))]
        self._digests[digest] = None
        return True

    def postpone(self, folder: Path, digest: bytes, now_s: float) -> bool:
        """Have the folder examined again later, after waits that double. Is this the first time since it changed?"""
        last = self._retries.get(folder)
        wait_s = FIRST_RETRY_S if last is None else min(2 * last.wait_s, LONGEST_RETRY_S)
        self._retries[folder] = _Retry(now_s + wait_s, wait_s)
        self._examined.pop(folder, None)
        self._digests.pop(digest, None)
        return last is None


def scan(root: Path) -> dict[Path, Signature]:
    """Every folder at or below `root` that holds an `adapter_config.json`; links are not followed."""
    found: dict[Path, Signature] = {}
    folders = [(root, 0)]
    for n_seen, (folder, depth) in enumerate(folders):
        if n_seen >= MAX_FOLDERS:
            break
        files = []
        for name, status in _listing(folder):
            if stat.S_ISDIR(status.st_mode) and depth < MAX_DEPTH:
                folders.append((folder / name, depth + 1))
            elif not stat.S_ISDIR(status.st_mode):
                files.append((name, status.st_size, status.st_mtime_ns))
        if any(name == CONFIG_FILE for name, _, _ in files):
            found[folder] = tuple(files)
    return found


def _listing(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Names and states in `folder`, by name; what vanishes or may not be read meanwhile is left out."""
    listing = []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    for name in names:
        try:
            listing.append((name, (folder / name).lstat()))
        except OSError:
            continue
    return listing


def content_digest(folder: Path) -> bytes:
    """One hash over the names and bytes of a folder's files. Raises: OSError."""
    total = hashlib.sha256()
    for name in sorted(os.listdir(folder)):
        one = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                one.update(chunk)
        total.update(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() + one.digest())
    return total.digest()


def examine(folder: Path) -> bytes:
    """The digest of a folder that holds a whole, valid adapter. Raises: BadAdapter."""
    inspect_folder(folder)
    try:
        return content_digest(folder)
    except OSError as error:
        raise BadAdapter(f"{folder} cannot be read: {error.strerror}. Check its permissions.") from None


async def run_watcher(
    root: Path,
    found: Callable[[Path], Awaitable[None]],
    emit: Emit,
    *,
    poll_s: float = POLL_S,
    settle_s: float = SETTLE_S,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `found(folder)` for each new adapter at or below `root`, for ever; tell of those that are not usable.

    Where `found` raises WrongBase, the model may yet come: it is called again now and then, and the event comes once.
    """
    core = Settling(settle_s)
    task_status.started()
    while True:
        seen = await trio.to_thread.run_sync(scan, root)
        for folder in core.scanned(seen, trio.current_time()):
            digest = b""
            try:
                digest = await trio.to_thread.run_sync(examine, folder)
                if core.is_news(digest):
                    await found(folder)
            except AgentError as error:
                is_retried = isinstance(error, WrongBase)
                if not is_retried or core.postpone(folder, digest, trio.current_time()):
                    emit("adapter_skipped", folder=str(folder), code=error.code, text=str(error))
        await trio.sleep(poll_s)
