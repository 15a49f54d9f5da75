"""A vector index of one folder or file, on disk: documents, chunks with their lines, and a vector for each chunk.

One SQLite file, a transaction a batch of documents: a kill loses no document that was stored. Search is exact: usearch
compares the question with every vector, which takes 16 ms for 50,000 of them, the most an index holds.
"""

import hashlib
import re
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from agents.errors import BadData
from agents.retrieval.chunks import Chunk
from storage.catalog.database import Database

if TYPE_CHECKING:
    import numpy as np

MAX_CHUNKS: Final = 50_000
FLOAT_BYTES: Final = 4
MAX_WIDTH: Final = 4096

_MIGRATIONS: Final = (
    """CREATE TABLE source (
    root TEXT NOT NULL,
    width INTEGER NOT NULL
) STRICT;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL
) STRICT;
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY,
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    first_line INTEGER NOT NULL,
    last_line INTEGER NOT NULL,
    text TEXT NOT NULL,
    vector BLOB NOT NULL
) STRICT;
CREATE INDEX chunks_by_document ON chunks (document)""",
)
_PASSAGES: Final = (
    "SELECT chunks.id, path, first_line, last_line, text FROM chunks JOIN documents ON documents.id = document"
)


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk found for a question. Lines count from 1; `score` is the cosine of the angle to the question."""

    path: str
    first_line: int
    last_line: int
    text: str
    score: float


class Document(msgspec.Struct, frozen=True):
    """A file's chunks, and the digest of the bytes that they were cut from."""

    path: str
    digest: bytes
    chunks: tuple[Chunk, ...]


class IndexStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How much an index holds."""

    name: str
    root: str
    n_documents: int
    n_chunks: int


def name_of(root: Path) -> str:
    """The name of a folder's index: readable, safe as a file name, and different for different paths."""
    slug = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-")[:40] or "files"
    return f"{slug}-{hashlib.sha256(str(root).encode(errors='surrogateescape')).hexdigest()[:8]}"


class Index:
    """The index of `root`, kept in `folder`. Safe to use from several threads; every call may block."""

    def __init__(self, database: Database, name: str, root: str) -> None:
        self.name = name
        self.root = root
        self._database = database
        self._lock = threading.RLock()
        self._matrix: tuple[list[int], np.ndarray[Any, Any]] | None = None

    @classmethod
    def open(cls, folder: Path, root: Path) -> Self:
        """Open or make the index of `root` at `folder`/NAME/index.db. Raises: StorageError."""
        name = name_of(root)
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        database = Database.open(folder / name / "index.db", _MIGRATIONS)
        if database.read_one("SELECT 1 FROM source") is None:
            database.write("INSERT INTO source VALUES (?, 0)", (str(root),))
        return cls(database, name, str(root))

    def digests(self) -> dict[str, bytes]:
        """The documents that are stored, with the digests of their bytes."""
        return dict(self._database.read("SELECT path, digest FROM documents"))

    def put(self, documents: Sequence[Document], vectors: bytes, width: int) -> None:
        """Store documents in place of those of the same path.

        Args: vectors: little-endian float32, a row for each chunk of each document in order. Shape: (n_chunks, width).
        Raises: BadData when the vectors do not fit, or the index is full.
        """
        n_chunks = sum(len(document.chunks) for document in documents)
        if n_chunks and (not 0 < width <= MAX_WIDTH or len(vectors) != n_chunks * width * FLOAT_BYTES):
            raise BadData(f"the embedding gave {len(vectors)} bytes for {n_chunks} chunks of {width} numbers")
        with self._lock, self._database.transaction():
            if n_chunks:
                self._fix_width(width)
            at = 0
            for document in documents:
                at = self._put_one(document, vectors, at, width * FLOAT_BYTES)
            if self.status().n_chunks > MAX_CHUNKS:
                raise BadData(f"{self.root} has more than {MAX_CHUNKS} chunks: load parts of it one by one")
            self._matrix = None

    def _fix_width(self, width: int) -> None:
        self._database.write("UPDATE source SET width = ? WHERE width = 0", (width,))
        row = self._database.read_one("SELECT width FROM source")
        if row != (width,):
            raise BadData(
                f"the index {self.name} was made with another embedding model: delete its folder and load again"
            )

    def _put_one(self, document: Document, vectors: bytes, at: int, row_bytes: int) -> int:
        self._database.write("DELETE FROM documents WHERE path = ?", (document.path,))
        self._database.write("INSERT INTO documents (path, digest) VALUES (?, ?)", (document.path, document.digest))
        row = self._database.read_one("SELECT id FROM documents WHERE path = ?", (document.path,))
        assert row is not None
        for chunk in document.chunks:
            self._database.write(
                "INSERT INTO chunks (document, first_line, last_line, text, vector) VALUES (?, ?, ?, ?, ?)",
                (row[0], chunk.first_line, chunk.last_line, chunk.text, vectors[at : at + row_bytes]),
            )
            at += row_bytes
        return at

    def remove(self, paths: Collection[str]) -> None:
        """Forget documents."""
        with self._lock, self._database.transaction():
            for path in paths:
                self._database.write("DELETE FROM documents WHERE path = ?", (path,))
            self._matrix = None

    def search(self, vector: bytes, k: int) -> list[Passage]:
        """The `k` chunks nearest to a question's vector (float32, length 1), the best first. Raises: BadData."""
        import numpy as np
        from usearch.index import MetricKind
        from usearch.index import search as nearest

        ids, matrix = self._vectors()
        if not ids:
            return []
        question = np.frombuffer(vector, dtype="<f4")
        if question.shape != matrix.shape[1:]:
            raise BadData(
                f"the index {self.name} was made with another embedding model: delete its folder and load again"
            )
        matches = nearest(matrix, question, min(k, len(ids)), MetricKind.IP, exact=True)
        found = zip(matches.keys.tolist(), matches.distances.tolist(), strict=True)
        return self._passages({ids[key]: 1.0 - distance for key, distance in found})

    def _vectors(self) -> "tuple[list[int], np.ndarray[Any, Any]]":
        import numpy as np

        with self._lock:
            if self._matrix is None:
                rows = self._database.read("SELECT id, vector FROM chunks ORDER BY id")
                flat = np.frombuffer(b"".join(vector for _, vector in rows), dtype="<f4")
                self._matrix = ([row_id for row_id, _ in rows], flat.reshape(len(rows), -1) if rows else flat)
            return self._matrix

    def _passages(self, scores: dict[int, float]) -> list[Passage]:
        marks = ", ".join("?" * len(scores))
        sql = _PASSAGES + f" WHERE chunks.id IN ({marks})"
        rows = self._database.read(sql, tuple(scores))
        told = {row[0]: row[1:] for row in rows}
        return [
            Passage(path=path, first_line=first, last_line=last, text=text, score=score)
            for (path, first, last, text), score in ((told[chunk], score) for chunk, score in scores.items())
        ]

    def status(self) -> IndexStatus:
        """How much is stored."""
        row = self._database.read_one("SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM chunks)")
        assert row is not None
        return IndexStatus(name=self.name, root=self.root, n_documents=row[0], n_chunks=row[1])

    def close(self) -> None:
        """Let go of the file."""
        self._matrix = None
        self._database.close()
