"""Bring an index up to date with its folder, and search indexes: the shell around files, chunks, engine and disk."""

import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Final

import trio

from agents.encoders import Embedder, embed
from agents.retrieval.chunks import chunk
from agents.retrieval.events import Loaded, LoadEvent, Read, Skipped
from agents.retrieval.files import Found, read, text_of, walk
from agents.retrieval.index import Document, Index, Passage

BATCH_CHUNKS: Final = 32
BATCH_DOCUMENTS: Final = 256
N_SKIPPED_TOLD: Final = 50


async def load(index: Index, engine: Embedder) -> AsyncGenerator[LoadEvent, None]:
    """Read what changed below the index's root, embed and store it; documents that are gone are removed.

    Closing the generator early keeps what was stored; the next load goes on from there. Raises: FileNotFoundError,
    AgentError, StorageError.
    """
    items = await trio.to_thread.run_sync(lambda: list(walk(Path(index.root))))
    found = [item for item in items if isinstance(item, Found)]
    skipped = [item for item in items if isinstance(item, Skipped)]
    known = await trio.to_thread.run_sync(index.digests)
    seen: set[str] = set()
    batch: list[Document] = []
    n_embedded = 0
    for n_done, file in enumerate(found, 1):
        made = await trio.to_thread.run_sync(_document, file, known.get(file.name))
        if isinstance(made, Skipped):
            skipped.append(made)
            continue
        seen.add(file.name)
        if made is not None:
            batch.append(made)
            n_embedded += 1
        if sum(len(document.chunks) for document in batch) >= BATCH_CHUNKS or len(batch) >= BATCH_DOCUMENTS:
            await _store(index, engine, batch)
            batch = []
            yield Read(n_done=n_done, n_files=len(found))
    await _store(index, engine, batch)
    gone = known.keys() - seen
    await trio.to_thread.run_sync(index.remove, gone)
    for one in skipped[:N_SKIPPED_TOLD]:
        yield one
    status = await trio.to_thread.run_sync(index.status)
    yield Loaded(
        name=index.name,
        root=index.root,
        n_documents=status.n_documents,
        n_chunks=status.n_chunks,
        n_embedded=n_embedded,
        n_unchanged=len(seen) - n_embedded,
        n_removed=len(gone),
        skipped=dict(Counter(one.reason for one in skipped)),
    )


async def search(indexes: Sequence[Index], engine: Embedder, question: str, k: int) -> list[Passage]:
    """The `k` passages nearest to the question over all indexes, the best first. Raises: AgentError."""
    if not indexes:
        return []
    vector, _ = await embed(engine, [question])
    found: list[Passage] = []
    for index in indexes:
        found += await trio.to_thread.run_sync(index.search, vector, k)
    return sorted(found, key=lambda passage: -passage.score)[:k]


def _document(file: Found, known: bytes | None) -> Document | Skipped | None:
    """The chunks of a file; None if its bytes are those that are stored."""
    data = read(file)
    if isinstance(data, Skipped):
        return data
    digest = hashlib.sha256(data).digest()
    if digest == known:
        return None
    text = text_of(file, data)
    return text if isinstance(text, Skipped) else Document(file.name, digest, tuple(chunk(text)))


async def _store(index: Index, engine: Embedder, documents: Sequence[Document]) -> None:
    texts = [part.text for document in documents for part in document.chunks]
    rows: list[bytes] = []
    width = 0
    for at in range(0, len(texts), BATCH_CHUNKS):
        vectors, width = await embed(engine, texts[at : at + BATCH_CHUNKS])
        rows.append(vectors)
    if documents:
        await trio.to_thread.run_sync(index.put, documents, b"".join(rows), width)
