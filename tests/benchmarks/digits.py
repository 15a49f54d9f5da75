"""Federated learning in miniature: scikit-learn's digits, a network of 64-32-10, clients with SGD, all in numpy.

Only the data file of scikit-learn is read, from an environment of its own. Rounds are computed by `compute` from files,
as a member of an experiment computes them: admission comes first, then the rule.
"""

import csv
import gzip
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agents.aggregation.updates import Vector
from agents.federation.results.outcome import Outcome, Submitted, compute
from agents.federation.updates.tensors import Layout, new_vector, read_vector
from protocols.rounds import Plan, Submit
from storage.cid import RAW, Cid
from storage.keys import Identity
from tests.interop.strangers import digits_file

N_CLASSES = 10
N_TEST = 360
SHAPES = {"hidden.bias": (32,), "hidden.weight": (64, 32), "out.bias": (10,), "out.weight": (32, 10)}
LAYOUT = Layout.of(SHAPES)

Indices = npt.NDArray[np.int64]
Generator = np.random.Generator


class Data(NamedTuple):
    """Images and labels. Shape: (n, 64), (n)."""

    images: Vector
    labels: Indices

    def take(self, which: Indices) -> "Data":
        return Data(self.images[which], self.labels[which])

    def flipped(self) -> "Data":
        return Data(self.images, N_CLASSES - 1 - self.labels)


class Training(NamedTuple):
    """What a client does in a round."""

    n_epochs: int
    batch: int
    rate: float


@cache
def digits() -> Data:
    with gzip.open(digits_file(), "rt") as file:
        rows = np.array([[float(cell) for cell in row] for row in csv.reader(file)], np.float32)
    return Data(rows[:, :64] / np.float32(16.0), rows[:, 64].astype(np.int64))


def split(seed: int) -> tuple[Data, Data]:
    """For training and for testing."""
    data = digits()
    order = np.random.default_rng((seed, 0)).permutation(len(data.labels))
    return data.take(order[N_TEST:]), data.take(order[:N_TEST])


# How data lie with clients


def iid(labels: Indices, n_clients: int, chance: Generator) -> list[Indices]:
    return np.array_split(chance.permutation(len(labels)), n_clients)


def two_class_shards(labels: Indices, n_clients: int, chance: Generator) -> list[Indices]:
    """Sorted by label and cut into two shards a client."""
    shards = np.array_split(np.argsort(labels, kind="stable"), 2 * n_clients)
    dealt = chance.permutation(len(shards))
    return [np.concatenate((shards[dealt[2 * i]], shards[dealt[2 * i + 1]])) for i in range(n_clients)]


def dirichlet(labels: Indices, n_clients: int, chance: Generator) -> list[Indices]:
    """Each class is spread over clients by a Dirichlet distribution of 0.1; nobody is left with less than a batch."""
    while True:
        parts: list[list[Indices]] = [[] for _ in range(n_clients)]
        for label in range(N_CLASSES):
            of_class = chance.permutation(np.flatnonzero(labels == label))
            cuts = np.cumsum(chance.dirichlet([0.1] * n_clients))[:-1] * len(of_class)
            for part, found in zip(parts, np.split(of_class, cuts.astype(int)), strict=True):
                part.append(found)
        joined = [np.concatenate(part) for part in parts]
        if min(map(len, joined)) >= 10:
            return joined


SPREADS: dict[str, Callable[[Indices, int, Generator], list[Indices]]] = {
    "IID": iid,
    "two-class shards": two_class_shards,
    "Dirichlet(0.1)": dirichlet,
}


# The network


def new_model(seed: int) -> Vector:
    """Uniform within 1 / sqrt(inputs), as is usual."""
    chance = np.random.default_rng((seed, 1))
    model = np.empty(LAYOUT.n_params, np.float32)
    for view, n_inputs in zip(parts(model), (64, 64, 32, 32), strict=True):
        view[:] = chance.uniform(-(n_inputs**-0.5), n_inputs**-0.5, view.shape)
    return model


def parts(vector: Vector) -> tuple[Vector, ...]:
    """Views of the tensors in a flat vector: hidden bias and weight, output bias and weight."""
    views, at = [], 0
    for _, shape in LAYOUT.shapes:
        size = int(np.prod(shape))
        views.append(vector[at : at + size].reshape(shape))
        at += size
    return tuple(views)


def train(model: Vector, data: Data, how: Training, chance: Generator) -> Vector:
    """What local SGD adds to the model."""
    local, gradient = model.copy(), np.empty_like(model)
    b1, w1, b2, w2 = parts(local)
    d_b1, d_w1, d_b2, d_w2 = parts(gradient)
    for _ in range(how.n_epochs):
        order = chance.permutation(len(data.labels))
        for start in range(0, len(order), how.batch):
            which = order[start : start + how.batch]
            x, y = data.images[which], data.labels[which]
            hidden = np.maximum(x @ w1 + b1, 0.0)
            error = softmax(hidden @ w2 + b2)
            error[np.arange(len(y)), y] -= 1.0
            error /= len(y)
            d_w2[:], d_b2[:] = hidden.T @ error, error.sum(axis=0)
            back = (error @ w2.T) * (hidden > 0.0)
            d_w1[:], d_b1[:] = x.T @ back, back.sum(axis=0)
            local -= np.float32(how.rate) * gradient
    return local - model


def softmax(logits: Vector) -> Vector:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def accuracy(model: Vector, data: Data) -> float:
    b1, w1, b2, w2 = parts(model)
    guessed = (np.maximum(data.images @ w1 + b1, 0.0) @ w2 + b2).argmax(axis=1)
    return float((guessed == data.labels).mean())


# Rounds


class Sent(NamedTuple):
    """What a client sends: its update, which may be compressed, and how many samples it claims."""

    vector: Vector | bytes
    n_samples: int
    staleness: int = 0


@cache
def peer(number: int) -> Identity:
    return Identity(number.to_bytes(32))


def new_plan(**changes: object) -> Plan:
    """A plan as it stands in an experiment; only its recipe matters here."""
    peers = tuple(peer(number).peer_id for number in range(16))
    fixed = {"title": "digits", "task": {"task": "digits"}, "initial": Cid.of(b"", RAW), "members": peers}
    return Plan(**({**fixed, "deputies": peers} | changes))  # type: ignore[arg-type]


class Rounds:
    """A model that goes on from round to round, each computed from files as a member computes it."""

    def __init__(self, plan: Plan, model: Vector) -> None:
        self.plan = plan
        self.model = model
        self.number = 0
        self._states: list[Vector] = []

    def close(self, sent: Sequence[Sent]) -> Outcome:
        """Admit, aggregate, and go on from the result."""
        self.number += 1
        scratch = "/dev/shm" if Path("/dev/shm").is_dir() else None
        with tempfile.TemporaryDirectory(dir=scratch) as name:
            folder, result = Path(name), Path(name) / "result"
            result.mkdir()
            base = write(folder / "base", self.model)
            submitted = []
            for number, one in enumerate(sent):
                path = write(folder / str(number), one.vector)
                submit = Submit(
                    round=self.number,
                    base=Cid.of(base.read_bytes(), RAW),
                    update=Cid.of(path.read_bytes(), RAW),
                    n_samples=one.n_samples,
                )
                submitted.append(Submitted(peer(number).peer_id, submit, path, one.staleness))
            states = [write(folder / f"state-{number}", state) for number, state in enumerate(self._states)]
            outcome = compute(self.plan, base, submitted, result, seed=self.number.to_bytes(32), states=states)
            self.model = np.array(read_vector(outcome.tensors, LAYOUT))
            self._states = [np.array(read_vector(path, LAYOUT)) for path in outcome.states]
            return outcome


def write(path: Path, what: Vector | bytes) -> Path:
    if isinstance(what, bytes):
        path.write_bytes(what)
    else:
        new_vector(path, LAYOUT)[:] = what
    return path
