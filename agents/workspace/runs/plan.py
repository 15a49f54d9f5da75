"""What a run is to do: steps in a row, each an effect with an input. A plan is the value of the key `runs/NAME`."""

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
MAX_FILLED_CHARS: Final = 1 << 20  # of outputs in one input: each of them may be named often

_NAME: Final = r"[A-Za-z0-9._-]{1,64}"
_SLOT: Final = re.compile("{(" + _NAME + ")}")
_KEY: Final = re.compile(f"{PREFIX}({_NAME})")

Name = Annotated[str, Meta(pattern=rf"^{_NAME}\Z")]


class BadRun(AgentError):
    """That is no plan for a run."""

    code = "bad_run"


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`do` names the effect; `input` may hold `{previous}` and `{NAME}` in its texts, for the output of earlier steps.

    max_tries: how often it is begun at most; backoff_s: the wait after a first failure, doubled with each further one.
    """

    name: Name
    do: Name
    input: Any = None
    max_tries: Annotated[int, Meta(ge=1, le=1000)] = 3
    backoff_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`lease_s`: how long who performs it may be out of reach before another takes over."""

    format: Literal[1] = 1
    title: Annotated[str, Meta(min_length=1, max_length=200)]
    steps: Annotated[tuple[Step, ...], Meta(min_length=1, max_length=MAX_STEPS)]
    lease_s: Annotated[float, Meta(ge=0.5, le=86400.0)] = 15.0
    deadline_unix_s: Annotated[int, Meta(ge=0, le=1 << 40)] = 0


def read_plan(value: Any) -> Plan:
    """Raises: BadRun."""
    try:
        plan = msgspec.convert(value, Plan)
    except msgspec.ValidationError as error:
        raise BadRun(f"that is no plan for a run: {error}") from None
    names = [step.name for step in plan.steps]
    if len(set(names)) < len(names) or "previous" in names:
        raise BadRun("each step has a name of its own, and none is called `previous`")
    return plan


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
