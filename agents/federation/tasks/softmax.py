"""Multinomial logistic regression on a local file: a small task that is real, and needs no torch.

The data are an .npz with `x` (n, n_features) and `y` (n,), or CSV without a heading, the label in its last column.
Minibatch gradient descent on the cross-entropy, in float64, in an order that follows from the seed; or DP-SGD, with
batches and noise from the system's source of secrets. A part of the data is held out of every round's training, and
every result is looked at on it. `agents.federation.tasks.steps` has the optimizers, and what pulls beside the data.

Source: Bishop, Pattern Recognition and Machine Learning (2006), section 4.3.4.
"""

import zipfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import trio
from msgspec import Meta
from numpy.typing import NDArray

from agents.federation.privacy.examples import NoisySum, taken
from agents.federation.tasks import BadTask, Exam, FindBase, Made, Score, Task, Work, no_base
from agents.federation.tasks.steps import Floats, Kind, Momentum, Mu, NSteps, Optimizer, Pull, check_momentum, is_plain
from agents.federation.updates.tensors import Layout, flush, new_vector, read_layout, read_vector
from agents.training.settings import ExampleNoise
from agents.training.split import split_rows

MAX_DATA_BYTES: Final = 1 << 30
MAX_BLOCK_VALUES: Final = 1 << 21  # of single examples' gradients at a time
FORMS: Final = "It reads .npz files with `x` (n, features) and `y` (n,), and CSV without a heading, the label last"
Places = NDArray[np.int64]


class Softmax(Task, frozen=True, tag="softmax", kw_only=True):
    """Settings. `n_epochs` are the passes over the own data in a round; with `n_steps` everybody makes so many steps.
    `decay` is of weights, not of biases; `scale` divides the features; `held_out` is the share of the own data that is
    not learned from. `proximal_mu` is FedProx's: how far the round's base pulls.
    """

    hides_examples: ClassVar[bool] = True
    has_examples_as_samples: ClassVar[bool] = True
    corrects_drift: ClassVar[bool] = True

    n_features: Annotated[int, Meta(ge=1, le=1 << 20)]
    n_classes: Annotated[int, Meta(ge=2, le=1 << 16)]
    learning_rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 0.1
    n_epochs: Annotated[int, Meta(ge=1, le=1000)] = 1
    n_steps: NSteps = 0
    batch: Annotated[int, Meta(ge=1, le=1 << 20)] = 32
    optimizer: Kind = "sgd"
    momentum: Momentum = 0.0
    proximal_mu: Mu = 0.0
    decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    scale: Annotated[float, Meta(gt=0.0)] = 1.0
    held_out: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.1

    def __post_init__(self) -> None:
        check_momentum(self.optimizer, self.momentum)

    @property
    def is_plain_sgd(self) -> bool:
        """As the settings say."""
        return is_plain(self.optimizer, self.momentum, self.proximal_mu)

    @property
    def layout(self) -> Layout:
        """A matrix of weights and a vector of biases."""
        return Layout.of({"bias": (self.n_classes,), "weight": (self.n_features, self.n_classes)})

    def initial(self, out: Path, find: FindBase = no_base) -> None:
        """Zeros: every class is as likely as every other."""
        flush(new_vector(out, self.layout), out)

    def misfit(self, layout: Layout) -> str:
        """A matrix of weights and a vector of biases."""
        return layout.differs_from(self.layout)

    def check(self, data: Path) -> None:
        """Raises: BadTask, OSError."""
        self.read(data)

    def n_samples(self, data: Path) -> int:
        """The rows that are not held out. Raises: BadTask, OSError."""
        return len(self.split(len(self.read(data)[1]))[0])

    async def train(self, work: Work) -> Made:
        """Some passes over the own data. Raises: BadTask, BadTensors, OSError."""
        if work.data is None:
            raise BadTask("softmax needs data: covey fl join --data FILE.npz")
        return await trio.to_thread.run_sync(partial(self._train, work, work.data))

    def _train(self, work: Work, path: Path) -> Made:
        x, y = self.read(path)
        learned, held_out = self.split(len(y))
        x_out, y_out = (x[held_out], y[held_out]) if len(held_out) else (x, y)
        x, y = x[learned], y[learned]
        if difference := read_layout(work.base).differs_from(self.layout):
            raise BadTask(f"the base does not fit the settings: {difference}")
        before = np.array(read_vector(work.base, self.layout), np.float64)
        after = before.copy()
        if work.noise is not None:
            n_steps = self._descend_noisily(after, x, y, work.noise, self._pull(before, work.correction))
        else:
            n_steps = self._descend(after, x, y, work.seed, self._pull(before, work.correction))
        update = new_vector(work.out, self.layout)
        update[:] = after.astype(np.float32) - before.astype(np.float32)
        flush(update, work.out)
        return Made(len(y), n_steps, self.measure(after, x_out, y_out)[0])

    def _pull(self, base: Floats, correction: Path | None) -> Pull:
        found = np.array(read_vector(correction, self.layout), np.float64) if correction is not None else None
        return Pull(base, self.proximal_mu, found)

    def _optimizer(self, n_params: int) -> Optimizer:
        decay = np.full(n_params, self.decay)
        decay[: self.n_classes] = 0.0  # biases
        return Optimizer(self.optimizer, self.learning_rate, self.momentum, decay if self.decay else None)

    def _descend(self, vector: Floats, x: Floats, y: Places, seed: bytes, pull: Pull) -> int:
        """Go down the gradient, in place; the number of steps."""
        bias, weight = self._views(vector)
        optimizer, n_steps = self._optimizer(len(vector)), 0
        for rows in self._batches(len(y), seed):
            trio.from_thread.check_cancelled()
            error = _errors(x[rows], y[rows], weight, bias)  # (batch, n_classes)
            total = np.concatenate((error.sum(axis=0), (x[rows].T @ error).ravel()))  # (n_params)
            optimizer.step(vector, total, len(rows), pull.at(vector))
            n_steps += 1
        return n_steps

    def _batches(self, n_rows: int, seed: bytes) -> Iterator[Places]:
        """The rows of each step: pass after pass, each in an order of its own."""
        chance = np.random.Generator(np.random.PCG64(int.from_bytes(seed)))

        def passes() -> Iterator[Places]:
            while True:
                order = chance.permutation(n_rows)
                yield from (order[start : start + self.batch] for start in range(0, n_rows, self.batch))

        return islice(passes(), self.n_steps or self.n_epochs * -(-n_rows // self.batch))

    def _descend_noisily(self, vector: Floats, x: Floats, y: Places, noise: ExampleNoise, pull: Pull) -> int:
        """The same by DP-SGD: a step is divided by the batch that is expected, for the real one is a secret."""
        bias, weight = self._views(vector)
        batch, n_steps = self.steps(len(y))
        optimizer = self._optimizer(len(vector))
        n_at_once = max(1, MAX_BLOCK_VALUES // len(vector))
        for _ in range(n_steps):
            total = NoisySum(len(vector), noise)
            rows = taken(batch, len(y))
            for start in range(0, len(rows), n_at_once):
                trio.from_thread.check_cancelled()
                part = rows[start : start + n_at_once]
                error = _errors(x[part], y[part], weight, bias)  # (n, n_classes)
                of_weight = (x[part][:, :, None] * error[:, None, :]).reshape(len(part), -1)
                total.add(np.concatenate((error, of_weight), axis=1))  # (n, n_params)
            optimizer.step(vector, np.asarray(total.told(), np.float64), batch, pull.at(vector))
        return n_steps

    def steps(self, n_examples: int) -> tuple[int, int]:
        """Passes over the data, on average."""
        batch = min(self.batch, n_examples)
        return batch, self.n_steps or max(1, round(self.n_epochs * n_examples / batch))

    def split(self, n_rows: int) -> tuple[Places, Places]:
        """The rows to learn from, and those held out."""
        return split_rows(n_rows, self.held_out)

    async def evaluate(self, exam: Exam) -> Score | None:
        """Raises: BadTask, BadTensors, OSError."""
        return await trio.to_thread.run_sync(partial(self._evaluate, exam))

    def _evaluate(self, exam: Exam) -> Score | None:
        x, y = self.read(exam.data)
        held_out = self.split(len(y))[1]
        if not len(held_out):
            return None
        if difference := read_layout(exam.tensors).differs_from(self.layout):
            raise BadTask(f"the result does not fit the settings: {difference}")
        vector = np.array(read_vector(exam.tensors, self.layout), np.float64)
        return Score(len(held_out), *self.measure(vector, x[held_out], y[held_out]))

    def measure(self, vector: NDArray[Any], x: Floats, y: NDArray[np.int64]) -> tuple[float, float]:
        """Cross-entropy in nats a sample, and accuracy."""
        bias, weight = self._views(np.asarray(vector, np.float64))
        chances = _likelihoods(x, weight, bias)
        own = np.maximum(chances[np.arange(len(y)), y], 1e-300)
        return float(-np.log(own).mean()), float((chances.argmax(axis=1) == y).mean())

    def _views(self, vector: Floats) -> tuple[Floats, Floats]:
        """Bias and weight, in the order of their names."""
        return vector[: self.n_classes], vector[self.n_classes :].reshape(self.n_features, self.n_classes)

    def read(self, path: Path) -> tuple[Floats, NDArray[np.int64]]:
        """Features and labels, checked. Raises: BadTask, OSError."""
        if (n_bytes := path.stat().st_size) > MAX_DATA_BYTES:
            raise BadTask(f"{path} has {n_bytes} bytes; the limit is {MAX_DATA_BYTES}")
        try:
            x, labels = _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BadTask(f"{path} cannot be read as numbers: {error}. {FORMS}") from None
        if x.ndim != 2 or x.shape[1] != self.n_features or labels.shape != (len(x),) or not len(x):
            raise BadTask(
                f"{path} has features of shape {x.shape} and labels of {labels.shape}; "
                f"expected are (n, {self.n_features}) and (n,). {FORMS}"
            )
        y = labels.astype(np.int64)
        if (y != labels).any() or y.min() < 0 or y.max() >= self.n_classes:
            raise BadTask(f"{path} has labels that are not whole numbers from 0 to {self.n_classes - 1}")
        if not np.isfinite(x).all():
            raise BadTask(f"{path} has features that are not finite")
        return x / self.scale, y


def _errors(x: Floats, y: Places, weight: Floats, bias: Floats) -> Floats:
    """Of single examples, the gradients by their scores. Shape: (n, n_classes)."""
    error = _likelihoods(x, weight, bias)
    error[np.arange(len(y)), y] -= 1.0
    return error


def _likelihoods(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """The chance of each class. Shape: (n, n_classes)."""
    scores = x @ weight + bias
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def _read_npz(path: Path) -> tuple[Floats, Floats]:
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        x = file["x"]
        return x.reshape(len(x), -1).astype(np.float64), file["y"].astype(np.float64)


def _read_csv(path: Path) -> tuple[Floats, Floats]:
    table = np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2)
    return table[:, :-1], table[:, -1]
