"""Rules are written once for every library of arrays: the same bits from torch, and from the standard alone."""

import json
import subprocess
import sys
from pathlib import Path

import array_api_strict as strict
import numpy as np
import pytest

from agents.aggregation import networks
from agents.aggregation.arrays import HERE, Array, Place, has_same_bits, namespace, number
from agents.aggregation.networks import around_median
from agents.aggregation.updates import Vector
from tests.agents.aggregation.examples import N_PARAMS, RECIPES, digest, examples

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "aggregation.json").read_text())


def back(made: Array, out: Vector) -> None:
    out[:] = np.from_dlpack(made)


def of_the_standard(block: int = HERE.block) -> Place:
    """Arrays that can do what the standard says, and nothing else."""
    return Place(lambda values: strict.asarray(values, copy=True), back, block)


def of_torch(block: int = HERE.block) -> Place:
    """Tensors of the processor. A GPU's come by the same code."""
    torch = pytest.importorskip("torch")

    def give(made: Array, out: Vector) -> None:
        out[:] = made.numpy()

    return Place(lambda values: torch.tensor(values), give, block)


@pytest.mark.parametrize("name", RECIPES)
def test_rules_ask_for_nothing_beyond_the_standard(name: str) -> None:
    assert digest(examples(N_PARAMS), RECIPES[name], place=of_the_standard()) == VECTORS[name]


@pytest.mark.engine
@pytest.mark.parametrize("block", [1000, HERE.block, 1 << 20])
@pytest.mark.parametrize("name", RECIPES)
def test_torch_gives_the_same_bits_whatever_the_size_of_blocks(name: str, block: int) -> None:
    assert digest(examples(N_PARAMS), RECIPES[name], place=of_torch(block)) == VECTORS[name]


@pytest.mark.engine
def test_what_overflows_does_so_everywhere_alike() -> None:
    updates = [one._replace(vector=np.ldexp(one.vector, 131)) for one in examples(500)]
    assert all(np.isfinite(one.vector).all() for one in updates)
    for name, recipe in RECIPES.items():
        expected = digest(updates, recipe, is_finite=False)
        assert digest(updates, recipe, is_finite=False, place=of_torch()) == expected, name


def test_places_that_round_as_this_one_are_found_the_same() -> None:
    assert has_same_bits(HERE) and has_same_bits(of_the_standard())


@pytest.mark.engine
def test_torch_on_the_processor_rounds_as_numpy_does() -> None:
    assert has_same_bits(of_torch())


def flushed(values: Array) -> Array:
    return values * (np.abs(values) >= np.finfo(np.float32).tiny)


class Reciprocal(np.ndarray):
    """Divides as CUDA's tensors do by a number of Python's: by way of 1 / y, with two roundings."""

    def __truediv__(self, other: Array) -> Array:
        return self * (np.float32(1.0) / other)


class Fused(np.ndarray):
    """Adds to a product that was not rounded."""

    product: Array = None

    def __mul__(self, other: Array) -> Array:
        made = super().__mul__(other).view(Fused)
        made.product = (np.asarray(self, np.float64), np.asarray(other, np.float64))
        return made

    def __iadd__(self, other: Array) -> Array:
        if getattr(other, "product", None) is None:
            return super().__iadd__(other)
        x, y = other.product
        self[...] = (np.asarray(self, np.float64) + x * y).astype(np.float32)
        return self


@pytest.mark.parametrize(
    "place",
    [
        Place(lambda values: flushed(values), lambda made, out: np.copyto(out, flushed(made))),
        Place(lambda values: values.view(Reciprocal)),
        Place(lambda values: values.view(Fused)),
    ],
    ids=["flushes subnormals", "divides by reciprocals", "fuses"],
)
def test_a_place_that_rounds_otherwise_is_found_out(place: Place) -> None:
    assert not has_same_bits(place)


def test_constants_are_arrays_where_the_others_are() -> None:
    x = strict.asarray([1.0], dtype=strict.float32)
    made = number(0.1, x)
    assert made.shape == () and made.dtype == strict.float32 and float(made) == float(np.float32(0.1))
    assert namespace(x) is strict and namespace(np.ones(1, np.float32)) is np


def test_aggregation_on_numpy_brings_no_torch() -> None:
    code = (
        "import sys, tests.agents.aggregation.examples as e; e.digest(e.examples(100), e.RECIPES['median'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


def test_a_middle_that_overflows_leaves_nothing_to_memory_that_held_something_else() -> None:
    rows = [np.full(3, value, np.float32) for value in (-1.0, 2.0, 3e38, 3.1e38, 3.2e38, 3.3e38)]
    with np.errstate(over="ignore"):
        expected = networks.mean(rows[:3]).tolist()
        assert around_median(3)(rows).tolist() == expected
