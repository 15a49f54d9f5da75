"""catalog.db: what the node knows beside its blocks. One SQLite file, one room (module) for each subject.

Each room is a class over the shared `Database`. Methods are synchronous, thread-safe and durable when they return;
`Catalog.transaction` makes several of them one step.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Self

from storage.catalog import adapters, artifacts, events, lineage, models, names, peers, replay, sequences, sweeps
from storage.catalog.database import Database, inspect

# A file's version is the number of migrations it has seen. Released ones never change; a new layout is a new line.
MIGRATIONS: Final = (
    ";\n".join(room.SCHEMA for room in (events, sequences, replay, peers, adapters, models)),
    ";\n".join((artifacts.SCHEMA, lineage.SCHEMA, adapters.SPLIT)),
    names.SCHEMA,
    lineage.ORIGINS,
    ";\n".join((peers.BANS, sweeps.SCHEMA)),
    names.OWN,
    adapters.ARRIVALS,
)
REMEDY: Final = (
    "Restore it from a backup, or move catalog.db* away and run covey up: that fills it again from the blocks, but "
    "trust, names, sequence numbers and replay windows are lost"
)


class Catalog:
    """The open catalog of a node."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.events: Final = events.EventLog(database)
        self.sequences: Final = sequences.Sequences(database)
        self.replay: Final = replay.ReplayTable(database)
        self.peers: Final = peers.PeerBook(database)
        self.lineage: Final = lineage.LineageTable(database)
        self.artifacts: Final = artifacts.ArtifactTable(database, self.lineage)
        self.adapters: Final = adapters.AdapterTable(database, self.artifacts)
        self.models: Final = models.ModelTable(database)
        self.sweeps: Final = sweeps.SweepTable(database)
        self.names: Final = names.NameTable(database)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create the catalog. Raises: UnknownVersion, Corrupt, StoreLocked, StoreFull."""
        return cls(Database.open(path, MIGRATIONS, REMEDY))

    @staticmethod
    def inspect(path: Path) -> int:
        """Read through a catalog and change nothing; return its version, of `len(MIGRATIONS)`.

        Raises: FileNotFoundError, UnknownVersion, Corrupt, StoreLocked, StorageError.
        """
        return inspect(path, len(MIGRATIONS), REMEDY)

    def transaction(self) -> AbstractContextManager[None]:
        """All writes inside happen, durably, or none. Sequences and replay windows cannot be part: they stand alone."""
        return self._database.transaction()

    def close(self) -> None:
        """Let go of the file. Closing twice is harmless."""
        self._database.close()
