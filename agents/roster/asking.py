"""Ask an agent, wherever it is hosted: a run of one step, which is as durable as any other.

What is asked twice under one name is answered once: so who asks again after a crash gets the same answer.
"""

import hashlib
from typing import Any, Final

from agents.roster.announced import announced, announced_as
from agents.roster.errors import UnknownAgent
from agents.workspace.errors import NotGranted
from agents.workspace.runs.core import Run, runs
from agents.workspace.runs.effects import EffectFailed
from agents.workspace.runs.plan import PREFIX, Plan, Step, value_of
from agents.workspace.space import Space
from agents.workspace.workspace import Workspace
from protocols.workspaces.entries import Put, check
from storage.cid import Cid
from storage.keys import PeerId

MODEL: Final = "model"
STEP: Final = "answer"
PREFIX_OF_ASKS: Final = "ask"
MAX_DEPTH: Final = 4  # of agents that ask agents, which ask agents ...
OVER: Final = ("done", "failed", "cancelled")


def name_for(key: str, agent: str, prompt: str, depth: int) -> str:
    """The name of a question: the same for the same one in the same step. Raises: EffectFailed."""
    if depth > MAX_DEPTH:
        raise EffectFailed(f"agents asked agents {MAX_DEPTH} times over: somebody has to answer")
    told = hashlib.sha256(f"{key} {agent} {prompt}".encode()).hexdigest()[:24]
    return f"{PREFIX_OF_ASKS}.{depth}.{told}"


def depth_of(run: str) -> int:
    """How many agents asked one another for this run to be; 0 for one that a user began."""
    parts = run.split(".")
    return int(parts[1]) if len(parts) == 3 and parts[0] == PREFIX_OF_ASKS and parts[1].isdecimal() else 0


def plan_of_ask(agent: str, prompt: str, timeout_s: float, unix_s: float) -> Plan:
    """One step."""
    step = Step(name=STEP, do=MODEL, agent=agent, input={"prompt": _plain(prompt)}, timeout_s=timeout_s)
    deadline = int(unix_s + timeout_s) + 1
    return Plan(title=f"ask {agent}", steps=(step,), deadline_unix_s=deadline)


def _plain(prompt: str) -> str:
    """The prompt, whose braces name no outputs: one step has none before it but itself."""
    return prompt.replace("{" + STEP + "}", "{ " + STEP + " }").replace("{previous}", "{ previous }")


async def begin(
    one: Workspace, me: PeerId, agent: str, prompt: str, name: str, timeout_s: float, unix_s: float
) -> None:
    """Ask, unless that was asked already. Raises: UnknownAgent, NotGranted, Local, StorageError."""
    key = PREFIX + name
    if key in one.space.values():
        return
    if agent not in {found.name for found in announced(one.space)}:
        raise UnknownAgent(f"there is no agent {agent!r}. See: covey agent ls {one.cid}")
    if not one.space.may(me, "write", key):
        raise NotGranted(f"this node may not write {key!r} in {one.space.history.root.title!r}")
    await one.say(check(Put(key=key, value=value_of(plan_of_ask(agent, prompt, timeout_s, unix_s)))))


def state_of(space: Space, name: str) -> Run | None:
    """How a question stands."""
    return next((run for run in runs(space) if run.name == name), None)


def is_asked(run: Run, agent: str, prompt: str) -> bool:
    """Does a run ask that agent this and nothing else?"""
    steps = run.plan.steps
    return len(steps) == 1 and (steps[0].agent, steps[0].input) == (agent, {"prompt": _plain(prompt)})


def why_not(space: Space, run: Run, agent: str, prompt: str | None = None) -> str:
    """Why the answer that a run came to is none of that agent's; empty where it is.

    Who may run and write there can put another plan in its place, or commit what the agent never said: the answer
    counts where its author is a host of the agent, and names the card that it announced.
    """
    step, view = run.plan.steps[0], run.steps[0]
    card, is_asked = view.made.get("card"), prompt is None or step.input == {"prompt": _plain(prompt)}
    if not is_asked or {step.agent, view.made.get("agent")} != {agent} or not isinstance(card, Cid):
        return f"what stands there is no answer of {agent}"
    if view.by is None or announced_as(space, agent, card, view.by) is None:
        return f"{view.by} answered for {agent}, whose host it is not"
    return ""


async def answer(one: Workspace, name: str, agent: str, prompt: str | None = None) -> Any:
    """Wait for what came of it. With a prompt it has to be that one that was answered. Raises: EffectFailed."""
    while True:
        seen = one.n_news
        run = state_of(one.space, name)
        if run is not None and run.state in OVER:
            why = why_not(one.space, run, agent, prompt) if run.state == "done" else run.why or run.state
            if why:
                raise EffectFailed(f"{agent} gave no answer: {why}")
            return run.steps[0].output
        await one.news(seen)
