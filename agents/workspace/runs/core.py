"""How runs stand, and what a member's node does next for one: read out of the state alone. No IO, no clock."""

from typing import Any, Final, Literal, NamedTuple, cast

from agents.workspace.history import Node
from agents.workspace.runs.plan import APPROVE, CANCEL, PREFIX, BadRun, Plan, filled, idempotency_key, name_of, plan_of
from agents.workspace.space import Space
from protocols.workspaces.entries import Begin, Claim, Commit
from storage.keys import PeerId

APPROVAL: Final = "approval"

State = Literal["running", "waiting", "done", "failed", "cancelled"]


class StepView(NamedTuple):
    """A step. `n_attempts` over 1: it was interrupted or failed, and tried again with the same idempotency key."""

    name: str
    is_done: bool
    is_failed: bool
    n_attempts: int
    output: Any
    by: PeerId | None
    commit: Node | None


class Run(NamedTuple):
    """A run, as its workspace has it."""

    name: str
    node: Node
    plan: Plan
    state: State
    steps: tuple[StepView, ...]
    holder: Node | None

    @property
    def task(self) -> str:
        """What is claimed by who performs it."""
        return PREFIX + self.name

    @property
    def next_step(self) -> int:
        """The first step that is not done."""
        return next((place for place, step in enumerate(self.steps) if not step.is_done), len(self.steps))


class Want(NamedTuple):
    """A claim to be signed."""

    claim: Claim


class Perform(NamedTuple):
    """An effect to be begun, done, and committed."""

    run: Run
    step: int
    claim: Node
    begin: Begin
    input: Any
    key: str


class Say(NamedTuple):
    """A commit to be signed without an effect: what may have been done by another, or a last failure."""

    commit: Commit


Act = Want | Perform | Say


def runs(space: Space) -> list[Run]:
    """Every run, the oldest first."""
    found = []
    values = space.values()
    for key, node in values.items():
        name, plan = name_of(key), plan_of(node)
        if name is not None and plan is not None:
            found.append(_run(space, name, node, plan, is_cancelled=key + CANCEL in values))
    return sorted(found, key=lambda run: run.node.rank)


def _run(space: Space, name: str, node: Node, plan: Plan, *, is_cancelled: bool) -> Run:
    task = PREFIX + name
    steps = []
    for place, step in enumerate(plan.steps):
        commit = space.done(task, place)
        output = cast(Commit, commit.says).output if commit is not None else None
        is_failed = isinstance(output, dict) and "failed" in output
        value = output.get("value") if isinstance(output, dict) and not is_failed else output
        n_attempts = len(space.begun(task, place))
        by = commit.author if commit is not None else None
        steps.append(StepView(step.name, commit is not None, is_failed, n_attempts, value, by, commit))
    state: State = "running"
    if any(step.is_failed for step in steps):
        state = "failed"
    elif all(step.is_done for step in steps):
        state = "done"
    elif is_cancelled:
        state = "cancelled"
    run = Run(name, node, plan, state, tuple(steps), space.holder(task))
    return run._replace(state="waiting") if state == "running" and _awaits_approval(space, run) else run


def _awaits_approval(space: Space, run: Run) -> bool:
    step = run.plan.steps[run.next_step]
    return step.do == APPROVAL and run.task + APPROVE + step.name not in space.values()


def next_act(space: Space, me: PeerId, run: Run, *, is_holder_lost: bool) -> Act | None:
    """What this member does for a run now; None for nothing. `is_holder_lost`: for longer than the lease."""
    if run.state != "running" or not space.may(me, "run", run.task) or space.history.fork_of(me) < 1 << 62:
        return None
    if run.holder is None or (run.holder.author != me and is_holder_lost):
        return _claim(space, run, is_holder_lost=is_holder_lost)
    if run.holder.author != me:
        return None
    step, claim = run.next_step, run.holder
    if any(
        commit.author == me and (says := cast(Commit, commit.says)).step == step and says.claim == claim.entry.cid
        for commit in space.open_commits()
    ):
        return None  # until the others have accepted it
    must = space.accepted(run.task, step, claim)
    if must is not None:
        return Say(Commit(claim=claim.entry.cid, step=step, output=must.output, link=must.link))
    n_begun = len(space.begun(run.task, step))
    if n_begun >= run.plan.steps[step].max_tries:
        failed = {"failed": f"given up after {n_begun} attempts"}
        return Say(Commit(claim=claim.entry.cid, step=step, output=failed))
    outputs = {one.name: one.output for one in run.steps[:step]}
    outputs |= {"previous": run.steps[step - 1].output} if step else {}
    try:
        given = filled(run.plan.steps[step].input, outputs)
    except BadRun as error:
        return Say(Commit(claim=claim.entry.cid, step=step, output={"failed": str(error)}))
    begin = Begin(claim=claim.entry.cid, step=step, attempt=n_begun + 1)
    return Perform(run, step, claim, begin, given, idempotency_key(run.node, step))


def _claim(space: Space, run: Run, *, is_holder_lost: bool) -> Want | None:
    terms = [cast(Claim, claim.says).term for claim in space.claims(run.task)]
    highest = max(terms, default=-1)
    is_open = highest >= 0 and space.winner(run.task, highest) is None
    if is_open and not is_holder_lost:
        return None  # somebody asked already: let the voters answer
    return Want(Claim(task=run.task, term=highest + 1))
