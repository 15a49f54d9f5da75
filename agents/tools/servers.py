"""Tools of MCP servers, over stdio and HTTP: asked for anew for each answer, and closed after it.

What a server says is data from outside, its tools' names and descriptions too: all is bounded, and told to a model as
such. A server that is dead, slow or talks nonsense ends in a step that failed, never in a daemon that waits or grows.
The protocol is the `mcp` package's; what it reads comes over streams of our own (stdio.py, streams.py), which end.
Source: Model Context Protocol, 2025-11-25: lifecycle, tools.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from agents.roster.declaration import Server
from agents.tools.tool import Reach, Tool, ToolFailed, ToolRefused

if TYPE_CHECKING:
    from mcp import ClientSession

MAX_TOOLS: Final = 64
MAX_ABOUT_CHARS: Final = 500
MAX_LISTED_BYTES: Final = 12 << 10  # of all that one server's tools are described with: it goes into the prompt
MAX_PAGES: Final = 16
MAX_CHARS: Final = 12_000
MAX_WHY_CHARS: Final = 300

_NAME: Final = re.compile(r"[A-Za-z0-9_./-]{1,128}")


@asynccontextmanager
async def connected(servers: Sequence[Server]) -> AsyncIterator[Mapping[str, Tool]]:
    """The tools of these servers, as SERVER.TOOL, while the block runs. Raises: ToolFailed, ToolRefused.

    What the block raises comes out as it is, not in a group of what the servers' tasks raise.
    """
    raised: Exception | None = None
    asked: list[str] = []
    try:
        async with AsyncExitStack() as stack:
            try:
                found: dict[str, Tool] = {}
                for server in servers:
                    asked.append(server.name)
                    found.update(await _tools_of(server, stack))
                yield found
            except Exception as error:  # noqa: BLE001 - raised again below, once the servers are closed
                raised = error
    except Exception as error:  # noqa: BLE001 - a library's tasks: whatever they end in, a step failed
        raised = raised or ToolFailed(f"the MCP server {' or '.join(asked)} broke off: {_why(error)}")
    if raised is not None:
        raise raised


def chosen(servers: Sequence[Server], name: str) -> tuple[Server, ...]:
    """The one whose tool that is; none for a tool of the node's own."""
    head, dot, _ = name.partition(".")
    return tuple(server for server in servers if dot and server.name == head)


async def _tools_of(server: Server, stack: AsyncExitStack) -> dict[str, Tool]:
    await trio.to_thread.run_sync(_load)
    from mcp import ClientSession

    from agents.tools import stdio, streams

    try:
        opened = stdio.spawned(server) if server.command else streams.connected(server)
        read, write = await stack.enter_async_context(opened)
        session = await stack.enter_async_context(ClientSession(read, write))
        with trio.fail_after(server.timeout_s):
            about = (await session.initialize()).server_info
            listed = await _listed(server, session)
    except (ToolFailed, ToolRefused):
        raise
    except trio.TooSlowError:
        raise ToolFailed(f"the MCP server {server.name} did not answer within {server.timeout_s:g} s") from None
    except Exception as error:  # noqa: BLE001 - as above
        raise ToolFailed(f"the MCP server {server.name} does not answer: {_why(error)}") from None
    told = printable(f"{about.name} {about.version}", 100)
    return {tool.name: tool for tool in tools_from(server, listed, told, session)}


def _load() -> None:
    """Import what takes over a second, in a thread: the daemon goes on meanwhile."""
    try:
        import_module("agents.tools.stdio")
        import_module("agents.tools.streams")
    except ImportError as error:
        told = f"tools of MCP servers need the package mcp: pip install 'covey[mcp]' ({error})"
        raise ToolRefused(told) from None


async def _listed(server: Server, session: "ClientSession") -> list[Any]:
    from mcp.types import PaginatedRequestParams

    found: list[Any] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
        found += page.tools
        cursor = page.next_cursor
        if not cursor:
            return found
    raise ToolFailed(f"the MCP server {server.name} lists tools for ever")


def tools_from(server: Server, listed: Sequence[Any], told: str, session: Any) -> list[Tool]:
    """The tools that the policy lets through, of those that a server lists. Raises: ToolFailed."""
    names = [str(one.name) for one in listed]
    if missing := sorted(set(server.tools) - set(names)):
        raise ToolFailed(f"the MCP server {server.name} has no tool {missing[0]!r} (policy.servers)")
    found: dict[str, Tool] = {}
    n_bytes = 0
    for one in listed:
        if (server.tools and one.name not in server.tools) or not _NAME.fullmatch(one.name):
            continue
        about = printable(one.description or "", MAX_ABOUT_CHARS)
        n_bytes += len(about.encode()) + len(msgspec.json.encode(one.input_schema))
        name = f"{server.name}.{one.name}"
        found[name] = Tool(
            name=name, about=about, takes={}, use=Call(server, one.name, session), schema=one.input_schema, server=told
        )
    if len(found) > MAX_TOOLS or n_bytes > MAX_LISTED_BYTES:
        raise ToolFailed(
            f"the MCP server {server.name} describes {len(found)} tools in {n_bytes} bytes, and {MAX_TOOLS} in "
            f"{MAX_LISTED_BYTES} are allowed: name those that the agent needs (policy.servers, tools)"
        )
    return list(found.values())


class Call:
    """One tool of a server's, while that is connected."""

    def __init__(self, server: Server, name: str, session: "ClientSession") -> None:
        self._server = server
        self._name = name
        self.session = session

    async def __call__(self, given: Mapping[str, Any], _: Reach) -> Any:
        """What it returns, as text. Raises: ToolFailed."""
        try:
            with trio.fail_after(self._server.timeout_s):
                result = await self.session.call_tool(self._name, dict(given))
        except trio.TooSlowError:
            limit = f"{self._server.timeout_s:g} s"
            raise ToolFailed(f"{self._name} of the MCP server {self._server.name} took over {limit}") from None
        except Exception as error:  # noqa: BLE001 - as above
            raise ToolFailed(f"the MCP server {self._server.name} failed: {_why(error)}") from None
        text = text_of(result)
        if result.is_error:
            raise ToolFailed(f"{self._name} of the MCP server {self._server.name} says: {text[:MAX_WHY_CHARS]}")
        return text


def text_of(result: Any) -> str:
    """What a model can read of a result; for all else a word that it was there."""
    parts = [
        str(block.text) if block.type == "text" else f"({printable(block.type, 40)}, which is no text)"
        for block in result.content
    ]
    if not parts and result.structured_content is not None:
        parts = [msgspec.json.encode(result.structured_content).decode()]
    return "\n".join(parts).replace("\0", "")[:MAX_CHARS]


def printable(text: str, n_most: int) -> str:
    """A line of it: no control characters, no line breaks, no more than that."""
    return " ".join("".join(one if one.isprintable() else " " for one in text[: 4 * n_most]).split())[:n_most]


def _why(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return printable(str(error), MAX_WHY_CHARS) or type(error).__name__
