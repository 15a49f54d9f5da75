"""What the worker holds between requests, and how it answers them: a little of each in turn."""

import time
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path

from agents.engine.aggregation import Aggregate
from agents.engine.messages import (
    Embed,
    EngineStatus,
    Export,
    Fit,
    Generate,
    Import,
    Imported,
    Load,
    Loaded,
    Measure,
    Merge,
    Reply,
    Request,
    ResidentAdapter,
    Stage,
    Staged,
    Train,
)
from agents.engine.worker.aggregation import aggregate_on_device
from agents.engine.worker.embed import Embedder
from agents.engine.worker.endings import cancelled, failed
from agents.engine.worker.generation.batch import Batch
from agents.engine.worker.imports import import_model, teller
from agents.engine.worker.merge import merge
from agents.engine.worker.models import LoadedModel, load_model
from agents.engine.worker.settings import Settings, read_settings
from agents.engine.worker.training.measure import measure
from agents.engine.worker.training.modules import fit
from agents.engine.worker.training.train import train
from agents.errors import AgentError, EngineFailed

Emit = Callable[[Reply], None]
IsCancelled = Callable[[], bool]
Guard = Callable[[Callable[[], None]], AgentError | None]

Job = Generator[None, None, Reply]
"""A request's work, piece by piece; what it returns is the final reply."""


class Session:
    """At most one language model and one encoder, and the adapters of the model.

    Answers are written by the model's batch, all together. Everything else is a job, done between two steps of the
    batch: embeddings in pieces, the others in one, which the answers wait for. `Load`, which changes the model, waits
    until nothing else is in hand, and whoever comes after it waits for it.
    """

    def __init__(self) -> None:
        self._settings: Settings = read_settings()
        self._model: LoadedModel | None = None
        self._batch: Batch | None = None
        self._embedder: tuple[str | None, Embedder] | None = None
        self._waiting: deque[tuple[Request, Emit, IsCancelled]] = deque()
        self._jobs: deque[tuple[Request, Emit, Job]] = deque()

    @property
    def is_busy(self) -> bool:
        """Is there work to do?"""
        return bool(self._jobs or self._waiting or (self._batch and not self._batch.is_idle))

    def begin(self, request: Request, emit: Emit, is_cancelled: IsCancelled) -> None:
        """Take a request in; `emit` gets its replies. Raises: AgentError."""
        if self._waiting or not self._may_begin(request):
            self._waiting.append((request, emit, is_cancelled))
        elif isinstance(request, Generate):
            self._batched().start(request, emit, is_cancelled)
        else:
            self._jobs.append((request, emit, self._job(request, emit, is_cancelled)))

    def work(self, guard: Guard) -> None:
        """A step of the batch, and a piece of one job. What goes wrong ends the requests that it concerns."""
        batch = self._batch
        if batch and not batch.is_idle and (error := guard(batch.step)):
            batch.fail(error)
        if self._jobs:
            request, emit, job = self._jobs.popleft()
            if error := guard(lambda: self._piece(request, emit, job)):
                emit(failed(request.id, error))
        self._take_waiting(guard)

    def status(self) -> EngineStatus:
        """What is held and done at the moment."""
        loaded, batch = self._model, self._batch
        running = [sequence.adapter for sequence in batch.running()] if batch else []
        resident = loaded.adapters.resident(running) if loaded else []
        return EngineStatus(
            model=loaded.card.name if loaded else None,
            device=loaded.device.type if loaded else self._settings.device,
            dtype=loaded.dtype if loaded else self._settings.dtype,
            resident_bytes=loaded.n_bytes if loaded else 0,
            cache_bytes=batch.cache_bytes if batch else 0,
            cache_budget_bytes=self._settings.cache_bytes,
            adapter_budget_bytes=self._settings.adapter_bytes,
            n_running=batch.n_running if batch else 0,
            n_waiting=(batch.n_waiting if batch else 0) + len(self._waiting),
            tokens_per_s=round(batch.tokens_per_s, 3) if batch else 0.0,
            adapters=tuple(
                ResidentAdapter(each.folder, each.n_bytes, each.rank, sum(one is each for one in running))
                for each in resident
            ),
        )

    def _may_begin(self, request: Request) -> bool:
        """A `Load` has the session to itself."""
        if isinstance(request, Load):
            return not (self._jobs or (self._batch and not self._batch.is_idle))
        return not any(isinstance(other, Load) for other, _, _ in self._jobs)

    def _take_waiting(self, guard: Guard) -> None:
        """Let in those that waited for a model, or for the batch to be empty, in their order."""
        for request, emit, is_cancelled in list(self._waiting):
            if is_cancelled():
                self._waiting.remove((request, emit, is_cancelled))
                emit(cancelled(request))
        while self._waiting and self._may_begin(self._waiting[0][0]):
            request, emit, is_cancelled = self._waiting.popleft()
            waiting, self._waiting = self._waiting, deque()
            error = guard(lambda r=request, e=emit, c=is_cancelled: self.begin(r, e, c))  # type: ignore[misc]
            self._waiting = waiting
            if error:
                emit(failed(request.id, error))

    def _piece(self, request: Request, emit: Emit, job: Job) -> None:
        try:
            next(job)
        except StopIteration as end:
            emit(end.value)
        else:
            self._jobs.append((request, emit, job))

    def _job(self, request: Request, emit: Emit, is_cancelled: IsCancelled) -> Job:
        if is_cancelled():
            return cancelled(request)
        began_s = time.perf_counter()
        match request:
            case Import():
                folder = Path(request.folder)
                card = import_model(request.source, folder, request.name, is_cancelled, teller(request.id, emit))
                return Imported(id=request.id, card=card)
            case Load():
                self._model = self._batch = None  # the old one makes room first
                self._model = load_model(Path(request.folder), self._settings.dtype, self._settings.adapter_bytes)
                return Loaded(id=request.id, card=self._model.card, load_s=time.perf_counter() - began_s)
            case Stage():
                self._loaded().adapters.stage(Path(request.adapter))
                return Staged(id=request.id, stage_s=time.perf_counter() - began_s)
            case Train():
                return train(request, emit, is_cancelled)
            case Fit():
                return fit(request, is_cancelled)
            case Measure():
                return measure(request, is_cancelled)
            case Aggregate():
                return aggregate_on_device(request, is_cancelled)
            case Merge():
                return merge(request)
            case Export():
                from agents.engine.worker.export import export_gguf  # here, for only it needs gguf

                return export_gguf(request, is_cancelled)
            case Embed():
                return (yield from self._embed(request, is_cancelled))
        raise EngineFailed(f"a {type(request).__name__} is not for the engine to answer")
        yield  # a generator, whatever the request

    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise EngineFailed("no model is loaded. Load one first.")
        return self._model

    def _batched(self) -> Batch:
        self._batch = self._batch or Batch(self._loaded(), self._settings.limits)
        return self._batch

    def _embed(self, request: Embed, is_cancelled: IsCancelled) -> Job:
        if self._embedder is None or self._embedder[0] != request.folder:
            self._embedder = (request.folder, Embedder(request.folder))
        return (yield from self._embedder[1].embed(request, is_cancelled))
