"""The calls that the engine's worker has in hand, and where each reply goes. The client's own; see `client`."""

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

import msgspec
import trio

from agents.engine.death import cause, n_oom_kills
from agents.engine.framing import BrokenFrame, Unframer, encode
from agents.engine.message import Message
from agents.engine.messages import Cancel, EngineStatus, Failed, Load, Pong, Reply, Request, Stage
from agents.engine.watchdog import Watchdog
from agents.errors import (
    AgentError,
    BadAdapter,
    BadData,
    BadModel,
    BadRequest,
    CannotResume,
    EngineBusy,
    EngineFailed,
    EngineMissing,
    NoRoom,
    TooLong,
    UnknownName,
    UnlikeRun,
    WrongBase,
)

MAX_UNREAD_REPLIES: Final = 8192
LAST_WORDS_LINES: Final = 5

_ERRORS: Final[dict[str, type[AgentError]]] = {
    error.code: error
    for error in (
        BadAdapter,
        BadData,
        BadModel,
        BadRequest,
        CannotResume,
        EngineBusy,
        EngineMissing,
        NoRoom,
        TooLong,
        UnknownName,
        UnlikeRun,
        WrongBase,
    )
}


@dataclass
class Call:
    """One request in hand: where its replies go, and what ended it early."""

    request: Request
    replies: trio.MemorySendChannel[Reply]
    error: AgentError | None = None

    def fail(self, error: AgentError) -> None:
        """End the replies with an error."""
        self.error = error
        self.replies.close()


class Replies:
    """The replies to one request, in order, up to and with the final one. Raises: AgentError, by what went wrong."""

    def __init__(self, worker: "Worker", call: Call, receive: trio.MemoryReceiveChannel[Reply]) -> None:
        self._worker = worker
        self._call = call
        self._receive = receive
        self._is_over = False

    def cancel(self) -> None:
        """Ask the worker to end the request early; its final reply still comes."""
        self._worker.post(Cancel(id=self._call.request.id))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        if self._is_over:
            raise StopAsyncIteration
        try:
            reply = await self._receive.receive()
        except trio.EndOfChannel:
            assert self._call.error is not None, "only an error ends the replies before the final one"
            raise self._call.error from None
        self._is_over = reply.is_final
        if isinstance(reply, Failed):
            error = _ERRORS.get(reply.code, EngineFailed)(reply.text)
            raise error
        return reply


@dataclass(eq=False)
class Worker:
    """A worker process and the calls that it has in hand."""

    process: trio.Process
    outbox: trio.MemorySendChannel[bytes]
    last_used_s: float
    watchdog: Watchdog
    started_s: float
    n_oom_kills: int  # of the system, when it began
    calls: dict[int, Call] = field(default_factory=dict)
    log_read: trio.Event = field(default_factory=trio.Event)
    last_words: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_WORDS_LINES))
    model: Load | None = None
    complaint: str | None = None
    has_answered: bool = False
    was_useful: bool = False  # has finished something that is no preparation
    was_stopped: bool = False
    is_over: bool = False

    def post(self, message: Message) -> None:
        """Send in the background. A worker that reads nothing is hung: it is ended."""
        try:
            self.outbox.send_nowait(encode(message))
        except trio.WouldBlock:
            self.end("it no longer reads its requests")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it is ending; every call in hand is about to hear of it

    def forget(self, request: Request) -> None:
        """A `Load` did not succeed: the model that it names is not there."""
        if self.model is request:
            self.model = None

    def end(self, complaint: str) -> None:
        """Kill it; the reader then sees the end of its output."""
        self.complaint = self.complaint or complaint
        with suppress(ProcessLookupError):
            self.process.kill()

    def why(self) -> str:
        """How it ended, for people."""
        is_oom = n_oom_kills() > self.n_oom_kills
        words = self.last_words[-1] if self.last_words else ""
        return cause(self.process.returncode, self.complaint, words, is_oom=is_oom)


async def read_replies(worker: Worker) -> None:
    """Hand out replies until the worker closes its output or breaks the protocol."""
    unframer = Unframer()
    assert worker.process.stdout is not None
    async for data in worker.process.stdout:
        try:
            replies = [msgspec.convert(value, Reply) for value in unframer.feed(data)]
        except (BrokenFrame, msgspec.ValidationError) as error:
            worker.complaint = f"it sent garbage ({error})"
            return
        worker.watchdog.heard(trio.current_time())
        for reply in replies:
            _hand_out(worker, reply)
    if unframer.is_torn:
        worker.complaint = worker.complaint or "it stopped in the middle of a reply"


def _hand_out(worker: Worker, reply: Reply) -> None:
    if isinstance(reply, Pong):
        worker.watchdog.pong(reply.n_steps, reply.cpu_s, trio.current_time())
        return
    worker.has_answered = worker.has_answered or reply.is_final
    call = worker.calls.get(reply.id)
    if call is None:
        return  # its caller has left
    if reply.is_final and not isinstance(reply, Failed | EngineStatus):
        worker.was_useful = worker.was_useful or not isinstance(call.request, Load | Stage)
    try:
        call.replies.send_nowait(reply)
    except trio.WouldBlock:
        del worker.calls[reply.id]
        call.fail(EngineFailed(f"{MAX_UNREAD_REPLIES} replies were waiting to be read; read them as they come"))
        worker.post(Cancel(id=reply.id))
        return
    if reply.is_final:
        del worker.calls[reply.id]
    if isinstance(reply, Failed):
        worker.forget(call.request)
