"""Every place in the code that asks for a sync, and how to leave one of them out."""

import ast
import mmap
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
_CALLS: Final = {"sync_data", "sync_folder", "fsync", "fdatasync"}
_PRIMITIVES: Final = {"sync_data", "sync_folder"}  # of storage.durable: the place is where they are called
SQLITE: Final = ("sqlite NORMAL", "sqlite OFF")
BESIDES_LOSS: Final = {
    "storage/sealed/keyring.py erase: os.fsync(fd)": "keeps a secret and no data: see test_keyring.py",
    "storage/packs/files.py _cut: sync_data(self._fd)": "behind a failure of the disk: see test_lost_packs.py",
    "storage/packs/files.py _cut: sync_folder(self._folder)": "behind a failure of the disk: see test_lost_packs.py",
}
"""Syncs that keep another promise than that nothing is lost, or that no run of the campaign comes to."""

_left_out = mmap.mmap(-1, 1)  # shared with the children


def sites() -> dict[str, tuple[str, range]]:
    """Each sync in storage/, by a name that says where it is: its file and lines. SQLite's are `SQLITE`."""
    found: dict[str, tuple[str, range]] = {}
    for path in sorted((ROOT / "storage").rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef) or function.name in _PRIMITIVES:
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and _name(call.func) in _CALLS:
                    where = path.relative_to(ROOT)
                    lines = range(call.lineno, (call.end_lineno or call.lineno) + 1)
                    found[f"{where}:{call.lineno} {function.name}: {ast.unparse(call)}"] = (str(path), lines)
    return found


def _name(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def was_reached() -> bool:
    """Was the sync that is left out asked for since this was asked last?"""
    was_reached = _left_out[0] != 0
    _left_out[0] = 0
    return was_reached


def besides_loss(site: str) -> str | None:
    """Why a power loss need not notice that this sync is left out."""
    where, _, call = site.partition(":")
    return BESIDES_LOSS.get(f"{where} {call.partition(' ')[2]}")


def leave_out(site: str) -> None:
    """From now on, in this process, that sync does nothing."""
    if site in SQLITE:
        _weaken_sqlite(site.split()[1])
        return
    file, lines = sites()[site]
    for name in ("fsync", "fdatasync"):
        if hasattr(os, name):
            setattr(os, name, _unless(getattr(os, name), file, lines))


def _unless(actual: Any, file: str, lines: range) -> Any:
    def sync(fd: int) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_name in _PRIMITIVES:
            frame = frame.f_back
        if frame.f_code.co_filename != file or frame.f_lineno not in lines:
            actual(fd)
        else:
            _left_out[0] = 1

    return sync


def small_log(connection: sqlite3.Connection, pages: int = 40) -> sqlite3.Connection:
    """Let SQLite write its log back every few pages, so that a short run has many of these."""
    connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
    return connection


def with_small_logs() -> None:
    """From now on, for every connection of this process."""
    actual = sqlite3.connect
    sqlite3.connect = lambda *args, **more: small_log(actual(*args, **more))  # type: ignore[assignment]


def _weaken_sqlite(level: str) -> None:
    class Weak(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("synchronous = FULL", f"synchronous = {level}"), *values)

    actual = sqlite3.connect
    sqlite3.connect = lambda *args, **more: actual(*args, factory=Weak, **more)  # type: ignore[assignment]
