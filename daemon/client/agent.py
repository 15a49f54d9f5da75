"""An agent as a function: the decorator declares it, `serve` attaches it to a daemon and answers what it is asked."""

import json
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from daemon.client.control import Client, Refused

MAX_TEXT_CHARS: Final = 24_000
MAX_WHY_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Asked:
    """What an agent is asked. `turns` are role and content, what it may do first and the question last.

    Who answers {"tool": NAME, "input": {...}} has the daemon use that tool, as far as the policy goes, and is asked
    again with what it returned. `key` is the same each time that a step is tried: by it one can
    tell what must not happen twice.
    """

    turns: tuple[tuple[str, str], ...]
    key: str
    max_tokens: int

    @property
    def prompt(self) -> str:
        """The last turn: the question itself, or what a tool returned."""
        return self.turns[-1][1]


Answering = Callable[[Asked], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Agent:
    """A declared agent: the fields of its declaration (covey agent add -h), and the function that answers."""

    workspace: str
    answer: Answering
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called in its workspace."""
        return str(self.fields["name"])


def agent(workspace: str, name: str | None = None, **fields: Any) -> Callable[[Answering], Agent]:
    """Declare an async function as an agent of a workspace: by the function's name where no other is given.

    `fields` are those of a declaration: role, description, capabilities, system, tools, policy, memory.
    """

    def declare(answer: Answering) -> Agent:
        called = name or getattr(answer, "__name__", "agent").replace("_", "-")
        return Agent(workspace, answer, {"model": {"kind": "attached"}} | fields | {"name": called})

    return declare


async def serve(one: Agent, client: Client, *, attached: Callable[[], None] = lambda: None) -> None:
    """Host the agent on the client's node and answer, one question after the other, until this is cancelled.

    `attached` is called once questions can come. A function that raises has its step fail, which the plan may have
    tried again. Raises: NotRunning, Refused.
    """
    await _declare(one, client)
    items = client.stream("agent/attach", workspace=one.workspace, name=one.name)
    async with aclosing(items):
        async for item in items:
            if item["ticket"]:
                await _answer(one, client, item)
            else:
                attached()


async def _declare(one: Agent, client: Client) -> None:
    """Host the agent as it is declared now: its card is signed anew."""
    text = toml(one.fields)
    with tempfile.TemporaryDirectory(prefix="covey-agent-") as folder:
        path = Path(folder) / f"{one.name}.toml"
        path.write_text(text)
        await client.call("agent/add", workspace=one.workspace, file=str(path))


async def _answer(one: Agent, client: Client, item: dict[str, Any]) -> None:
    turns = tuple((turn["role"], turn["content"]) for turn in item["turns"])
    try:
        said = {"text": _checked(await one.answer(Asked(turns, item["key"], item["max_tokens"])))}
    except Exception as error:  # noqa: BLE001 - whatever its author's function raises, the step is told of it
        said = {"failed": _plain(f"{type(error).__name__}: {error}")[:MAX_WHY_CHARS]}
    try:
        await client.call("agent/reply", ticket=item["ticket"], **said)
    except Refused as error:
        if error.code != "nothing_asked":  # who asked has given up
            raise


def _checked(text: object) -> str:
    """What a function answered, as far as it counts. Raises: TypeError for what is none."""
    if not isinstance(text, str):
        raise TypeError(f"an agent answers with a text, and not with {type(text).__name__}")
    return _plain(text[:MAX_TEXT_CHARS])


def _plain(text: str) -> str:
    """A text as JSON can carry it: half a character, as the names of files have them, becomes a question mark."""
    return text.encode(errors="replace").decode()


def toml(fields: dict[str, Any]) -> str:
    """A declaration as `covey agent add` takes it."""
    return "".join(f"{name} = {_value(value)}\n" for name, value in fields.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(name)} = {_value(one)}' for name, one in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
