"""What a tool is, and what it may reach."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from agents.errors import AgentError
from agents.memory.own import Own
from agents.roster.declaration import Policy
from agents.workspace.space import Space
from storage.cid import Cid

if TYPE_CHECKING:
    from agents.roster.deciding import Deciding
    from agents.tools.adapters import Adapters

MAX_INPUT_BYTES: Final = 32 << 10
MAX_RESULT_BYTES: Final = 16 << 10


class ToolRefused(AgentError):
    """The agent's policy does not allow that. Its host's user can: covey agent add, with another policy."""

    code = "tool_refused"


class ToolFailed(AgentError):
    """A tool could not do what it was asked to."""

    code = "tool_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a tool gets beside its input: the agent's policy, and the parts of the node that it may ask.

    `key` is the step's idempotency key, the same at every attempt; `others` are tools of servers that are connected.
    """

    policy: Policy
    key: str
    space: Space | None = None
    own: Own | None = None  # the memory of the agent
    get: Callable[[Cid, int], Awaitable[bytes]] | None = None
    put: Callable[[bytes], Awaitable[Cid]] | None = None
    ask: Callable[[str, str, str], Awaitable[str]] | None = None
    agent: str = ""
    adapters: "Adapters | None" = None
    decisions: "Deciding | None" = None
    others: "Mapping[str, Tool]" = field(default_factory=dict)


Use = Callable[[Mapping[str, Any], Reach], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """`about` and `takes` (a line for each field of its input) are what a model is told of it.

    A tool of a server outside has a `schema` in place of `takes`, which that server checks, and says whose it is.
    """

    name: str
    about: str
    takes: Mapping[str, str]
    use: Use
    schema: Mapping[str, Any] | None = None
    server: str = ""


def text_of(given: Mapping[str, Any], name: str, usual: str | None = None, most: int = 4096) -> str:
    """A text of the input. Raises: ToolFailed."""
    value = given.get(name, usual)
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        raise ToolFailed(f"`{name}` is a text of {most} characters at most")
    return value


def count_of(given: Mapping[str, Any], name: str, usual: int, most: int) -> int:
    """A number of the input, from 1 on. Raises: ToolFailed."""
    value = given.get(name, usual)
    if type(value) is not int or not 1 <= value <= most:
        raise ToolFailed(f"`{name}` is a whole number from 1 to {most}")
    return value


async def use(tool: Tool, given: Any, reach: Reach) -> Any:
    """What a tool returns, no longer than it may be. Raises: ToolRefused, ToolFailed, AgentError, OSError."""
    if not isinstance(given, dict) or _n_bytes(given) > MAX_INPUT_BYTES:
        raise ToolFailed(f"the tool {tool.name} takes {{{', '.join(tool.takes)}}}")
    if tool.schema is None and (unknown := sorted(str(name) for name in given.keys() - tool.takes.keys())):
        raise ToolFailed(f"the tool {tool.name} takes no `{unknown[0]}`, but {', '.join(tool.takes)}")
    found = await tool.use(given, reach)
    if len(msgspec.json.encode(found)) > MAX_RESULT_BYTES:
        raise ToolFailed(f"the tool {tool.name} found over {MAX_RESULT_BYTES} bytes: ask for less")
    return found


def _n_bytes(given: dict[str, Any]) -> int:
    try:
        return len(msgspec.json.encode(given))
    except (TypeError, ValueError, RecursionError):  # a plan may hold what JSON has not: links
        raise ToolFailed("a tool takes what can be said in JSON, and no links") from None
