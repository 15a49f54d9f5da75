"""Agents that think outside of the daemon: what one is asked is handed to a process of its user's, which answers.

Declaration, card, tools, policy and record stay the daemon's, so such an agent is to others as any: what its model is
asked and what it says are in the history. A process that goes away loses nothing: what it had not answered fails, and
is asked again as the plan says, with the same key.
"""

import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import trio

from agents.engine.messages import Turn
from agents.errors import AgentError
from agents.roster.declaration import Declaration
from agents.roster.language import MAX_ANSWER_CHARS, Answer
from agents.workspace.runs.effects import EffectFailed
from storage.cid import Cid

KIND: Final = "attached"
FREE_LIMIT_S: Final = 1.0


class AlreadyAttached(AgentError):
    """Another process answers for that agent. End it first."""

    code = "already_attached"


class NothingAsked(AgentError):
    """Nobody waits for that answer: it came too late, or twice."""

    code = "nothing_asked"


class Asked(NamedTuple):
    """What the process is asked. `key` is the step's idempotency key, the same at every attempt."""

    ticket: str
    key: str
    turns: tuple[Turn, ...]
    max_tokens: int


class _Waiting:
    def __init__(self) -> None:
        self.text: str | None = None
        self.why = ""
        self.done = trio.Event()


class Attached:
    """The processes that answer for this node's agents, one for each."""

    def __init__(self) -> None:
        self._lines: dict[tuple[Cid, str], trio.MemorySendChannel[Asked]] = {}
        self._waiting: dict[str, tuple[tuple[Cid, str], _Waiting]] = {}
        self._changed = trio.Event()
        self._n_asked = 0

    @contextmanager
    def attach(self, workspace: Cid, name: str) -> Iterator[AsyncIterator[Asked]]:
        """What the agent is asked, while the block runs. Raises: AlreadyAttached."""
        who = workspace, name
        if who in self._lines:
            raise AlreadyAttached(f"a process answers for {name} already: end it first")
        line, asked = trio.open_memory_channel[Asked](math.inf)  # as many as there are steps under way
        self._lines[who] = line
        self._tell()
        try:
            yield asked
        finally:
            del self._lines[who]
            self._tell()
            for of, one in self._waiting.values():
                if of == who and not one.done.is_set():
                    one.why = f"the process of {name} went away"
                    one.done.set()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def free(self, workspace: Cid, name: str) -> None:
        """Wait until no process answers for an agent: one that was just ended may not be known to be gone."""
        with trio.move_on_after(FREE_LIMIT_S):
            while (workspace, name) in self._lines:
                await self._changed.wait()

    def answer(self, ticket: str, text: str | None, why: str = "") -> None:
        """What the process says. Raises: NothingAsked."""
        found = self._waiting.get(ticket)
        if found is None or found[1].done.is_set():
            raise NothingAsked("nobody waits for that answer: it came too late, or twice")
        found[1].text, found[1].why = text, why
        found[1].done.set()

    async def ask(self, who: tuple[Cid, str], key: str, turns: Sequence[Turn], max_tokens: int) -> str:
        """What the process of an agent answers, once there is one. Raises: EffectFailed."""
        while (line := self._lines.get(who)) is None:
            await self._changed.wait()
        self._n_asked += 1
        ticket, one = f"{key}.{self._n_asked}", _Waiting()
        self._waiting[ticket] = who, one
        try:
            line.send_nowait(Asked(ticket, key, tuple(turns), max_tokens))
            await one.done.wait()
        finally:
            del self._waiting[ticket]
        if one.text is None:
            raise EffectFailed(one.why or f"the process of {who[1]} failed")
        return one.text[:MAX_ANSWER_CHARS]


class AttachedModel:
    """A process as the model of one answer. A token is a word."""

    def __init__(self, attached: Attached, workspace: Cid, declared: Declaration, key: str) -> None:
        self._attached = attached
        self._who = workspace, declared.name
        self._wish = declared.model
        self._key = key

    async def answer(self, turns: Sequence[Turn], max_tokens: int) -> Answer:
        """What it says next. Raises: EffectFailed."""
        with trio.move_on_after(self._wish.timeout_s):
            text = await self._attached.ask(self._who, self._key, turns, max_tokens)
            n_prompt = sum(len(turn.content.split()) for turn in turns)
            name = self._wish.name or KIND
            return Answer(text=text, n_prompt_tokens=n_prompt, n_tokens=len(text.split()), model=name)
        raise EffectFailed(f"no process answered for {self._who[1]} within {self._wish.timeout_s:g} s")
