"""An MCP server that is a program: a message a line, on its stdin and stdout. It ends with the block, and all it began.

It runs as the user, with what its user's policy names of the daemon's environment; that program is the user's own word.
"""

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
import trio
from mcp.shared.message import SessionMessage
from mcp.types.jsonrpc import jsonrpc_message_adapter
from pydantic import ValidationError

from agents.roster.declaration import Server
from agents.tools.tool import ToolFailed

MAX_LINE_BYTES: Final = 1 << 20
MAX_HEARD_BYTES: Final = 16 << 20  # for one answer of the agent's
CHUNK_BYTES: Final = 64 << 10
END_LIMIT_S: Final = 1.0
N_WAITING: Final = 16
INHERITED: Final = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "TZ")


def environment(server: Server) -> dict[str, str]:
    """What the program sees of the daemon's environment."""
    return {name: os.environ[name] for name in (*INHERITED, *server.env) if name in os.environ}


@asynccontextmanager
async def spawned(server: Server) -> AsyncIterator[tuple[Any, Any]]:
    """The two streams of messages with the program. Raises: ToolFailed."""
    try:
        process = await trio.lowlevel.open_process(
            list(server.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(server),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise ToolFailed(f"the MCP server {server.name} cannot be started: {error}") from None
    into, heard = anyio.create_memory_object_stream[Any](N_WAITING)
    said, out_of = anyio.create_memory_object_stream[Any](N_WAITING)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_hear, process, into)
            nursery.start_soon(_speak, process, out_of)
            yield heard, said
            nursery.cancel_scope.cancel()
    finally:
        for stream in (into, heard, said, out_of):
            stream.close()
        await _end(process)


async def _end(process: trio.Process) -> None:
    """Close its stdin, as the protocol asks; then kill it, and what it started."""
    assert process.stdin is not None and process.stdout is not None, "they are pipes"
    with trio.CancelScope(shield=True):
        with suppress(trio.BrokenResourceError):
            await process.stdin.aclose()
        with trio.move_on_after(END_LIMIT_S):
            await process.wait()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await process.stdout.aclose()


async def _hear(process: trio.Process, into: Any) -> None:
    """Each line that is a message; what is none is passed over, as programs print all kinds of things."""
    assert process.stdout is not None, "it is a pipe"
    held, n_heard = b"", 0
    with suppress(trio.BrokenResourceError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with into:
            while chunk := await process.stdout.receive_some(CHUNK_BYTES):
                n_heard += len(chunk)
                *lines, held = (held + chunk).split(b"\n")
                if n_heard > MAX_HEARD_BYTES or max(map(len, (held, *lines))) > MAX_LINE_BYTES:
                    return
                for line in lines:
                    with suppress(ValidationError, RecursionError):
                        await into.send(SessionMessage(jsonrpc_message_adapter.validate_json(line)))


async def _speak(process: trio.Process, out_of: Any) -> None:
    assert process.stdin is not None, "it is a pipe"
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for one in out_of:
            line = one.message.model_dump_json(by_alias=True, exclude_unset=True)
            await process.stdin.send_all(line.encode() + b"\n")
