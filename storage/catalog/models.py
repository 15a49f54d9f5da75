"""The models that stand on this machine, ready to load."""

import json
from dataclasses import dataclass
from typing import Any, Final

from storage.catalog.database import Database
from storage.errors import TooLarge

MAX_CARD_BYTES: Final = 64 << 10

SCHEMA: Final = """
CREATE TABLE models (
    name TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    derived_from TEXT,
    folder TEXT NOT NULL,
    source TEXT NOT NULL,
    card TEXT NOT NULL,
    added_unix_s REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX models_by_fingerprint ON models (fingerprint)"""

_SELECT: Final = "SELECT name, fingerprint, derived_from, folder, source, card, added_unix_s FROM models"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A model by the user's name for it. `source` is what it was imported from; `card` is the engine's card, as JSON.

    An adapter fits if its base is `fingerprint` or `derived_from`.
    """

    name: str
    fingerprint: str
    folder: str
    source: str
    card: dict[str, Any]
    added_unix_s: float
    derived_from: str | None = None

    @property
    def accepts(self) -> frozenset[str]:
        """The fingerprints that an adapter for this model may name as its base."""
        return frozenset(base for base in (self.fingerprint, self.derived_from) if base is not None)


class ModelTable:
    """Rows by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def upsert(self, row: ModelRow) -> None:
        """Store a row, in place of the one with its name. Raises: TooLarge."""
        card = json.dumps(row.card)
        if len(card) > MAX_CARD_BYTES:
            raise TooLarge(f"the card of model {row.name!r} is over {MAX_CARD_BYTES} bytes")
        self._database.write(
            "INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?)",
            (row.name, row.fingerprint, row.derived_from, row.folder, row.source, card, row.added_unix_s),
        )

    def get(self, name: str) -> ModelRow | None:
        """The model by this name."""
        return next((_row(row) for row in self._database.read(f"{_SELECT} WHERE name = ?", (name,))), None)

    def accepting(self, base: str) -> list[ModelRow]:
        """The models that an adapter made for `base` fits; the model itself before those derived from it."""
        rows = self._database.read(
            f"{_SELECT} WHERE ? IN (fingerprint, derived_from) ORDER BY fingerprint != ?, name", (base, base)
        )
        return [_row(row) for row in rows]

    def list(self) -> list[ModelRow]:
        """All models, by name."""
        return [_row(row) for row in self._database.read(f"{_SELECT} ORDER BY name")]

    def remove(self, name: str) -> bool:
        """Forget a model; its folder stays. Was it there?"""
        return self._database.write("DELETE FROM models WHERE name = ?", (name,)) > 0


def _row(values: tuple[Any, ...]) -> ModelRow:
    name, fingerprint, derived_from, folder, source, card, added_unix_s = values
    return ModelRow(
        name=name,
        fingerprint=fingerprint,
        derived_from=derived_from,
        folder=folder,
        source=source,
        card=json.loads(card),
        added_unix_s=added_unix_s,
    )
