"""Any torch module: a plan names a factory, which each participant has installed; the engine trains what it makes.

What is exchanged is the floats of the module's state, buffers among them; whole numbers stay as the factory makes them.
The data are a safetensors file with `x` and `y`, a row an example: classes as whole numbers, or with "mse" numbers.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

import numpy as np
import trio
from msgspec import Meta

from agents.adapters.finite import not_finite
from agents.adapters.safetensors_header import DATA_DTYPES, read_header
from agents.errors import BadAdapter
from agents.federation.tasks import BadTask, Engine, Exam, FindBase, Fitting, Made, Score, Task, Work
from agents.federation.tasks.factories import INPUTS, LABELS, factories
from agents.federation.tasks.steps import Kind, Momentum, Mu, check_momentum, is_plain
from agents.federation.updates.tensors import canonical, flush, new_vector, read_vector
from agents.training.settings import FitSettings

SEED_BYTES: Final = 7


class Module(Task, frozen=True, tag="torch", kw_only=True):
    """Settings. `factory` is the name of an entry point in `covey.factories`; `decay` is of all that is learned.
    `held_out` is the share of the own data that is not learned from. `proximal_mu` is FedProx's.
    """

    corrects_drift: ClassVar[bool] = True
    starts_engine: ClassVar[bool] = True

    factory: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    n_steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 30
    batch: Annotated[int, Meta(ge=1, le=1 << 16)] = 32
    optimizer: Kind = "sgd"
    learning_rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 0.05
    momentum: Momentum = 0.0
    proximal_mu: Mu = 0.0
    decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    held_out: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.1

    def __post_init__(self) -> None:
        check_momentum(self.optimizer, self.momentum)

    @property
    def is_plain_sgd(self) -> bool:
        """As the settings say."""
        return is_plain(self.optimizer, self.momentum, self.proximal_mu)

    def completed(self, find: FindBase) -> Self:
        """Raises: BadTask where the factory is not here."""
        self._look_for_factory()
        return self

    async def first(self, out: Path, find: FindBase, engine: Engine | None) -> None:
        """As the factory makes them, by a seed of none. Raises: BadTask, EngineFailed and its like."""
        made = out.with_name(f"{out.name}.made")
        await self._needed(engine).fit(Fitting(self.factory, self._settings(0), out=made))
        await trio.to_thread.run_sync(canonical, made, out)

    def check(self, data: Path) -> None:
        """Raises: BadTask, OSError."""
        self._look_for_factory()
        self._n_rows(data)
        if (name := not_finite(data, DATA_DTYPES)) is not None:
            raise BadTask(f"{data} holds NaN or infinity in {name[:120]}")

    def n_samples(self, data: Path) -> int:
        """The rows that are not held out. Raises: BadTask, OSError."""
        n_rows = self._n_rows(data)
        return n_rows - round(n_rows * self.held_out)

    def _n_rows(self, data: Path) -> int:
        try:
            shapes = {tensor.name: tensor.shape for tensor in read_header(data, DATA_DTYPES).tensors}
        except BadAdapter as error:
            raise BadTask(f"{data} holds no rows: {error}. It is safetensors, with {INPUTS} and {LABELS}") from None
        x, y = shapes.get(INPUTS, ()), shapes.get(LABELS, ())
        if not x or not y or x[0] != y[0] or not x[0]:
            raise BadTask(f"{data} has {INPUTS} of shape {x} and {LABELS} of {y}: as many rows of both are wanted")
        return x[0]

    async def train(self, work: Work) -> Made:
        """Raises: BadTask, BadTensors, EngineFailed and its like, OSError."""
        if work.data is None:
            raise BadTask("torch needs data: covey fl join --data FILE.safetensors")
        self._look_for_factory()
        made, settings = work.out.with_name("made"), self._settings(int.from_bytes(work.seed[:SEED_BYTES]))
        fitted = await self._needed(work.engine).fit(
            Fitting(self.factory, settings, work.base, work.data, made, work.correction)
        )
        await trio.to_thread.run_sync(partial(_write_update, work, made))
        return Made(max(1, fitted.n_learned), self.n_steps, fitted.loss)

    async def evaluate(self, exam: Exam) -> Score | None:
        """Raises: EngineFailed and its like."""
        if exam.engine is None:
            return None
        found = await exam.engine.fit(Fitting(self.factory, self._settings(0), exam.tensors, exam.data))
        return Score(found.n_held_out, found.loss, found.accuracy) if found.n_held_out else None

    def _look_for_factory(self) -> None:
        if self.factory not in (here := factories()):
            there = f"; there are {', '.join(here)[:300]}" if here else ""
            raise BadTask(f"there is no factory {self.factory} here{there}: install the package that brings it")

    def _needed(self, engine: Engine | None) -> Engine:
        if engine is None:
            raise BadTask("torch needs an engine: a node that has covey[engine]")
        return engine

    def _settings(self, seed: int) -> FitSettings:
        return FitSettings(
            loss=self.loss,
            n_steps=self.n_steps,
            batch=self.batch,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.decay,
            proximal_mu=self.proximal_mu,
            held_out=self.held_out,
            seed=seed,
        )


def _write_update(work: Work, made: Path) -> None:
    """New minus base."""
    new = work.out.with_name("new")
    layout = canonical(made, new)
    update = new_vector(work.out, layout)
    np.subtract(read_vector(new, layout), read_vector(work.base, layout), out=update)
    flush(update, work.out)
