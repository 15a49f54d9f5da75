"""Drive the engine's worker process from trio: started on demand, watched, stopped when idle. Torch-free.

    async with open_engine() as engine:
        loaded = await engine.one(Load(folder="models/smol"))
        async with engine.call(Generate(turns=(Turn("user", "Hello"),))) as replies:
            async for reply in replies:
                ...

Requests are multiplexed: any task may call at any time; the worker answers them one after the other. Leaving a call
early cancels it. When the worker dies, every call in hand raises `EngineDied`; the next call starts a new worker, which
first loads the model that the old one had. One that hangs (see `watchdog`) is killed, which is a death like any other.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Final

import msgspec
import trio

from agents.engine.calls import MAX_UNREAD_REPLIES, Call, Replies, Worker, read_replies
from agents.engine.death import Backoff, n_oom_kills
from agents.engine.framing import BrokenFrame
from agents.engine.messages import (
    Cancel,
    EngineStatus,
    Fit,
    Generate,
    Import,
    Load,
    Measure,
    Ping,
    Reply,
    Request,
    Stage,
    Status,
    Train,
)
from agents.engine.process import log_lines, reap, write
from agents.engine.watchdog import HANG_S, Watchdog
from agents.errors import (
    AgentError,
    EngineDied,
    EngineFailed,
)

# -P: what lies in the daemon's working folder is not imported.
WORKER: Final = (sys.executable, "-P", "-m", "agents.engine.worker")
IDLE_S: Final = 600.0
MAX_CALLS: Final = 64
MAX_UNSENT_FRAMES: Final = 256
LAST_WORDS_S: Final = 0.5
STATUS_LIMIT_S: Final = 2.0
STOPPED: Final = "it was stopped by its user"


@dataclass(frozen=True)
class Health:
    """How an engine is, as far as this side knows. Times are trio's; `calls` counts what is in hand by its kind.

    `has_answered`: its worker is past its start.
    """

    pid: int | None
    has_answered: bool
    started_s: float | None
    calls: dict[str, int]
    n_starts: int
    n_deaths: int
    last_death: str | None
    last_death_s: float | None
    wait_s: float


class Engine:
    """The engine as its users see it; made by `open_engine`.

    Args:
        nursery: where its workers live.
        command: how to start a worker.
        threads: CPU threads of the worker; 0 for one a core.
        device: `auto`, `cpu`, `cuda` or `mps`.
        dtype: `auto`, `float32`, `bfloat16`, `float16` or `int8`.
        cache_bytes: for keys and values of running requests and of earlier prompts; 0 for a share of the memory.
        adapter_bytes: for adapters, the least recently used of which give way; 0 for the usual.
        deterministic: each request is computed alone, so that what runs beside it changes nothing.
        idle_s: a worker with nothing to do for so long is ended, to give its memory back.
        hang_s: one that gives no sign of life for so long, with something to do, is killed.
        on_death: takes why a worker died, each time that one does.
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
        adapter_bytes: int = 0,
        deterministic: bool = False,
        idle_s: float = IDLE_S,
        hang_s: float = HANG_S,
        on_log: Callable[[str], None] = lambda line: None,
        on_death: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._command = command
        self._threads = threads or os.cpu_count() or 1
        self._settings = {
            "COVEY_ENGINE_DEVICE": device,
            "COVEY_ENGINE_DTYPE": dtype,
            "COVEY_ENGINE_CACHE_BYTES": str(cache_bytes),
            "COVEY_ENGINE_ADAPTER_BYTES": str(adapter_bytes),
            "COVEY_ENGINE_DETERMINISTIC": str(int(deterministic)),
        }
        self._idle_s = idle_s
        self._hang_s = hang_s
        self._on_log = on_log
        self._on_death = on_death
        self._ids = count(1)
        self._slots = trio.Semaphore(MAX_CALLS)
        self._starting = trio.Lock()
        self._nursery = nursery
        self._worker: Worker | None = None
        self._model: Load | None = None
        self._backoff = Backoff()
        self._n_starts = 0
        self._deaths: tuple[int, str | None, float | None] = (0, None, None)  # how many; the last one's cause and time

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
        return max(0.0, self._backoff.not_before_s - trio.current_time())

    def health(self) -> Health:
        """How it is. Asks nobody, starts nothing."""
        worker = self._worker
        calls = Counter(type(call.request).__name__.lower() for call in worker.calls.values()) if worker else {}
        n_deaths, last, last_s = self._deaths
        return Health(
            pid=self.pid,
            has_answered=worker.has_answered if worker else False,
            started_s=worker.started_s if worker else None,
            calls=dict(calls),
            n_starts=self._n_starts,
            n_deaths=n_deaths,
            last_death=last,
            last_death_s=last_s,
            wait_s=self.wait_s,
        )

    async def status(self) -> EngineStatus | None:
        """What the worker says of itself; None where there is none, or it says nothing within its time."""
        worker = self._worker
        if worker is None or worker.is_over:
            return None
        reply: Reply | None = None
        with trio.move_on_after(STATUS_LIMIT_S), suppress(AgentError):
            async with self._call_on(worker, Status()) as replies:
                reply = await anext(replies)
        return reply if isinstance(reply, EngineStatus) else None

    def stop(self) -> bool:
        """End the worker now; what is in hand fails. The next call starts a new one. Was there one?"""
        worker = self._worker
        if worker is None:
            return False
        self._worker = None
        worker.was_stopped = True
        worker.end(STOPPED)
        return True

    @asynccontextmanager
    async def call(self, request: Request) -> AsyncIterator[AsyncIterator[Reply]]:
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
    async def _call_on(self, worker: Worker, request: Request) -> AsyncIterator[Replies]:
        if worker.is_over:
            raise EngineDied(worker.why())
        send, receive = trio.open_memory_channel[Reply](MAX_UNREAD_REPLIES)
        request = msgspec.structs.replace(request, id=next(self._ids))
        if not worker.calls:
            worker.watchdog.begin(trio.current_time())
        call = worker.calls[request.id] = Call(request, send)
        if isinstance(request, Load):
            self._model = worker.model = request
        try:
            try:
                worker.post(request)
            except BrokenFrame as error:
                raise EngineFailed(f"the request is too large: {error}") from None
            yield Replies(worker, call, receive)
        finally:
            receive.close()
            worker.last_used_s = trio.current_time()
            if worker.calls.pop(request.id, None):
                worker.forget(request)
                worker.post(Cancel(id=request.id))

    async def _ready_worker(self, request: Request) -> Worker:
        """The worker, started if need be, with the model in it that it should have."""
        async with self._starting:
            worker = self._worker or await self._start()
            if isinstance(request, Stage | Generate) and self._model is not worker.model:
                assert self._model is not None
                async with self._call_on(worker, self._model) as replies:
                    async for _ in replies:
                        pass
            return worker

    async def _start(self) -> Worker:
        await trio.sleep_until(self._backoff.not_before_s)
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
        now_s = trio.current_time()
        self._n_starts += 1
        self._worker = Worker(process, outbox, now_s, Watchdog(self._hang_s, now_s), now_s, n_oom_kills())
        self._nursery.start_soon(self._live, self._worker, frames)
        return self._worker

    async def _live(self, worker: Worker, frames: trio.MemoryReceiveChannel[bytes]) -> None:
        """Be with one worker until its end."""
        has_died = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, worker.process, frames)
                nursery.start_soon(self._read_log, worker)
                nursery.start_soon(self._end_when_idle, worker, nursery.cancel_scope)
                nursery.start_soon(self._watch, worker)
                await read_replies(worker)
                has_died = True
                with trio.move_on_after(LAST_WORDS_S):
                    await worker.log_read.wait()
                nursery.cancel_scope.cancel()
        finally:
            if self._worker is worker:
                self._worker = None
            with trio.CancelScope(shield=True):
                await reap(worker.process)
            worker.was_stopped = worker.was_stopped or not has_died
            self._note_end(worker)

    async def _read_log(self, worker: Worker) -> None:
        async for line in log_lines(worker.process):
            worker.last_words.append(line)
            self._on_log(line)
        worker.log_read.set()

    def _note_end(self, worker: Worker) -> None:
        worker.is_over = True
        now_s = trio.current_time()
        why = worker.why()
        if not worker.was_stopped:
            self._backoff.ended(now_s, was_useful=worker.was_useful, was_ready=worker.has_answered)
            self._deaths = (self._deaths[0] + 1, why, now_s)
            self._on_death(why)
        for call in worker.calls.values():
            call.fail(EngineDied(why))
        worker.calls.clear()

    async def _watch(self, worker: Worker) -> None:
        """Ask for signs of life while there is something to do, and end a worker that hangs."""
        watchdog = worker.watchdog
        while True:
            await trio.sleep(watchdog.pulse_s)
            if not worker.calls:
                continue
            now_s = trio.current_time()
            is_long = any(
                isinstance(call.request, Import | Load | Train | Measure | Fit) for call in worker.calls.values()
            )
            if complaint := watchdog.complaint(now_s, is_long=is_long):
                worker.end(complaint)
                return
            worker.post(Ping(id=next(self._ids)))
            watchdog.asked(now_s)

    async def _end_when_idle(self, worker: Worker, scope: trio.CancelScope) -> None:
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
    adapter_bytes: int = 0,
    deterministic: bool = False,
    idle_s: float = IDLE_S,
    hang_s: float = HANG_S,
    on_log: Callable[[str], None] = lambda line: None,
    on_death: Callable[[str], None] = lambda why: None,
) -> AsyncIterator[Engine]:
    """An engine that runs for the length of the block. Args: see `Engine`."""
    async with trio.open_nursery() as nursery:
        engine = Engine(
            nursery,
            command=command,
            threads=threads,
            device=device,
            dtype=dtype,
            cache_bytes=cache_bytes,
            adapter_bytes=adapter_bytes,
            deterministic=deterministic,
            idle_s=idle_s,
            hang_s=hang_s,
            on_log=on_log,
            on_death=on_death,
        )
        yield engine
        nursery.cancel_scope.cancel()
