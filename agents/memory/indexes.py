"""Memory by words and by meaning: indexes of an agent's items on its host's disk, made anew from these when lost."""

import shutil
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from agents.memory.items import Item
from agents.memory.recall import MAX_QUESTION_CHARS, MAX_RANKED
from agents.retrieval.chunks import chunk
from agents.retrieval.index import Document, Index
from agents.retrieval.words import IN_MEMORY, Words
from storage.cid import Cid
from storage.errors import Corrupt, StorageError

SUFFIX: Final = ".memory"
WORDS: Final = "words.db"
BATCH_TEXTS: Final = 32
MIN_SCORE: Final = 0.2  # cosine: what is further from the question has nothing to do with it

log = structlog.get_logger(__name__)

Embed = Callable[[Sequence[str]], Awaitable[tuple[bytes, int]]]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How texts become vectors: float32 rows and their width. `name`: vectors of one encoder alone are compared."""

    name: str
    embed: Embed


class Indexes:
    """Those of a node's agents: `WORKSPACE/NAME.memory` below `folder`, one of words, and one for each encoder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: dict[Path, trio.Lock] = {}

    async def fitting(self, workspace: Cid, agent: str, question: str, items: Sequence[Item]) -> list[Item]:
        """The items that have words of a question, the best first."""
        folder = self._of(workspace, agent)
        async with self._locks.setdefault(folder, trio.Lock()):
            return await trio.to_thread.run_sync(by_words, folder, question, items)

    async def near(
        self, workspace: Cid, agent: str, encoding: Encoding, question: str, items: Sequence[Item]
    ) -> list[Item]:
        """The items nearest to a question, the best first. Raises: AgentError, StorageError, OSError."""
        folder = self._of(workspace, agent)
        async with self._locks.setdefault(folder, trio.Lock()):
            index = await trio.to_thread.run_sync(Index.open, folder, Path(encoding.name))
            try:
                known = {str(item.cid): item for item in items}
                await _keep_up(index, encoding, known)
                vector, _ = await encoding.embed([question[:MAX_QUESTION_CHARS]])
                passages = await trio.to_thread.run_sync(index.search, vector, 2 * MAX_RANKED)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(index.close)
        names = dict.fromkeys(one.path for one in passages if one.score >= MIN_SCORE)
        return [known[name] for name in names][:MAX_RANKED]

    def _of(self, workspace: Cid, agent: str) -> Path:
        return self._folder / str(workspace) / f"{agent}{SUFFIX}"

    async def forget(self, workspace: Cid, agent: str) -> None:
        """Delete an agent's indexes: they can be made again. Raises: OSError."""
        folder = self._of(workspace, agent)
        async with self._locks.setdefault(folder, trio.Lock()):
            if await trio.to_thread.run_sync(folder.is_dir):
                await trio.to_thread.run_sync(shutil.rmtree, folder)


def by_words(folder: Path, question: str, items: Sequence[Item]) -> list[Item]:
    """The items that have words of a question, the best first.

    By the index in `folder`, which is brought up to date before. One that is damaged is made anew; where none can be
    kept, as on a full disk, one in memory does.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return _by_words(folder / WORDS, question, items)
        except Corrupt:
            for name in (WORDS, f"{WORDS}-wal", f"{WORDS}-shm"):
                (folder / name).unlink(missing_ok=True)
            return _by_words(folder / WORDS, question, items)
    except (StorageError, OSError) as error:
        log.warning("memory_without_an_index", folder=str(folder), error=str(error))
        return _by_words(IN_MEMORY, question, items)


def _by_words(path: Path, question: str, items: Sequence[Item]) -> list[Item]:
    known = {str(item.cid): item for item in items}
    with closing(Words.open(path)) as words:
        stored = words.names()
        if gone := stored - known.keys():
            words.remove(gone)
        if fresh := {name: item.text for name, item in known.items() if name not in stored}:
            words.put(fresh)
        return [known[name] for _, name in words.search(question[:MAX_QUESTION_CHARS], MAX_RANKED)]


async def _keep_up(index: Index, encoding: Encoding, known: dict[str, Item]) -> None:
    """Embed what is new, forget what is gone."""
    stored = await trio.to_thread.run_sync(index.digests)
    if gone := stored.keys() - known.keys():
        await trio.to_thread.run_sync(index.remove, gone)
    fresh = [name for name in known if name not in stored]
    for at in range(0, len(fresh), BATCH_TEXTS):
        documents = [
            Document(name, known[name].cid.multihash, tuple(chunk(known[name].text)))
            for name in fresh[at : at + BATCH_TEXTS]
        ]
        texts = [part.text for document in documents for part in document.chunks]
        rows, width = [], 0
        for start in range(0, len(texts), BATCH_TEXTS):
            vectors, width = await encoding.embed(texts[start : start + BATCH_TEXTS])
            rows.append(vectors)
        await trio.to_thread.run_sync(partial(index.put, documents, b"".join(rows), width))
