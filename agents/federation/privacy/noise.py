"""Gaussian noise on whole numbers, exactly, from the system's source of secrets.

Continuous noise in floats leaks: which floats can come out depends on what went in (Mironov, CCS 2012). So values are
put on a grid first, central noise as well as distributed, and the noise is a discrete Gaussian.

The sampler rejects from a discrete Laplace; every coin in it has exactly the probability that it should, for nothing
but whole numbers is compared. It works on whole arrays; the deviation is a whole number of steps, 4,096 at most.

Source: Canonne et al. (arXiv 2004.00010), algorithms 1 to 3; Kairouz et al. (arXiv 2102.06387) for noise in parts.
"""

import secrets
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

MAX_DEVIATION: Final = 1 << 12  # products of what is compared stay within 63 bits
MAX_MAGNITUDE: Final = 1 << 19  # 128 deviations at least: e^-8000 of the distribution lies beyond
SAMPLE_BLOCK: Final = 1 << 16

Whole = npt.NDArray[np.int64]
Bits = npt.NDArray[np.bool_]
Source = Callable[[int], bytes]


def discrete_gaussian(size: int, deviation: int, source: Source = secrets.token_bytes) -> Whole:
    """Independent samples, each k with a probability in proportion to e^(-k^2 / 2 deviation^2). Shape: (size).

    `source` gives random bytes; anything but the system's is for tests.
    """
    if not 1 <= deviation <= MAX_DEVIATION:
        raise ValueError(f"a deviation is 1 to {MAX_DEVIATION} steps, not {deviation}")
    samples = np.empty(size, np.int64)
    for start in range(0, size, SAMPLE_BLOCK):
        block = samples[start : start + SAMPLE_BLOCK]
        n_have = 0
        while n_have < len(block):
            drawn = _proposed(max(2 * (len(block) - n_have), 64), deviation, source)[: len(block) - n_have]
            block[n_have : n_have + len(drawn)] = drawn
            n_have += len(drawn)
    return samples


def _proposed(n: int, deviation: int, source: Source) -> Whole:
    """Those of about n draws that were accepted."""
    scale = deviation + 1
    laplace = _discrete_laplace(n, scale, source)
    laplace = laplace[np.abs(laplace) < MAX_MAGNITUDE]
    square = deviation * deviation
    above = (np.abs(laplace) * scale - square) ** 2
    return laplace[_is_exp(above, 2 * square * scale * scale, source)]


def _discrete_laplace(n: int, scale: int, source: Source) -> Whole:
    """Each k with a probability in proportion to e^(-|k| / scale); fewer than n of them."""
    rest = below(np.full(n, scale, np.uint64), source).astype(np.int64)
    rest = rest[_is_exp_small(rest, scale, source)]
    whole = np.zeros(len(rest), np.int64)
    going = np.arange(len(rest))
    while len(going):
        going = going[_is_exp_small(np.ones(len(going), np.int64), 1, source)]
        whole[going] += 1
    magnitude = rest + scale * whole
    is_negative = (np.frombuffer(source(len(magnitude)), np.uint8) & 1).astype(bool)
    kept = ~(is_negative & (magnitude == 0))
    signed: Whole = np.where(is_negative, -magnitude, magnitude)[kept]
    return signed


def _is_exp(numerators: Whole, denominator: int, source: Source) -> Bits:
    """True with probability e^(-numerator / denominator), each by itself."""
    whole, rest = np.divmod(numerators, denominator)
    is_true = _is_exp_small(rest, denominator, source)
    alive = np.flatnonzero(is_true & (whole > 0))
    while len(alive):
        passed = _is_exp_small(np.ones(len(alive), np.int64), 1, source)
        is_true[alive[~passed]] = False
        whole[alive] -= 1
        alive = alive[passed & (whole[alive] > 0)]
    return is_true


def _is_exp_small(numerators: Whole, denominator: int, source: Source) -> Bits:
    """The same for fractions of at most one: the parity of how long a chain of coins lasts."""
    is_true = np.zeros(len(numerators), bool)
    going, k = np.arange(len(numerators)), 1
    while len(going):
        limit = np.full(len(going), denominator * k, np.uint64)
        lasts = below(limit, source) < numerators[going].astype(np.uint64)
        is_true[going[~lasts]] = bool(k % 2)
        going, k = going[lasts], k + 1
    return is_true


def below(limits: npt.NDArray[np.uint64], source: Source) -> npt.NDArray[np.uint64]:
    """Uniform whole numbers below each limit, without the bias of a remainder."""
    drawn = np.frombuffer(source(8 * len(limits)), np.uint64).copy()
    # The largest multiple of the limit that 64 bits hold: what lies above it is drawn again.
    over = (np.uint64(2**64 - 1) % limits + np.uint64(1)) % limits
    redo = np.flatnonzero(drawn > np.uint64(2**64 - 1) - over)
    while len(redo):
        drawn[redo] = np.frombuffer(source(8 * len(redo)), np.uint64)
        redo = redo[drawn[redo] > np.uint64(2**64 - 1) - over[redo]]
    result: npt.NDArray[np.uint64] = drawn % limits
    return result
