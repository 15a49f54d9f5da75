"""What the steps of the workload work on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from storage.catalog import Catalog
from storage.packs import PackBlockstore
from storage.pins import Pins
from storage.roots import Roots
from storage.unixfs.profiles import UNIXFS_V1_2025
from tests.campaigns.model import Effect

PACK_BYTES: Final = 100_000
SMALL_CHUNKS: Final = replace(UNIXFS_V1_2025, chunker="size-4000", width=4)


class World:
    """A folder with a store in it, as a daemon has it open, and files beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.open()

    def open(self) -> None:
        """Whatever state it is in."""
        self.store = PackBlockstore(self.folder / "store", max_pack_bytes=PACK_BYTES)
        self.pins = Pins(self.store)
        self.roots = Roots(self.store)
        self.catalog = Catalog.open(self.folder / "catalog.db")

    def close(self) -> None:
        """Stop in order."""
        self.catalog.close()
        self.store.close()


Planned = tuple[Effect, Callable[[World], object]] | None
