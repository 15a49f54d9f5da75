"""The pipes of a worker's process: requests in, log lines out, and its end."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import trio

STOP_S: Final = 1.0
MAX_LOG_LINE_BYTES: Final = 4096


async def write(process: trio.Process, frames: trio.MemoryReceiveChannel[bytes]) -> None:
    """Send frames until there are no more, or nobody reads them."""
    assert process.stdin is not None
    async with frames:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for frame in frames:
                await process.stdin.send_all(frame)


async def log_lines(process: trio.Process) -> AsyncIterator[str]:
    """The lines that the process writes to stderr; over-long ones are cut."""
    assert process.stderr is not None
    held = b""
    async for data in process.stderr:
        *lines, held = (held + data).replace(b"\r", b"\n").split(b"\n")
        held = held[-MAX_LOG_LINE_BYTES:]
        for line in lines:
            text = line[:MAX_LOG_LINE_BYTES].decode(errors="replace").rstrip()
            if text:
                yield text


async def reap(process: trio.Process) -> None:
    """Close the process's pipes and wait for its end; kill it when it takes its time."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    await process.stdin.aclose()
    with trio.move_on_after(STOP_S):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    await process.stdout.aclose()
    await process.stderr.aclose()
