"""How runs stand, and what a member's node does next for one: read out of the state alone. No IO, no clock."""

import hashlib
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence, Set
from typing import Any, Final, Literal, NamedTuple, cast

from agents.roster.announced import performers
from agents.workspace.claims import asked_for, highest_term
from agents.workspace.history import Node
from agents.workspace.runs.plan import (
    APPROVE,
    BESIDE,
    CANCEL,
    PREFIX,
    PREVIOUS,
    BadRun,
    Plan,
    Step,
    filled,
    idempotency_key,
    name_of,
    plan_of,
)
from agents.workspace.space import Space
from protocols.workspaces.entries import MAX_TERM, Begin, Claim, Commit
from storage.keys import PeerId

APPROVAL: Final = "approval"
NEVER: Final = 1 << 62
IDLE_LEASES: Final = 4  # a holder that shows nothing for so long is replaced, reached or not
MAX_BACKOFF_S: Final = 86400.0
MAX_PATIENCE: Final = 16  # leases that who asked for a task in vain waits at most before it asks again
STAGGER_S: Final = 1.0  # between those of whom anybody could take over

State = Literal["running", "waiting", "done", "failed", "cancelled"]


class StepView(NamedTuple):
    """A step. `n_attempts` over 1: it was interrupted or failed, and tried again with the same idempotency key.

    `place` is where it stands in the plan, `number` how its commit calls it: a loop performs one place several times.
    `task` is what is claimed by who performs it.
    """

    name: str
    is_done: bool
    is_failed: bool
    n_attempts: int
    output: Any
    by: PeerId | None
    commit: Node | None
    place: int
    number: int
    task: str
    time: int

    @property
    def made(self) -> dict[str, Any]:
        """How an agent came to the output: model, prompt, usage, tools; empty where no agent made it."""
        output = cast(Commit, self.commit.says).output if self.commit is not None else None
        made = output.get("made") if isinstance(output, dict) else None
        return made if isinstance(made, dict) else {}

    @property
    def n_tokens(self) -> int:
        """What its model read and wrote."""
        usage = self.made.get("usage")
        counts = [usage.get(name) for name in ("n_prompt_tokens", "n_tokens")] if isinstance(usage, dict) else []
        return sum(count for count in counts if type(count) is int and count > 0)


class Run(NamedTuple):
    """A run, as its workspace has it. `why` says what it waits for, or what it failed with."""

    name: str
    node: Node
    plan: Plan
    state: State
    steps: tuple[StepView, ...]
    holder: Node | None
    stage: tuple[StepView, ...]
    why: str

    @property
    def task(self) -> str:
        """What is claimed by who performs it; of a stage's other steps each has a task below it."""
        return PREFIX + self.name

    @property
    def n_tokens(self) -> int:
        """What its models read and wrote so far."""
        return sum(view.n_tokens for view in self.steps)

    @property
    def n_done(self) -> int:
        """So many steps were performed."""
        return sum(view.is_done for view in self.steps)

    def outputs(self, before: StepView) -> dict[str, Any]:
        """What a step's input may name: the last output of each step and of the stage before it; empty without one."""
        done, last = self.seen_by(before)
        found: dict[str, Any] = {step.name: "" for step in self.plan.steps}
        found |= {view.name: view.output for view in done}
        if last:
            found[PREVIOUS] = last[0].output if len(last) == 1 else _joined(last)
        return found

    def seen_by(self, view: StepView) -> tuple[list[StepView], list[StepView]]:
        """The steps that are done before the stage of a step begins; those of the stage before it."""
        begins = view.number - (view.place - self.plan.first_beside(view.place))
        done = [one for one in self.steps if one.is_done and one.number < begins]
        return done, done[-len(self.plan.stage(self.plan.first_beside(done[-1].place))) :] if done else []


def _joined(views: Sequence[StepView]) -> str:
    """The outputs of a stage as one text, each under its step's name."""
    return "\n\n".join(f"{view.name}:\n{view.output}" for view in views)


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
    view: StepView

    @property
    def plan(self) -> Step:
        """The step as the plan has it."""
        return self.run.plan.steps[self.view.place]


class Say(NamedTuple):
    """A commit to be signed without an effect: what may have been done by another, or a last failure."""

    commit: Commit


Act = Want | Perform | Say


class Outside(NamedTuple):
    """What the state does not tell.

    `is_lost`: is a task's holder out of reach for longer than the lease? `stood_s`: for how long does a task stand like
    this, of what is asked by a name: since it was asked first, or stood otherwise before.
    """

    is_lost: Callable[[str, float], bool] = lambda task, lease_s: False
    stood_s: Callable[[str, str, Hashable], float] = lambda task, what, stand: 0.0
    is_reached: Callable[[PeerId], bool] = lambda peer: True
    unix_s: float = 0.0
    busy: Collection[tuple[str, int]] = ()  # (task, step) that this node is at


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
    steps, stage = _walked(space, name, plan)
    state: State = "running"
    why = ""
    if failed := next((view for view in steps if view.is_failed), None):
        state, why = "failed", f"{failed.name}: {_failure(failed)}"
    elif not stage:
        state = "done"
    elif is_cancelled:
        state = "cancelled"
    run = Run(name, node, plan, state, tuple(steps), space.holder(PREFIX + name), tuple(stage), why)
    if state != "running":
        return run
    if spent := _spent(run):
        return run._replace(state="failed", why=spent)
    waits = [_waits_for(space, run, view) for view in stage if not view.is_done]
    return run._replace(state="waiting", why=waits[0]) if all(waits) else run


def _walked(space: Space, name: str, plan: Plan) -> tuple[list[StepView], list[StepView]]:
    """The steps in the order in which they are performed, loops unrolled as far as they went; the stage that is due."""
    steps: list[StepView] = []
    place = time = 0
    times: dict[int, int] = {}
    places = {step.name: at for at, step in enumerate(plan.steps)}
    while place < len(plan.steps):
        span = plan.stage(place)
        stage = [_view(space, name, plan, at, at - place, time) for at in span]
        steps += stage
        if not all(view.is_done for view in stage) or any(view.is_failed for view in stage):
            rest = [_unreached(name, plan, at, time) for at in range(span.stop, len(plan.steps))]
            return steps + rest, stage
        loop = next((step.loop for step in plan.steps[place : span.stop] if step.loop is not None), None)
        is_said = loop is None or any(loop.until.casefold() in str(view.output).casefold() for view in stage)
        if loop is not None and not is_said and times.get(place, 1) < loop.max_times:
            times[place] = times.get(place, 1) + 1
            time += 1
            place = places[loop.to]
        else:
            place = span.stop
    return steps, []


def _view(space: Space, name: str, plan: Plan, place: int, slot: int, time: int) -> StepView:
    task, number = task_of(name, slot), place + time * len(plan.steps)
    commit = space.done(task, number)
    output = cast(Commit, commit.says).output if commit is not None else None
    is_failed = isinstance(output, dict) and "failed" in output
    value = output.get("value") if isinstance(output, dict) and not is_failed else output
    by = commit.author if commit is not None else None
    n_attempts = len(space.begun(task, number))
    return StepView(
        plan.steps[place].name, commit is not None, is_failed, n_attempts, value, by, commit, place, number, task, time
    )


def _unreached(name: str, plan: Plan, place: int, time: int) -> StepView:
    number = place + time * len(plan.steps)
    return StepView(plan.steps[place].name, False, False, 0, None, None, None, place, number, task_of(name, 0), time)


def task_of(name: str, slot: int) -> str:
    """What is claimed by who performs the step that stands so far beside the first of its stage."""
    return PREFIX + name + (f"{BESIDE}{slot}" if slot else "")


def _failure(view: StepView) -> str:
    return str(view.output.get("failed")) if isinstance(view.output, dict) else "failed"


def _spent(run: Run) -> str:
    """Why no further step may be begun; empty where one may. A function of the state: everybody sees it alike."""
    plan = run.plan
    if plan.max_steps and run.n_done >= plan.max_steps:
        return f"the budget of {plan.max_steps} steps is spent"
    if plan.max_tokens and run.n_tokens >= plan.max_tokens:
        return f"the budget of {plan.max_tokens} tokens is spent: {run.n_tokens} were used"
    return ""


def _waits_for(space: Space, run: Run, view: StepView) -> str:
    step = run.plan.steps[view.place]
    if step.do == APPROVAL and run.task + APPROVE + step.name not in space.values():
        return f"{step.name} waits for approval"
    if performers(space, step.agent, step.role) == frozenset():
        whom = f"the agent {step.agent}" if step.agent is not None else f"an agent with the role {step.role}"
        return f"{step.name} waits for {whom}"
    return ""


def next_acts(space: Space, me: PeerId, run: Run, outside: Outside) -> Iterator[Act]:
    """What this member does for a run now, for each step that is due."""
    if run.state not in ("running", "waiting") or space.history.fork_of(me) < NEVER:
        return
    is_late = 0 < run.plan.deadline_unix_s <= outside.unix_s
    for view in run.stage:
        if view.is_done or (view.task, view.number) in outside.busy or not space.may(me, "run", view.task):
            continue
        if _waits_for(space, run, view) and not is_late:
            continue
        act = _act(space, me, run, view, outside, is_late=is_late)
        if act is not None:
            yield act


def _act(space: Space, me: PeerId, run: Run, view: StepView, outside: Outside, *, is_late: bool) -> Act | None:
    step, claim = run.plan.steps[view.place], space.holder(view.task)
    able = _able(space, me, run, view, outside, is_late=is_late)
    if claim is None or (claim.author != me and _is_free(space, run, view, claim, able, outside)):
        return _claim(space, me, run, view, able, outside)
    if claim.author != me:
        return None
    if any(
        commit.author == me
        and (says := cast(Commit, commit.says)).step == view.number
        and says.claim == claim.entry.cid
        for commit in space.open_commits()
    ):
        return None  # until the others have accepted it
    must = space.accepted(view.task, view.number, claim)
    if must is not None:
        return Say(Commit(claim=claim.entry.cid, step=view.number, output=must.output, link=must.link))
    if able is not None and me not in able:
        return None
    n_begun = len(space.begun(view.task, view.number))
    n_tried = sum(_is_holders(space, view.task, node) for node in space.begun(view.task, view.number))
    if n_tried >= step.max_tries or is_late:
        failed = "the time of the run is over" if is_late else f"given up after {n_tried} attempts"
        return Say(Commit(claim=claim.entry.cid, step=view.number, output={"failed": failed}))
    try:
        given = filled(step.input, run.outputs(view))
    except BadRun as error:
        return Say(Commit(claim=claim.entry.cid, step=view.number, output={"failed": str(error)}))
    begin = Begin(claim=claim.entry.cid, step=view.number, attempt=n_begun + 1)
    return Perform(run, view.number, claim, begin, given, idempotency_key(run.node, view.number), view)


def _able(
    space: Space, me: PeerId, run: Run, view: StepView, outside: Outside, *, is_late: bool
) -> frozenset[PeerId] | None:
    """Who is to go on with a step: who can perform it; None for anybody.

    A run whose time is over ends by anybody only where none of these is reached, or none ends it: else the one clock
    that is fast would end it for all.
    """
    step = run.plan.steps[view.place]
    able = performers(space, step.agent, step.role)
    if not is_late or able is None:
        return able
    is_there = any(peer == me or outside.is_reached(peer) for peer in able)
    stood_s = outside.stood_s(view.task, "late", view.number)
    return able if is_there and stood_s < IDLE_LEASES * run.plan.lease_s else None


class OnTime:
    """What a voter's node goes by when somebody claims a task of a run whose time is not over by its own clock."""

    def __init__(self, space: Space, unix_s: float) -> None:
        self._space = space
        self._unix_s = unix_s
        self._runs: dict[str, Run | None] = {}

    def may_claim(self, claim: Node) -> bool:
        """Could its author do anything but end the run? Not where the step waits, or is for others to perform."""
        task = cast(Claim, claim.stated).task
        run = self._run(task.partition(BESIDE)[0])
        view = next((one for one in run.stage if one.task == task and not one.is_done), None) if run else None
        if run is None or view is None:
            return True
        step = run.plan.steps[view.place]
        able = performers(self._space, step.agent, step.role)
        return not _waits_for(self._space, run, view) and (able is None or claim.author in able)

    def _run(self, key: str) -> Run | None:
        if key not in self._runs:
            self._runs[key] = self._read(key)
        return self._runs[key]

    def _read(self, key: str) -> Run | None:
        """A run that has an end, which is to come."""
        name, node = name_of(key), self._space.values().get(key)
        plan = plan_of(node) if node is not None else None
        if name is None or node is None or plan is None or self._unix_s >= plan.deadline_unix_s:
            return None
        return _run(self._space, name, node, plan, is_cancelled=False)


def _is_free(
    space: Space, run: Run, view: StepView, holder: Node, able: frozenset[PeerId] | None, outside: Outside
) -> bool:
    """Is a task's holder one that cannot do the step, is out of reach, or is reached and does nothing?

    An attempt has the time that the plan gives it. Who begins again and again gains no more than its tries.
    """
    step = run.plan.steps[view.place]
    n_begun = min(len(space.begun(view.task, view.number)), step.max_tries)
    stood_s = outside.stood_s(view.task, "held", (view.number, holder.id, n_begun))
    if outside.is_lost(view.task, run.plan.lease_s) or (able is not None and holder.author not in able):
        return True
    attempt_s = step.timeout_s + min(step.backoff_s * 2**n_begun, MAX_BACKOFF_S) if n_begun else 0.0
    return stood_s >= attempt_s + IDLE_LEASES * run.plan.lease_s


def _is_holders(space: Space, task: str, begun: Node) -> bool:
    """Did who held the task begin that? All attempts are told of, and these use up tries: others' cannot."""
    claim = space.history.get(cast(Begin, begun.says).claim)
    won = space.winner(task, cast(Claim, claim.says).term) if claim is not None else None
    return won is not None and claim is not None and won.id == claim.id


def _claim(
    space: Space, me: PeerId, run: Run, view: StepView, able: frozenset[PeerId] | None, outside: Outside
) -> Want | None:
    task, lease_s = view.task, run.plan.lease_s
    highest = highest_term(space, task)
    is_open = highest >= 0 and space.winner(task, highest) is None
    asked = asked_for(space, me, task)
    patience_s = lease_s * min(2 ** max(asked.n_own - 1, 0), MAX_PATIENCE)
    if is_open and outside.stood_s(task, "asked", asked) < patience_s:
        return None  # somebody asked already: let the voters answer
    if able is not None or highest >= 0:
        turn = _turn(me, able if able is not None else space.voters().keys() | {me}, view, highest + 1, outside)
        gap_s = lease_s if able is not None else min(lease_s, STAGGER_S)
        if turn is None or outside.stood_s(task, "lot", (view.number, asked)) < turn * gap_s:
            return None
    if highest >= MAX_TERM:
        return None  # somebody has used up the terms: a claim of a higher one nobody takes
    return Want(Claim(task=task, term=highest + 1))


def _turn(me: PeerId, able: Set[PeerId], view: StepView, term: int, outside: Outside) -> int | None:
    """Of those who could perform a step one asks for it at a time: two that ask at once may both be refused.

    How many stand before this one by lot; None where it is none of them. Who is first and does not ask is passed over:
    it may be busy, or mean no good.
    """
    if me not in able:
        return None
    reached = (peer for peer in able if peer == me or outside.is_reached(peer))
    return sorted(reached, key=lambda peer: lot(view.task, view.number, term, peer)).index(me)


def lot(task: str, number: int, term: int, peer: PeerId) -> bytes:
    """What a peer draws for a claim; the least goes first."""
    return hashlib.sha256(f"{task} {number} {term} {peer}".encode()).digest()
