"""Blocks as arrays of any library that speaks the array API, and the place where they are computed.

What a rule does with a block is written once: `+`, `-`, `*`, `/` and their forms in place, comparisons, and a few
functions of the arrays' own namespace (`add`, `minimum`, `maximum`, `sign`, `abs`, `where`). Each of these rounds each
element once, by IEEE 754, and is a step of its own: no library fuses a product with the sum that follows unless it is
asked to, as by `addcmul`, `lerp`, `add` with a factor, or a compiler of whole functions. Those are not used here.

Three things are made here, because libraries differ in them. A constant is an array too (`number`): where CUDA divides
by a number of Python's, torch multiplies by its reciprocal. Square roots are taken by `root`. And `made` writes into
memory that is there, where numpy does: the standard has no word for that, and fresh memory costs a fifth more.

Source: Python array API standard 2024.12, as array-api-compat gives it for numpy and torch.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from agents.aggregation.updates import Vector

Array = Any
"""An array of the standard's, float32. That of numpy is a `Vector`."""


def namespace(x: Array) -> Any:
    """The functions for arrays of this kind."""
    return np if isinstance(x, np.ndarray) else array_namespace(x)


def number(value: float, like: Array) -> Array:
    """A constant, rounded to float32, beside an array that is computed with it. Shape: ()."""
    rounded = np.float32(value)
    return rounded if isinstance(like, np.ndarray) else _there(float(rounded), like)


def made(step: str, x: Array, y: Array, into: Array | None = None) -> Array:
    """The standard's function of that name of both; `into` is memory for it, where the library can write to some.

    numpy can, and so its blocks stay in a core's cache. May be x or y.
    """
    if isinstance(x, np.ndarray):
        return getattr(np, step)(x, y, out=into)
    return getattr(namespace(x), step)(x, y)


def beside(values: Vector, like: Array) -> Array:
    """Values that were made here, in the place of an array."""
    return values if isinstance(like, np.ndarray) else _there(values, like)


def root(x: Array) -> Array:
    """Square roots, each rounded as IEEE 754 says, by way of float64: torch's own, of float32, are an ulp off at times.

    No float32's root lies nearer to the middle of two than four ulps of float64, so nothing is decided on the way.
    """
    xp = namespace(x)
    return xp.asarray(xp.sqrt(xp.asarray(x, dtype=xp.float64)), dtype=x.dtype)


def _there(value: object, like: Array) -> Array:
    return array_namespace(like).asarray(value, dtype=like.dtype, device=device(like))


def _same(block: Vector) -> Array:
    return block


def _back(made: Array, out: Vector) -> None:
    if made is not out:
        out[...] = made


class Place(NamedTuple):
    """Where blocks are computed: how one gets there, how what was made of it comes back, and how large it is."""

    take: Callable[[Vector], Array] = _same
    give: Callable[[Array, Vector], None] = _back
    block: int = 1 << 13  # parameters: the rows of a few dozen updates stay in a core's cache


HERE: Final = Place()


def has_same_bits(place: Place) -> bool:
    """Does each step that rules use give there what it gives here? Asked with numbers of every kind.

    A device may flush subnormal numbers, divide by a reciprocal, or have a compiler that fuses: not one of a pass.
    """
    x, y = _samples(b"x"), _samples(b"y")
    with np.errstate(all="ignore"):
        return all(_is_same(step(x, y), _there_and_back(step, x, y, place)) for step in STEPS)


N_SAMPLES: Final = 1 << 14
STEPS: Final[tuple[Callable[[Array, Array], Array], ...]] = (
    lambda x, y: x + y,
    lambda x, y: x - y,
    lambda x, y: x * y,
    lambda x, y: x / y,
    lambda x, y: x * number(0.1, x),
    lambda x, y: x / number(3.0, x),
    lambda x, y: root(namespace(x).abs(x)),
    lambda x, y: namespace(x).sign(x),
    lambda x, y: made("minimum", x, y),
    lambda x, y: made("maximum", x, y),
    lambda x, y: namespace(x).where(x < y, x, y),
    lambda x, y: _in_place(x, y),
)


def _in_place(x: Array, y: Array) -> Array:
    """A velocity's step: a product, and a sum after it."""
    result = x + y
    result *= number(0.9, x)
    result += x * y
    result -= y
    result /= number(7.0, x)
    return result


def _samples(seed: bytes) -> Vector:
    """Half of them any number that float32 has, half of them near one, where sums and products round."""
    words = np.frombuffer(hashlib.shake_128(seed).digest(4 * N_SAMPLES), "<u4")
    any_at_all = words[: N_SAMPLES // 2].view("<f4").astype(np.float32)
    near_one = (words[N_SAMPLES // 2 :] >> 8).astype(np.float32) / np.float32(1 << 23) - np.float32(1.0)
    return np.concatenate((np.where(np.isfinite(any_at_all), any_at_all, np.float32(1.0)), near_one))


def _there_and_back(step: Callable[[Array, Array], Array], x: Vector, y: Vector, place: Place) -> Vector:
    result = np.empty_like(x)
    place.give(step(place.take(x), place.take(y)), result)
    return result


def _is_same(here: Vector, there: Vector) -> bool:
    """Bit by bit; NaN is NaN."""
    is_nan = np.isnan(here)
    same = (here.view(np.uint32) == there.view(np.uint32)) | (is_nan & np.isnan(there))
    return bool(same.all())
