"""Python for agents: code that a model wrote, run in a process that has locked itself in (jail.py).

It has no network, no files but a scratch folder that is gone afterwards, and an end: by processor time, by the clock,
by memory, by what it writes. Where a machine has no such locks, the tool is refused; it never runs without them.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio

from agents.tools import jail
from agents.tools.tool import Reach, Tool, ToolFailed, ToolRefused, text_of

LIMIT_S: Final = 20.0
MAX_OUTPUT_CHARS: Final = 8000
MAX_OUTPUT_BYTES: Final = 256 << 10
MAX_SCRATCH_BYTES: Final = 64 << 20
MAX_SCRATCH_FILES: Final = 10_000
LOOK_S: Final = 0.1
MAX_AT_ONCE: Final = 2  # on this node: each may take half a GiB of memory and a processor
SYSTEM: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")


class Python:
    """The tool. `why_not` says why no sandbox can be had here; nothing where it can."""

    def __init__(
        self, why_not: Callable[[], str] = jail.why_not, limit_s: float = LIMIT_S, n_most: int = MAX_AT_ONCE
    ) -> None:
        self._why_not = why_not
        self._limit_s = limit_s
        self._room = trio.Semaphore(n_most)

    async def __call__(self, given: Mapping[str, Any], reach: Reach) -> Any:
        """What the code printed, and how it ended. Raises: ToolRefused, ToolFailed, OSError."""
        code = text_of(given, "code", most=16_000)
        if not reach.policy.may_run_python:
            raise ToolRefused("the agent may not run Python (policy.may_run_python)")
        if why := self._why_not():
            raise ToolRefused(f"no sandbox can be had here to run Python in: {why}")
        async with self._room:
            scratch = await trio.to_thread.run_sync(tempfile.mkdtemp, "", "covey-python-")
            try:
                return await self._run(code.encode(), scratch)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_cleared, scratch)

    async def _run(self, code: bytes, scratch: str) -> Any:
        process = await trio.lowlevel.open_process(
            command(scratch),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8"},
            cwd=scratch,
            start_new_session=True,
        )
        ended = _Ended()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, scratch, ended, nursery.cancel_scope)
                nursery.start_soon(_hand_over, process, code)
                nursery.start_soon(_hear, process, ended, nursery.cancel_scope)
                with trio.move_on_after(self._limit_s):
                    await ended.heard.wait()
                    await process.wait()
                if process.returncode is None:
                    ended.why = ended.why or f"it took over {self._limit_s:g} s"
                nursery.cancel_scope.cancel()
        finally:
            await _killed(process)
        return _told(process, ended, scratch)


class _Ended:
    """What a process wrote, and why it was ended if it was."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.why = ""
        self.heard = trio.Event()


def command(scratch: str) -> list[str]:
    """How to run code with this folder."""
    libraries = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *SYSTEM]
    # The interpreter itself, not the link to it in an environment: that leads it to folders that it may not see.
    program = os.path.realpath(sys.executable)
    return [program, "-I", "-S", "-B", "-X", "utf8", str(Path(jail.__file__)), scratch, *dict.fromkeys(libraries)]


async def _hand_over(process: trio.Process, code: bytes) -> None:
    assert process.stdin is not None, "it is a pipe"
    with suppress(trio.BrokenResourceError):
        async with process.stdin:
            await process.stdin.send_all(code)


async def _hear(process: trio.Process, ended: _Ended, scope: trio.CancelScope) -> None:
    assert process.stdout is not None, "it is a pipe"
    while chunk := await process.stdout.receive_some():
        ended.output += chunk
        if len(ended.output) > MAX_OUTPUT_BYTES:
            ended.why = f"it printed over {MAX_OUTPUT_BYTES} bytes"
            scope.cancel()
    ended.heard.set()


async def _watch(scratch: str, ended: _Ended, scope: trio.CancelScope) -> None:
    """End what fills the disk: a limit for each file is the kernel's, for all of them together it is ours."""
    while True:
        await trio.sleep(LOOK_S)
        n_files, n_bytes = await trio.to_thread.run_sync(_size, scratch)
        if n_bytes > MAX_SCRATCH_BYTES or n_files > MAX_SCRATCH_FILES:
            ended.why = f"it wrote over {MAX_SCRATCH_BYTES} bytes or {MAX_SCRATCH_FILES} files"
            scope.cancel()


def _size(folder: str) -> tuple[int, int]:
    n_files = n_bytes = 0
    for where, names in _walked(folder):
        n_files += 1
        for name in names:
            n_files += 1
            with suppress(OSError):
                n_bytes += os.lstat(os.path.join(where, name)).st_blocks * 512
        if n_files > MAX_SCRATCH_FILES:
            break
    return n_files, n_bytes


def _walked(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder and the files in it; one that the code closed to its owner is opened before it is looked into."""
    for where, folders, names in os.walk(folder):
        for name in folders:
            path = os.path.join(where, name)
            with suppress(OSError):  # no link can have taken its place: the code can make none
                if os.lstat(path).st_mode & stat.S_IRWXU != stat.S_IRWXU:
                    os.chmod(path, stat.S_IRWXU)
        yield where, names


async def _killed(process: trio.Process) -> None:
    assert process.stdin is not None and process.stdout is not None, "they are pipes"
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            process.kill()  # it is the only one: it could start none
        await process.wait()
        await process.stdin.aclose()
        await process.stdout.aclose()


def _told(process: trio.Process, ended: _Ended, scratch: str) -> dict[str, Any]:
    # Where things lie on this machine is nothing that others are told.
    is_locked = ended.output.startswith(jail.LOCKED)
    output = bytes(ended.output.removeprefix(jail.LOCKED)).decode(errors="replace").replace("\0", "")
    output = output.replace(scratch, "scratch").replace(sysconfig.get_path("stdlib"), "python")
    status = process.returncode
    if ended.why:
        raise ToolFailed(f"the code was ended: {ended.why}")
    if not is_locked and status is not None and status >= 0:  # no code was read
        raise ToolRefused(f"no sandbox can be had here to run Python in: {output[:200].strip()}")
    if status is None or status < 0:
        name = signal.Signals(-status).name if status else "something"
        why = f"it used {jail.CPU_S} s of the processor's time" if name == "SIGXCPU" else name
        raise ToolFailed(f"the code was ended: {why}")
    is_cut = len(output) > MAX_OUTPUT_CHARS
    return {"status": status, "output": output[:MAX_OUTPUT_CHARS] + ("\n(cut)" if is_cut else "")}


def _cleared(folder: str) -> None:
    """Without following links; a folder that was closed to its owner is opened first."""
    for _ in _walked(folder):
        pass
    shutil.rmtree(folder, ignore_errors=True)


TOOLS: Final = (
    Tool(
        name="python-run",
        about="Runs Python code by itself, without network; returns what it prints.",
        takes={"code": "the code, which prints what is wanted"},
        use=Python(),
    ),
)
