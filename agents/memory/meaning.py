"""Memory by meaning: a vector index of an agent's items on its host's disk, made anew from them when it is lost."""

import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from agents.memory.items import Item
from agents.memory.recall import MAX_QUESTION_CHARS, MAX_RANKED
from agents.retrieval.chunks import chunk
from agents.retrieval.index import Document, Index
from storage.cid import Cid

SUFFIX: Final = ".memory"
BATCH_TEXTS: Final = 32
MIN_SCORE: Final = 0.2  # cosine: what is further from the question has nothing to do with it

Embed = Callable[[Sequence[str]], Awaitable[tuple[bytes, int]]]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How texts become vectors: float32 rows and their width. `name`: vectors of one encoder alone are compared."""

    name: str
    embed: Embed


class Meanings:
    """The indexes of a node's agents: `WORKSPACE/NAME.memory` below `folder` for each, in it one for each encoder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: dict[Path, trio.Lock] = {}

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
