"""Performs the runs of one workspace: claims them, does their effects, commits what came out.

An effect is begun durably before it happens and committed durably after. A process that dies in between leaves a step
that was begun and is not done: it is tried again, by the same node or by the next holder, under the same idempotency
key, and its second `begin` tells everybody so. A step that is done is never performed again.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
import trio

from agents.errors import AgentError
from agents.workspace.errors import NoKey
from agents.workspace.runs.core import Perform, Run, Say, Want, next_act, runs
from agents.workspace.runs.effects import EFFECTS, Effect
from agents.workspace.workspace import Workspace
from protocols.errors import ProtocolError
from protocols.workspaces.entries import Claim, Commit
from storage.keys import PeerId

TICK_S: Final = 1.0
MAX_TEXT_CHARS: Final = 500

Boundary = Callable[[str, Perform], Awaitable[None]]

log = structlog.get_logger(__name__)


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
    ) -> None:
        self._one = one
        self._me = me
        self._is_reached = is_reached
        self._emit = emit
        self._effects = effects
        self._on_boundary = on_boundary
        self._seen_s: dict[str, tuple[Any, float]] = {}  # by run: its holder's claim, and when it was last reached
        self._failed_s: dict[tuple[str, int], float] = {}  # no attempt before

    async def run(self) -> None:
        """Perform what is due, for ever."""
        while True:
            seen = self._one.n_news
            is_busy = False
            for run in runs(self._one.space):
                try:
                    is_busy |= self._one.space.has_key() and await self._advance(run)
                except NoKey as error:  # taken away in the midst of it
                    log.info("run_waits", workspace=str(self._one.cid), run=run.name, error=str(error))
            if not is_busy:
                with trio.move_on_after(TICK_S):
                    await self._one.news(seen)

    async def _advance(self, run: Run) -> bool:
        """One act for a run; was there one?"""
        act = next_act(self._one.space, self._me, run, is_holder_lost=self._is_lost(run))
        match act:
            case None:
                return False
            case Want(claim):
                await self._one.say(claim)
            case Say(commit):
                await self._one.say(commit)
            case Perform():
                if trio.current_time() < self._failed_s.get((run.name, act.step), 0.0):
                    return False
                return await self._perform_if_held(run.name, act)
        return True

    async def _perform_if_held(self, name: str, act: Perform) -> bool:
        """Perform it, if over half of the voters know of nobody who has taken over: this node may have been away."""
        if not await self._one.confirm():
            return False
        current = next((run for run in runs(self._one.space) if run.name == name), None)
        if current is None or next_act(self._one.space, self._me, current, is_holder_lost=False) != act:
            return True  # look again at what is to be done
        await self._perform(act)
        return True

    def _is_lost(self, run: Run) -> bool:
        """Was the holder, or who asks to be it, out of reach for longer than the lease?"""
        now_s = trio.current_time()
        claims = self._one.space.claims(run.task)
        newest = max(claims, key=_term_of, default=None)
        if newest is None:
            return False
        known, at_s = self._seen_s.get(run.name, (None, now_s))
        if known != newest.id or (self._is_reached(newest.author) and run.holder is newest):
            at_s = now_s
        self._seen_s[run.name] = (newest.id, at_s)
        return now_s - at_s >= run.plan.lease_s

    async def _perform(self, act: Perform) -> None:
        step = act.run.plan.steps[act.step]
        await self._on_boundary("before begin", act)
        await self._one.say(act.begin)
        if act.begin.attempt > 1:
            self._tell("run_step_retried", act)
        await self._on_boundary("before effect", act)
        try:
            effect = self._effects.get(step.do)
            if effect is None:
                raise AgentError(f"there is no effect {step.do!r} here")
            output = {"value": await effect(act.input, act.key), "key": act.key}
        except (AgentError, ProtocolError, OSError, trio.TooSlowError) as error:
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
        wait_s = act.run.plan.steps[act.step].backoff_s * 2 ** (act.begin.attempt - 1)
        self._failed_s[act.run.name, act.step] = trio.current_time() + wait_s
        self._tell("run_step_failed", act, text=str(error)[:MAX_TEXT_CHARS])

    def _tell(self, kind: str, act: Perform, **fields: Any) -> None:
        self._emit(
            kind, workspace=str(self._one.cid), run=act.run.name, step=act.run.plan.steps[act.step].name,
            attempt=act.begin.attempt, key=act.key, **fields,
        )  # fmt: skip


def _term_of(claim: Any) -> int:
    return claim.says.term if isinstance(claim.says, Claim) else -1
