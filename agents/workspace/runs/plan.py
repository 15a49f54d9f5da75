"""What a run is to do: steps in a row, each an effect with an input. A plan is the value of the key `runs/NAME`.

Steps that stand `beside` the one before them are performed at the same time: together they are a stage. A stage begins
when the one before it is done; a `loop` at its end goes back to an earlier one until its output says what it ought to.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from agents.errors import AgentError
from agents.workspace.history import Node
from protocols.workspaces.entries import Put
from storage.codecs import dag_json
from storage.errors import InvalidBlock, TooLarge

PREFIX: Final = "runs/"
CANCEL: Final = "/cancel"
APPROVE: Final = "/approve/"
MAX_STEPS: Final = 10_000
MAX_BESIDE: Final = 64  # steps of one stage
BESIDE: Final = "/beside/"
PREVIOUS: Final = "previous"

MAX_FILLED_CHARS: Final = 1 << 20  # of outputs in one input: each of them may be named often

_NAME: Final = r"[A-Za-z0-9._-]{1,64}"
_SLOT: Final = re.compile("{(" + _NAME + ")}")
_KEY: Final = re.compile(f"{PREFIX}({_NAME})")

Name = Annotated[str, Meta(pattern=rf"^{_NAME}\Z")]


class BadRun(AgentError):
    """That is no plan for a run."""

    code = "bad_run"


class Loop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Feedback: go back to the step `to` unless an output of this stage has `until` in it; `max_times` in all."""

    to: Name
    until: Annotated[str, Meta(min_length=1, max_length=200)]
    max_times: Annotated[int, Meta(ge=1, le=100)] = 3


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """`do` names the effect; `input` may hold `{previous}` and `{NAME}` in its texts, for the output of earlier steps.

    agent, role: whose effect it is: that agent's, or any agent's of that role. None: any member's.
    max_tries: how often it is begun at most; backoff_s: the wait after a first failure, doubled with each further one;
    timeout_s: how long one attempt may take.
    """

    name: Name
    do: Name
    input: Any = None
    agent: Name | None = None
    role: Name | None = None
    beside: bool = False
    loop: Loop | None = None
    max_tries: Annotated[int, Meta(ge=1, le=1000)] = 3
    backoff_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0
    timeout_s: Annotated[float, Meta(ge=0.1, le=86400.0)] = 600.0


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """`lease_s`: how long who performs a step may be out of reach before another takes over.

    The budget: `max_steps` and `max_tokens` in all (0: any), and `deadline_unix_s`, which `max_wall_s` from the start
    becomes. A run that has spent it fails.
    """

    format: Literal[1] = 1
    title: Annotated[str, Meta(min_length=1, max_length=200)]
    steps: Annotated[tuple[Step, ...], Meta(min_length=1, max_length=MAX_STEPS)]
    lease_s: Annotated[float, Meta(ge=0.5, le=86400.0)] = 15.0
    max_steps: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    max_tokens: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    max_wall_s: Annotated[float, Meta(ge=0.0, le=366 * 86400.0)] = 0.0
    deadline_unix_s: Annotated[int, Meta(ge=0, le=1 << 40)] = 0

    def stage(self, place: int) -> range:
        """The places of the steps that are performed together, from the first of them on."""
        end = place + 1
        while end < len(self.steps) and self.steps[end].beside:
            end += 1
        return range(place, end)

    def first_beside(self, place: int) -> int:
        """The place of the first step of a step's stage."""
        while self.steps[place].beside:
            place -= 1
        return place


def read_plan(value: Any) -> Plan:
    """Raises: BadRun."""
    try:
        plan = msgspec.convert(value, Plan)
    except msgspec.ValidationError as error:
        raise BadRun(f"that is no plan for a run: {error}") from None
    names = [step.name for step in plan.steps]
    if len(set(names)) < len(names) or PREVIOUS in names:
        raise BadRun("each step has a name of its own, and none is called `previous`")
    _check_stages(plan, {name: place for place, name in enumerate(names)})
    return plan


def _check_stages(plan: Plan, places: dict[str, int]) -> None:
    """Raises: BadRun."""
    if plan.steps[0].beside:
        raise BadRun("the first step stands beside nothing")
    first = 0
    while first < len(plan.steps):
        stage = plan.stage(first)
        loops = [step.loop for step in plan.steps[first : stage.stop] if step.loop is not None]
        if len(stage) > MAX_BESIDE or len(loops) > 1:
            raise BadRun(f"a stage has {MAX_BESIDE} steps at most, and one loop")
        for loop in loops:
            to = places.get(loop.to)
            if to is None or to > first or plan.steps[to].beside:
                raise BadRun(f"a loop goes back to the first step of a stage, and {loop.to!r} is none before it")
        first = stage.stop
    for step in plan.steps:
        if step.agent is not None and step.role is not None:
            raise BadRun(f"the step {step.name!r} is an agent's, or any agent's of a role, not both")


def started(plan: Plan, unix_s: float) -> Plan:
    """The plan as it begins now: its time has an end."""
    if not plan.max_wall_s:
        return plan
    ends = int(unix_s + plan.max_wall_s) + 1
    return msgspec.structs.replace(plan, deadline_unix_s=min(ends, plan.deadline_unix_s or ends))


def value_of(plan: Plan) -> Any:
    """The value that says this."""
    return msgspec.json.decode(msgspec.json.encode(plan))


def idempotency_key(run: Node, step: int) -> str:
    """The same for every attempt at a step, whoever makes it: by which an outside system knows a repeated effect."""
    return hashlib.sha256(bytes(run.id) + step.to_bytes(8)).hexdigest()[:32]


def name_of(key: str) -> str | None:
    """The name of the run whose plan stands under a key."""
    found = _KEY.fullmatch(key)
    return found[1] if found is not None else None


def plan_of(node: Node) -> Plan | None:
    """The plan that an entry put there, where it is one."""
    try:
        return read_plan(node.says.value) if isinstance(node.says, Put) else None
    except BadRun:
        return None


def _text_of(output: Any) -> str:
    try:
        return dag_json.encode(output).decode()
    except (InvalidBlock, TooLarge) as error:
        raise BadRun(f"an output that it takes in is no text: {error}") from None


def filled(value: Any, outputs: Mapping[str, Any]) -> Any:
    """An input, the outputs of earlier steps in their places; what stands in an output is not looked into again.

    Raises: BadRun, where a plan has it grow beyond MAX_FILLED_CHARS.
    """
    n_left = MAX_FILLED_CHARS

    def text_of(slot: re.Match[str]) -> str:
        nonlocal n_left
        if slot[1] not in outputs:
            return slot[0]
        output = outputs[slot[1]]
        text = output if isinstance(output, str) else _text_of(output)
        n_left -= len(text)
        if n_left < 0:
            raise BadRun(f"the outputs that it takes in come to over {MAX_FILLED_CHARS} characters")
        return text

    def fill(value: Any) -> Any:
        match value:
            case str():
                return _SLOT.sub(text_of, value)
            case list() | tuple():
                return [fill(item) for item in value]
            case dict():
                return {key: fill(item) for key, item in value.items()}
            case _:
                return value

    return fill(value)
