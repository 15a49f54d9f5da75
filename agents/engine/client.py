"""Drive the engine's worker process from trio: started on demand, watched, stopped when idle. Torch-free.

    async with open_engine() as engine:
        loaded = await engine.one(Load(folder="models/smol"))
        async with engine.call(Generate(turns=(Turn("user", "Hello"),))) as replies:
            async for reply in replies:
                ...

Requests are multiplexed: any task may call at any time; the worker answers them one after the other. Leaving a call
early cancels it. When the worker dies, every call in hand raises `EngineDied`; the next call starts a new worker, which
first loads the model that the old one had.
"""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Self

import msgspec
import trio

from agents.engine.framing import BrokenFrame, Unframer, encode
from agents.engine.messages import Cancel, Failed, Generate, Load, Message, Reply, Request, Stage, Train
from agents.errors import (
    AgentError,
    BadAdapter,
    BadData,
    EngineDied,
    EngineFailed,
    EngineMissing,
    UnknownName,
    WrongBase,
)

# -P: what lies in the daemon's working folder is not imported.
WORKER: Final = (sys.executable, "-P", "-m", "agents.engine.worker")
IDLE_S: Final = 600.0
STOP_S: Final = 1.0
MAX_BACKOFF_S: Final = 8.0
MAX_CALLS: Final = 64
MAX_UNREAD_REPLIES: Final = 8192
MAX_UNSENT_FRAMES: Final = 256
MAX_LOG_LINE_BYTES: Final = 4096
LAST_WORDS_LINES: Final = 5
LAST_WORDS_S: Final = 0.5
_READ_BYTES: Final = 1 << 16

_ERRORS: Final[dict[str, type[AgentError]]] = {
    error.code: error for error in (BadAdapter, BadData, EngineMissing, UnknownName, WrongBase)
}


@dataclass
class _Call:
    """One request in hand: where its replies go, and what ended it early."""

    request: Request
    replies: trio.MemorySendChannel[Reply]
    error: AgentError | None = None

    def fail(self, error: AgentError) -> None:
        self.error = error
        self.replies.close()


class Replies:
    """The replies to one request, in order, up to and with the final one. Raises: AgentError, by what went wrong."""

    def __init__(self, call: _Call, receive: trio.MemoryReceiveChannel[Reply]) -> None:
        self._call = call
        self._receive = receive
        self._is_over = False

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
class _Worker:
    """A worker process and the calls that it has in hand."""

    process: trio.Process
    outbox: trio.MemorySendChannel[bytes]
    last_used_s: float
    calls: dict[int, _Call] = field(default_factory=dict)
    log_read: trio.Event = field(default_factory=trio.Event)
    last_words: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_WORDS_LINES))
    model: Load | None = None
    complaint: str | None = None
    has_answered: bool = False
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
        code = self.process.returncode
        if self.complaint:
            said = self.complaint
        elif code is not None and code < 0:
            said = f"it was killed by {signal.Signals(-code).name}"
        else:
            said = f"it exited with code {code}"
        words = f"; its last words: {self.last_words[-1]}" if self.last_words else ""
        return f"the engine died: {said}{words}"


class Engine:
    """The engine as its users see it; made by `open_engine`.

    Args:
        nursery: where its workers live.
        command: how to start a worker.
        threads: CPU threads of the worker; 0 for one a core.
        device: `auto`, `cpu`, `cuda` or `mps`.
        dtype: `auto`, `float32`, `bfloat16`, `float16` or `int8`.
        cache_bytes: for keys and values of running requests and of earlier prompts; 0 for a share of the memory.
        deterministic: each request is computed alone, so that what runs beside it changes nothing.
        idle_s: a worker with nothing to do for so long is ended, to give its memory back.
        on_log: takes each line that the worker writes to stderr.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        command: tuple[str, ...] = WORKER,
        threads: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        cache_bytes: int = 0,
        deterministic: bool = False,
        idle_s: float = IDLE_S,
        on_log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._command = command
        self._threads = threads or os.cpu_count() or 1
        self._settings = {
            "COVEY_ENGINE_DEVICE": device,
            "COVEY_ENGINE_DTYPE": dtype,
            "COVEY_ENGINE_CACHE_BYTES": str(cache_bytes),
            "COVEY_ENGINE_DETERMINISTIC": str(int(deterministic)),
        }
        self._idle_s = idle_s
        self._on_log = on_log
        self._ids = count(1)
        self._slots = trio.Semaphore(MAX_CALLS)
        self._starting = trio.Lock()
        self._nursery = nursery
        self._worker: _Worker | None = None
        self._model: Load | None = None
        self._n_deaths_at_start = 0
        self._not_before_s = 0.0

    @property
    def pid(self) -> int | None:
        """The worker's process id while there is a worker."""
        return self._worker.process.pid if self._worker else None

    @property
    def n_calls(self) -> int:
        """How many requests are in hand."""
        return len(self._worker.calls) if self._worker else 0

    @property
    def wait_s(self) -> float:
        """How long the next start of a worker will wait, because the last ones died at once."""
        return max(0.0, self._not_before_s - trio.current_time())

    @asynccontextmanager
    async def call(self, request: Request) -> AsyncIterator[Replies]:
        """Send `request` (its `id` is set here) and read its replies. Leaving the block early cancels it."""
        async with self._slots:
            worker = await self._ready_worker(request)
            async with self._call_on(worker, request) as replies:
                yield replies

    async def one(self, request: Request) -> Reply:
        """Send `request` and return its final reply. Raises: AgentError."""
        async with self.call(request) as replies:
            async for reply in replies:
                last = reply
        return last

    @asynccontextmanager
    async def _call_on(self, worker: _Worker, request: Request) -> AsyncIterator[Replies]:
        if worker.is_over:
            raise EngineDied(worker.why())
        send, receive = trio.open_memory_channel[Reply](MAX_UNREAD_REPLIES)
        request = msgspec.structs.replace(request, id=next(self._ids))
        call = worker.calls[request.id] = _Call(request, send)
        if isinstance(request, Load):
            self._model = worker.model = request
        try:
            try:
                worker.post(request)
            except BrokenFrame as error:
                raise EngineFailed(f"the request is too large: {error}") from None
            yield Replies(call, receive)
        finally:
            receive.close()
            worker.last_used_s = trio.current_time()
            if worker.calls.pop(request.id, None):
                worker.forget(request)
                worker.post(Cancel(id=request.id))

    async def _ready_worker(self, request: Request) -> _Worker:
        """The worker, started if need be, with the model in it that it should have."""
        async with self._starting:
            worker = self._worker or await self._start()
            if isinstance(request, Stage | Generate | Train) and self._model is not worker.model:
                assert self._model is not None
                async with self._call_on(worker, self._model) as replies:
                    async for _ in replies:
                        pass
            return worker

    async def _start(self) -> _Worker:
        await trio.sleep_until(self._not_before_s)
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(self._threads),
            # Threads that spin while they wait cost five times the time as soon as another process wants the core.
            "OMP_WAIT_POLICY": "PASSIVE",
            **self._settings,
        }
        try:
            process = await trio.lowlevel.open_process(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C in the daemon's terminal is the daemon's business
            )
        except OSError as error:
            raise EngineDied(f"the engine could not be started: {error}") from None
        outbox, frames = trio.open_memory_channel[bytes](MAX_UNSENT_FRAMES)
        self._worker = _Worker(process, outbox, trio.current_time())
        self._nursery.start_soon(self._live, self._worker, frames)
        return self._worker

    async def _live(self, worker: _Worker, frames: trio.MemoryReceiveChannel[bytes]) -> None:
        """Be with one worker until its end."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_write, worker.process, frames)
                nursery.start_soon(_read_log, worker, self._on_log)
                nursery.start_soon(self._end_when_idle, worker, nursery.cancel_scope)
                await _read_replies(worker)
                with trio.move_on_after(LAST_WORDS_S):
                    await worker.log_read.wait()
                nursery.cancel_scope.cancel()
        finally:
            if self._worker is worker:
                self._worker = None
            with trio.CancelScope(shield=True):
                await _reap(worker)
            self._note_end(worker)

    def _note_end(self, worker: _Worker) -> None:
        worker.is_over = True
        died_at_start = not (worker.has_answered or worker.was_stopped)
        self._n_deaths_at_start = self._n_deaths_at_start + 1 if died_at_start else 0
        if self._n_deaths_at_start:
            delay_s = min(0.25 * 2.0**self._n_deaths_at_start, MAX_BACKOFF_S)
            self._not_before_s = trio.current_time() + delay_s
        for call in worker.calls.values():
            call.fail(EngineDied(worker.why()))
        worker.calls.clear()

    async def _end_when_idle(self, worker: _Worker, scope: trio.CancelScope) -> None:
        while True:
            now_s = trio.current_time()
            idle_from_s = now_s if worker.calls else worker.last_used_s
            if now_s >= idle_from_s + self._idle_s:
                break
            await trio.sleep_until(idle_from_s + self._idle_s)
        self._worker = None  # before anything awaits: the next call starts a new one
        worker.was_stopped = True
        scope.cancel()


@asynccontextmanager
async def open_engine(
    *,
    command: tuple[str, ...] = WORKER,
    threads: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    cache_bytes: int = 0,
    deterministic: bool = False,
    idle_s: float = IDLE_S,
    on_log: Callable[[str], None] = lambda line: None,
) -> AsyncIterator[Engine]:
    """An engine that runs for the length of the block. Args: see `Engine`."""
    async with trio.open_nursery() as nursery:
        yield Engine(
            nursery,
            command=command,
            threads=threads,
            device=device,
            dtype=dtype,
            cache_bytes=cache_bytes,
            deterministic=deterministic,
            idle_s=idle_s,
            on_log=on_log,
        )
        nursery.cancel_scope.cancel()


async def _write(process: trio.Process, frames: trio.MemoryReceiveChannel[bytes]) -> None:
    assert process.stdin is not None
    async with frames:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for frame in frames:
                await process.stdin.send_all(frame)


async def _read_replies(worker: _Worker) -> None:
    """Hand out replies until the worker closes its output or breaks the protocol."""
    unframer = Unframer()
    assert worker.process.stdout is not None
    async for data in worker.process.stdout:
        try:
            replies = [msgspec.convert(value, Reply) for value in unframer.feed(data)]
        except (BrokenFrame, msgspec.ValidationError) as error:
            worker.complaint = f"it sent garbage ({error})"
            return
        for reply in replies:
            _hand_out(worker, reply)
    if unframer.is_torn:
        worker.complaint = worker.complaint or "it stopped in the middle of a reply"


def _hand_out(worker: _Worker, reply: Reply) -> None:
    worker.has_answered = worker.has_answered or reply.is_final
    call = worker.calls.get(reply.id)
    if call is None:
        return  # its caller has left
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


async def _read_log(worker: _Worker, on_log: Callable[[str], None]) -> None:
    """Pass on what the worker writes to stderr; the event is set at its end."""
    assert worker.process.stderr is not None
    held = b""
    async for data in worker.process.stderr:
        *lines, held = (held + data).replace(b"\r", b"\n").split(b"\n")
        held = held[-MAX_LOG_LINE_BYTES:]
        for line in lines:
            text = line[:MAX_LOG_LINE_BYTES].decode(errors="replace").rstrip()
            if text:
                worker.last_words.append(text)
                on_log(text)
    worker.log_read.set()


async def _reap(worker: _Worker) -> None:
    """Close the worker's pipes and wait for its end; kill it when it takes its time."""
    process = worker.process
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    await process.stdin.aclose()
    with trio.move_on_after(STOP_S):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    await process.stdout.aclose()
    await process.stderr.aclose()
