"""What the worker holds between requests, and how it answers each of them."""

import time
from collections.abc import Callable
from pathlib import Path

from agents.engine.messages import (
    Embed,
    Embedded,
    Export,
    Finished,
    Generate,
    Import,
    Imported,
    Load,
    Loaded,
    Merge,
    Reply,
    Request,
    Stage,
    Staged,
    Token,
    Train,
)
from agents.engine.worker.embed import Embedder
from agents.engine.worker.generate import generate
from agents.engine.worker.imports import import_model, teller
from agents.engine.worker.merge import merge
from agents.engine.worker.models import LoadedModel, load_model
from agents.engine.worker.training.train import train
from agents.errors import EngineFailed

Emit = Callable[[Reply], None]
IsCancelled = Callable[[], bool]


class Session:
    """At most one language model and one encoder, and the adapters of the model."""

    def __init__(self) -> None:
        self._model: LoadedModel | None = None
        self._embedder: tuple[str | None, Embedder] | None = None

    def answer(self, request: Request, emit: Emit, is_cancelled: IsCancelled) -> Reply:
        """Carry out `request` and return its final reply. Raises: AgentError."""
        began_s = time.perf_counter()
        match request:
            case Import():
                folder = Path(request.folder)
                card = import_model(request.source, folder, request.name, is_cancelled, teller(request.id, emit))
                return Imported(id=request.id, card=card)
            case Load():
                self._model = None  # the old one makes room first
                self._model = load_model(Path(request.folder))
                return Loaded(id=request.id, card=self._model.card, load_s=time.perf_counter() - began_s)
            case Stage():
                self._loaded().adapters.stage(Path(request.adapter))
                return Staged(id=request.id, stage_s=time.perf_counter() - began_s)
            case Generate():
                return self._generate(request, emit, is_cancelled)
            case Train():
                return train(request, emit, is_cancelled)
            case Merge():
                return merge(request)
            case Export():
                from agents.engine.worker.export import export_gguf  # here, for only it needs gguf

                return export_gguf(request, is_cancelled)
            case Embed():
                return self._embed(request, is_cancelled)
        raise EngineFailed(f"a {type(request).__name__} is not for the engine to answer")

    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise EngineFailed("no model is loaded. Load one first.")
        return self._model

    def _generate(self, request: Generate, emit: Emit, is_cancelled: IsCancelled) -> Finished:
        loaded = self._loaded()
        adapters = loaded.adapters
        adapters.wear(adapters.stage(Path(request.adapter)) if request.adapter else None)
        return generate(loaded, request, lambda text: emit(Token(id=request.id, text=text)), is_cancelled)

    def _embed(self, request: Embed, is_cancelled: IsCancelled) -> Embedded:
        if self._embedder is None or self._embedder[0] != request.folder:
            self._embedder = (request.folder, Embedder(request.folder))
        batches = self._embedder[1].embed(request, is_cancelled)
        while True:
            try:
                next(batches)
            except StopIteration as end:
                made: Embedded = end.value
                return made
