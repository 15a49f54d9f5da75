"""The blockstore on disk: append-only pack files and an SQLite index. See storage/FORMAT.md."""

from storage.packs.recovery import Recovery
from storage.packs.store import PackBlockstore

__all__ = ["PackBlockstore", "Recovery"]
