"""A run once more, from its history: the same inputs have to give the same outputs, up to the first that does not."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from agents.errors import AgentError
from agents.workspace.runs.core import Run
from agents.workspace.runs.effects import Effect
from agents.workspace.runs.plan import filled, idempotency_key
from protocols.workspaces.entries import Commit
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor


class Replayed(NamedTuple):
    """A step that was performed again. `recorded` and `now` are the CIDs of its output."""

    name: str
    recorded: Cid
    now: Cid | None
    why: str

    @property
    def is_same(self) -> bool:
        """Did the same come out?"""
        return self.recorded == self.now


def output_cid(output: Any) -> Cid:
    """By what an output is compared."""
    return Cid.of(dag_cbor.encode(output), DAG_CBOR)


async def replay(run: Run, effects: Mapping[str, Effect]) -> list[Replayed]:
    """Perform each step that is done with the recorded outputs of those before it; stops at the first that differs."""
    found: list[Replayed] = []
    for view in run.steps:
        if view.commit is None:
            break
        step = run.plan.steps[view.place]
        recorded = output_cid(cast(Commit, view.commit.says).output)
        key = idempotency_key(run.node, view.number)
        effect = effects.get(step.do)
        now, why = None, f"there is no effect {step.do!r} here"
        if effect is not None:
            try:
                value = await effect(filled(step.input, run.outputs(view)), key)
                now = output_cid({"value": value, "key": key})
                why = "" if now == recorded else "another output"
            except AgentError as error:
                why = str(error)
        found.append(Replayed(step.name, recorded, now, why))
        if now != recorded:
            break
    return found
