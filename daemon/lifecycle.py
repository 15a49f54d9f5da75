"""How the parts of a node live and die: services under supervision, and a stop within its limit.

Start order is nesting order, stopping is cancellation. What an error means is decided by its type alone (`judge`):
some end the process, some end the service that raised it, the rest restart the service with back-off.
"""

import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from types import FrameType
from typing import Any, Final

import structlog
import trio

from agents.errors import AgentError
from daemon.errors import DaemonError
from storage.errors import Corrupt, CorruptBlock, StoreLocked, UnknownVersion

STOP_LIMIT_S: Final = 3.0
FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 60.0
STEADY_S: Final = 60.0  # a service that ran this long is well again: its next back-off starts small
MAX_LINE_CHARS: Final = 1000
EXIT_STUCK: Final = 70  # EX_SOFTWARE: cleaning up took longer than STOP_LIMIT_S
EXIT_IMPATIENT: Final = 130  # as a shell reports SIGINT: the second signal ends everything at once


Service = Callable[..., Awaitable[Any]]
Note = Callable[[str, dict[str, Any]], None]

log = structlog.get_logger(__name__)


class Verdict(Enum):
    """What becomes of a service, and of the process, after an error."""

    END_PROCESS = "end_process"
    END_SERVICE = "end_service"
    RESTART = "restart"


def judge(error: BaseException) -> Verdict:
    """Decide by the error's type.

    A store that is damaged, foreign or in other hands, and a lack of memory, end the process: going on could lose what
    was acknowledged. What the user has to mend first ends the service. Everything else (a peer, the network, the disk
    being full, one damaged block, a bug) restarts it, so that nothing a peer does takes the node down.
    """
    if isinstance(error, BaseExceptionGroup):
        verdicts = {judge(inner) for inner in error.exceptions}
        return next(verdict for verdict in Verdict if verdict in verdicts)
    if isinstance(error, CorruptBlock):
        return Verdict.RESTART
    if isinstance(error, Corrupt | StoreLocked | UnknownVersion | MemoryError) or not isinstance(error, Exception):
        return Verdict.END_PROCESS
    if isinstance(error, AgentError | DaemonError):
        return Verdict.END_SERVICE
    return Verdict.RESTART


def delay_s(n_failures: int) -> float:
    """How long to wait before the restart that follows the n-th failure in a row (from 1)."""
    return float(min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(n_failures - 1, 16)))


@asynccontextmanager
async def running(service: Service, *args: object) -> AsyncIterator[Any]:
    """Run `service(*args, task_status=...)` beside the block and end it with the block; yield what it reports.

    Its failure ends the block: use it for a part that the block cannot do without.
    """
    async with trio.open_nursery() as nursery:
        value = await nursery.start(service, *args)
        yield value
        nursery.cancel_scope.cancel()


class _Once:
    """A task status that only the first start of a service reaches."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status: trio.TaskStatus[None] | None = status

    def started(self, _value: None = None) -> None:
        """The service is ready, perhaps again."""
        status, self._status = self._status, None
        if status is not None:
            status.started()


def _untold(_kind: str, _fields: dict[str, Any]) -> None:
    """For services that nobody follows."""


async def supervise(
    name: str, service: Service, note: Note = _untold, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Keep `service(task_status=...)` running, as `judge` decides; return when it does. Raises: what ends the node.

    `note` is told of each failure that does not: the event's kind, and its fields.
    """
    n_failures = 0
    status = _Once(task_status)
    while True:
        started_s = trio.current_time()
        try:
            await service(task_status=status)
            return
        except Exception as error:
            verdict = judge(error)
            if verdict is Verdict.END_PROCESS:
                raise
            n_failures = 1 if trio.current_time() - started_s >= STEADY_S else n_failures + 1
            if verdict is Verdict.END_SERVICE:
                log.error("service_ended", service=name, error=_line(error))
                note("service_ended", {"service": name, "text": _line(error)})
                status.started()
                return
            wait_s = delay_s(n_failures)
            log.warning("service_restarts", service=name, error=_line(error), in_s=wait_s, exc_info=error)
            note("service_restarts", {"service": name, "text": _line(error), "in_s": wait_s})
        status.started()  # the node is not held up by a part that comes up later
        await trio.sleep(wait_s)


@contextmanager
def stop_on_signals(begin: Callable[[], None], limit_s: float = STOP_LIMIT_S) -> Iterator[Callable[[str], None]]:
    """The first SIGINT or SIGTERM calls `begin`, the second ends the process; so does cleaning up beyond `limit_s`.

    Yields the function that stops the node in the same way, with a reason for the log. The handlers are Python's own
    and the watchdog is a thread, so that both work even when the event loop is stuck.
    """
    token = trio.lowlevel.current_trio_token()
    watchdog = threading.Timer(limit_s, os._exit, [EXIT_STUCK])
    watchdog.daemon = True
    stopping = threading.Event()

    def begin_with(reason: str) -> None:
        log.info("stopping", reason=reason)
        begin()

    def stop(reason: str) -> None:
        if stopping.is_set():
            return
        stopping.set()
        watchdog.start()
        # A signal may arrive in mid-log, and logging is not reentrant: the loop does the rest.
        token.run_sync_soon(begin_with, reason)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            os._exit(EXIT_IMPATIENT)
        stop(signal.Signals(number).name)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        watchdog.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_line(inner) for inner in error.exceptions)[:MAX_LINE_CHARS]
    return f"{type(error).__name__}: {error}"[:MAX_LINE_CHARS]
