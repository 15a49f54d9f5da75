"""Performs the runs of one workspace: claims them, does their effects, commits what came out.

An effect is begun durably before it happens and committed durably after. A process that dies in between leaves a step
that was begun and is not done: it is tried again, by the same node or by the next holder, under the same idempotency
key, and its second `begin` tells everybody so. A step that is done is never performed again.
"""

from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, Final, Protocol

import structlog
import trio

from agents.errors import AgentError
from agents.workspace.errors import NoKey
from agents.workspace.runs.core import APPROVAL, Outside, Perform, Run, Say, Want, next_acts, runs
from agents.workspace.runs.effects import EFFECTS, Effect, EffectFailed
from agents.workspace.runs.slots import Slots
from agents.workspace.workspace import Workspace
from protocols.errors import ProtocolError
from protocols.workspaces.entries import Commit
from storage.cid import Cid
from storage.errors import NotFound
from storage.keys import PeerId

TICK_S: Final = 1.0
MAX_TEXT_CHARS: Final = 500

Boundary = Callable[[str, Perform], Awaitable[None]]

log = structlog.get_logger(__name__)


class Agents(Protocol):
    """The agents that this node hosts."""

    async def perform(self, one: Workspace, act: Perform) -> tuple[Any, dict[str, Any]]:
        """Have an agent do a step: what came out, and how. Raises: AgentError, ProtocolError, OSError, TooSlowError."""
        ...

    async def attend(self, one: Workspace) -> None:
        """Keep to a workspace for ever, whoever comes and goes."""
        ...

    async def content(self, one: Workspace, peer: PeerId, cid: Cid) -> bytes | None:
        """A block of the workspace's content, for a member; None for any other. Raises: StorageError, OSError."""
        ...


async def _nothing(_where: str, _act: Perform) -> None:
    await trio.lowlevel.checkpoint()


class Runner:
    """One workspace's. `is_reached`: can a peer be reached? `on_boundary` is for who breaks things there."""

    def __init__(
        self,
        one: Workspace,
        me: PeerId,
        is_reached: Callable[[PeerId], bool],
        emit: Callable[..., None],
        effects: Mapping[str, Effect] = EFFECTS,
        on_boundary: Boundary = _nothing,
        agents: Agents | None = None,
        unix_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._one = one
        self._me = me
        self._is_reached = is_reached
        self._emit = emit
        self._effects = effects
        self._on_boundary = on_boundary
        self._agents = agents
        self._unix_s = unix_s
        self._seen_s: dict[str, tuple[Any, float]] = {}  # by task: its holder's claim, and when it was reached
        self._stood_s: dict[tuple[str, str], tuple[Hashable, float]] = {}  # how a task stands, and since when
        self._failed_s: dict[tuple[str, int], float] = {}  # no attempt before
        self._slots = Slots()

    async def run(self) -> None:
        """Perform what is due, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                seen = self._one.n_news
                is_busy = False
                for run in self._slots.in_turn(runs(self._one.space)):
                    try:
                        is_busy |= self._one.space.has_key() and await self._advance(run, nursery)
                    except (NoKey, ProtocolError) as error:  # taken away in the midst of it; or it fits into no entry
                        self._waits(run, error)
                if not is_busy:
                    with trio.move_on_after(TICK_S):
                        await self._one.news(seen)

    def _waits(self, run: Run, error: NoKey | ProtocolError) -> None:
        log.info("run_waits", workspace=str(self._one.cid), run=run.name, error=str(error))

    def _outside(self) -> Outside:
        return Outside(self._is_lost, self._has_stood_s, self._is_reached, self._unix_s(), self._slots.busy)

    async def _advance(self, run: Run, nursery: trio.Nursery) -> bool:
        """What is due of a run; was anything signed for it?"""
        for act in next_acts(self._one.space, self._me, run, self._outside()):
            match act:
                case Want(claim):
                    await self._one.say(claim)
                    return True  # the state is another now
                case Say(commit):
                    await self._one.say(commit)
                    return True
                case Perform():
                    place = (act.view.task, act.step)
                    is_early = trio.current_time() < self._failed_s.get(place, 0.0)
                    if not is_early and self._slots.take(place, run.node.author):
                        nursery.start_soon(self._perform_if_held, act)
        return False

    async def _perform_if_held(self, act: Perform) -> None:
        """Perform it, if over half of the voters know of nobody who has taken over: this node may have been away."""
        place = (act.view.task, act.step)
        try:
            if not await self._one.confirm():
                self._failed_s[place] = trio.current_time() + TICK_S
            elif self._is_due(act):
                await self._perform(act)
        except (NoKey, ProtocolError) as error:
            self._waits(act.run, error)
        finally:
            self._slots.free(place)

    def _is_due(self, act: Perform) -> bool:
        """Is it still what this node does next?"""
        outside = self._outside()._replace(busy=self._slots.busy - {(act.view.task, act.step)}, is_lost=_never)
        current = next((run for run in runs(self._one.space) if run.name == act.run.name), None)
        return current is not None and any(
            isinstance(one, Perform) and (one.view.task, one.claim, one.begin, one.input, one.key)
            == (act.view.task, act.claim, act.begin, act.input, act.key)
            for one in next_acts(self._one.space, self._me, current, outside)
        )  # fmt: skip

    def _is_lost(self, task: str, lease_s: float) -> bool:
        """Was the holder out of reach for longer than the lease?"""
        now_s = trio.current_time()
        holder = self._one.space.holder(task)
        if holder is None:
            return False
        known, at_s = self._seen_s.get(task, (None, now_s))
        if known != holder.id or self._is_reached(holder.author):
            at_s = now_s
        self._seen_s[task] = (holder.id, at_s)
        return now_s - at_s >= lease_s

    def _has_stood_s(self, task: str, what: str, stand: Hashable) -> float:
        now_s = trio.current_time()
        known, at_s = self._stood_s.get((task, what), (None, now_s))
        if known != stand:
            at_s = now_s
        self._stood_s[task, what] = (stand, at_s)
        return now_s - at_s

    async def _perform(self, act: Perform) -> None:
        step = act.plan
        await self._on_boundary("before begin", act)
        await self._one.say(act.begin)
        if act.begin.attempt > 1:
            self._tell("run_step_retried", act)
        await self._on_boundary("before effect", act)
        try:
            with trio.fail_after(step.timeout_s):
                output = await self._happen(act)
        except (AgentError, ProtocolError, OSError, NotFound, trio.TooSlowError) as error:
            self._note_failure(act, error)
            return
        await self._on_boundary("after effect", act)
        try:
            await self._one.say(Commit(claim=act.claim.entry.cid, step=act.step, output=output))
        except ProtocolError as error:  # what came out does not fit into an entry
            self._note_failure(act, error)
            return
        await self._on_boundary("after commit", act)

    def _note_failure(self, act: Perform, error: Exception) -> None:
        wait_s = act.plan.backoff_s * 2 ** (act.begin.attempt - 1)
        self._failed_s[act.view.task, act.step] = trio.current_time() + wait_s
        text = str(error) or f"no answer within {act.plan.timeout_s:g} s"
        self._tell("run_step_failed", act, text=text[:MAX_TEXT_CHARS])

    async def _happen(self, act: Perform) -> dict[str, Any]:
        """Have the effect, and return what is committed."""
        step = act.plan
        if (step.agent is None and step.role is None) or step.do == APPROVAL:
            effect = self._effects.get(step.do)
            if effect is None:
                raise EffectFailed(f"there is no effect {step.do!r} here")
            return {"value": await effect(act.input, act.key), "key": act.key}
        if self._agents is None:
            raise EffectFailed("this node hosts no agents")
        value, made = await self._agents.perform(self._one, act)
        return {"value": value, "key": act.key, "made": made}

    def _tell(self, kind: str, act: Perform, **fields: Any) -> None:
        self._emit(
            kind, workspace=str(self._one.cid), run=act.run.name, step=act.plan.name,
            attempt=act.begin.attempt, key=act.key, **fields,
        )  # fmt: skip


def _never(_task: str, _lease_s: float) -> bool:
    return False
