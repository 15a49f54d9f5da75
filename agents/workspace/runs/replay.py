"""A run once more, from its history: the same inputs have to give the same outputs, up to the first that does not.

What an agent said and what its tools returned stands in the history, so a step of an agent's is not asked again: its
prompt is made anew out of the recorded outputs before it, and where that is the recorded one, the recorded answer is
the output. `Live` asks again all the same, and tells the difference.
"""

import difflib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, cast

from agents.errors import AgentError
from agents.workspace.runs.core import APPROVAL, Run, StepView
from agents.workspace.runs.effects import Effect
from agents.workspace.runs.plan import Plan, Step, filled, idempotency_key
from protocols.errors import ProtocolError
from protocols.workspaces.entries import Commit
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor

MODEL: Final = "model"
MAX_DIFF_LINES: Final = 200

Told = Callable[[Run, StepView, Any], "list[dict[str, str]] | None"]
Live = Callable[[str, str, Any, str], Awaitable[Any]]


class Differs(AgentError):
    """A step that is performed again does not give what is recorded. To see where it comes from: covey provenance."""

    code = "differs"


class Replayed(NamedTuple):
    """A step that was performed again. `recorded` and `now` are the CIDs of its output; `diff` is for people."""

    name: str
    recorded: Cid
    now: Cid | None
    why: str
    diff: tuple[str, ...] = ()

    @property
    def is_same(self) -> bool:
        """Did the same come out?"""
        return self.recorded == self.now


def output_cid(output: Any) -> Cid:
    """By what an output is compared."""
    return Cid.of(dag_cbor.encode(output), DAG_CBOR)


def _nothing_told(_run: Run, _view: StepView, _given: Any) -> None:
    return None


async def replay(
    run: Run,
    effects: Mapping[str, Effect],
    *,
    plan: Plan | None = None,
    told: Told = _nothing_told,
    live: Live | None = None,
) -> list[Replayed]:
    """Perform each step that is done with the recorded outputs of those before it; stops at the first that differs.

    Args:
        plan: another plan to try, instead of the recorded one.
        told: what the agent of a step, if it is here, would be told for an input, as turns; None if it is not.
        live: asks an agent here again (agent, do, input, key). Then it goes on past what differs.
    """
    found: list[Replayed] = []
    wish = plan or run.plan
    for view in run.steps:
        if view.commit is None:
            break
        one = await _again(run, view, wish, effects, told, live)
        found.append(one)
        if not one.is_same and live is None:
            break
    return found


async def _again(
    run: Run, view: StepView, wish: Plan, effects: Mapping[str, Effect], told: Told, live: Live | None
) -> Replayed:
    recorded = output_cid(cast(Commit, cast(Any, view.commit).says).output)
    if view.place >= len(wish.steps) or wish.steps[view.place].name != view.name:
        return Replayed(view.name, recorded, None, "the plan has another step in its place")
    step = wish.steps[view.place]
    if view.is_failed:  # what its attempts ended with is recorded, as an answer is, and nothing of what they were asked
        is_same = step == run.plan.steps[view.place]
        return Replayed(view.name, recorded, recorded if is_same else None, "" if is_same else "the step has changed")
    try:
        given, key = filled(step.input, run.outputs(view)), idempotency_key(run.node, view.number)
        if not view.made:
            value = await _effect(step, effects)(given, key)
            again = output_cid({"value": value, "key": key})
            return Replayed(view.name, recorded, again, "" if again == recorded else "another output")
        if live is not None:
            return _compared(view, recorded, await live(str(view.made.get("agent")), step.do, given, key))
        now, why = rebuilt(run, view, step, given, told)
        return Replayed(view.name, recorded, now, why)
    except (AgentError, ProtocolError, OSError) as error:
        return Replayed(view.name, recorded, None, str(error))


def _effect(step: Step, effects: Mapping[str, Effect]) -> Effect:
    effect = effects.get(step.do)
    if effect is None:
        raise AgentError(f"there is no effect {step.do!r} here")
    return effect


def rebuilt(run: Run, view: StepView, step: Step, given: Any, told: Told = _nothing_told) -> tuple[Cid | None, str]:
    """The output of an agent's step as its record gives it, where the agent would be asked the same; else why not."""
    made = view.made
    if step.do != made.get("do"):
        return None, f"the plan says {step.do}, and {made.get('do')} was done"
    if step.do == MODEL:
        asked = given.get("prompt") if isinstance(given, dict) else given
        prompt = made.get("prompt")
        if not isinstance(prompt, list) or not prompt or prompt[-1] != {"role": "user", "content": asked}:
            return None, "the prompt has changed"
        now = told(run, view, given)
        if now is not None and now != prompt:
            return None, f"{made.get('agent')} is told otherwise now"
    elif step.do != APPROVAL and made.get("input") != given:
        return None, "the input has changed"
    key = idempotency_key(run.node, view.number)
    return output_cid({"value": view.output, "key": key, "made": made}), ""


def _compared(view: StepView, recorded: Cid, value: Any) -> Replayed:
    if value == view.output:
        return Replayed(view.name, recorded, recorded, "")
    lines = difflib.unified_diff(
        str(view.output).splitlines(), str(value).splitlines(), "recorded", "now", lineterm="", n=1
    )
    return Replayed(view.name, recorded, output_cid(value), "another answer", tuple(lines)[:MAX_DIFF_LINES])
