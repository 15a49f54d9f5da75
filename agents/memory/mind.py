"""What comes to an agent's mind: the shell that looks in its memory before its model is asked, or for its user."""

from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog
import trio

from agents.errors import AgentError
from agents.memory.indexes import Encoding, Indexes
from agents.memory.items import Item, gather
from agents.memory.recall import merged
from agents.memory.view import View, Worked, choose
from agents.memory.wish import Memory, Search
from agents.workspace.space import Space
from storage.cid import Cid
from storage.errors import StorageError

MEANING_LIMIT_S: Final = 60.0

log = structlog.get_logger(__name__)


class Recalled(NamedTuple):
    """Items with their scores, the best first. `by`: words alone, or both."""

    found: list[tuple[float, Item]]
    by: Search


class Mind:
    """The memories of all agents of a node. Without an encoding it looks for words alone."""

    def __init__(self, folder: Path) -> None:
        self._indexes = Indexes(folder)
        self.encoding: Encoding | None = None

    async def recall(self, space: Space, agent: str, wish: Memory, question: str) -> Recalled:
        """What an agent knows that fits a question. Where meanings cannot be had, words have to do."""
        kept, workspace = gather(space, agent, is_shared=wish.is_shared), space.history.workspace
        items = await trio.to_thread.run_sync(kept.knowledge)
        words = await self._indexes.fitting(workspace, agent, question, items)
        near = await self._near(workspace, agent, question, items) if wish.search == "both" else None
        if near is None:
            return Recalled(merged(words), "words")
        return Recalled(merged(words, near), "both")

    async def _near(self, workspace: Cid, agent: str, question: str, items: list[Item]) -> list[Item] | None:
        if self.encoding is None or not items or not question.strip():
            return None
        try:
            with trio.fail_after(MEANING_LIMIT_S):
                return await self._indexes.near(workspace, agent, self.encoding, question, items)
        except (AgentError, StorageError, OSError, trio.TooSlowError) as error:
            log.warning("memory_by_words_alone", agent=agent, error=str(error))
            return None

    async def view(self, space: Space, agent: str, wish: Memory, given: Any, before: tuple[Worked, ...] = ()) -> View:
        """What the agent's model is told for a step's input."""
        question = given.get("prompt") if isinstance(given, dict) else given
        facts: list[Item] = []
        by: Search = "words"
        if wish.facts and isinstance(question, str):
            recalled = await self.recall(space, agent, wish, question)
            facts, by = [item for _, item in recalled.found], recalled.by
        kept = gather(space, agent, is_shared=False, n_done=wish.episodes)
        done = await trio.to_thread.run_sync(kept.episodes, wish.episodes) if wish.episodes else []
        return choose(wish, facts, done, before, by)

    async def newest_skill(self, space: Space, agent: str, wish: Memory) -> Item | None:
        """The adapter that an agent learnt last."""
        return await trio.to_thread.run_sync(gather(space, agent, is_shared=wish.is_shared).newest_skill)

    async def forget(self, workspace: Cid, agent: str) -> None:
        """Delete what was made of an agent's memory here; the memory itself is the workspace's. Raises: OSError."""
        await self._indexes.forget(workspace, agent)
