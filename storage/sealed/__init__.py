"""Sealed content: files and folders that only named peers can read, as ordinary blocks. Format: storage/FORMAT.md."""

from storage.sealed.keyring import Keyring
from storage.sealed.opener import Sealed, open_sealed, read_root
from storage.sealed.sealer import Made, reseal, seal_path, with_recipients
from storage.sealed.table import Entry
from storage.sealed.writer import export_range, export_sealed

__all__ = [
    "Entry",
    "Keyring",
    "Made",
    "Sealed",
    "export_range",
    "export_sealed",
    "open_sealed",
    "read_root",
    "reseal",
    "seal_path",
    "with_recipients",
]
