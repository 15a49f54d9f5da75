"""Linear algebra whose every rounding is fixed: the same bits on every machine, at the price of speed.

Sums over arrays are made by halving, products by adding one rank at a time; no library chooses an order. float64
throughout.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

MAX_SWEEPS: Final = 60
_TINY: Final = 2.0**-52


def sum_in_order(values: Iterable[float]) -> float:
    """A sum of few numbers, one after the other: the built-in one may compensate, and not everywhere."""
    result = 0.0
    for value in values:
        result += value
    return result


def total(values: Matrix) -> Matrix:
    """The sum over the first axis: its second half is added to its first until one is left."""
    rest = values
    while len(rest) > 1:
        half = len(rest) // 2
        folded = rest[:half] + rest[half : 2 * half]
        rest = np.concatenate((folded, rest[2 * half :])) if len(rest) % 2 else folded
    return rest[0] if len(rest) else np.zeros(values.shape[1:])


def dot(x: Matrix, y: Matrix) -> float:
    """An inner product. Shape: both (n)."""
    return float(total(x * y))


def matmul(x: Matrix, y: Matrix) -> Matrix:
    """A product, one rank after the other. Shape: (n, k), (k, m) -> (n, m)."""
    product = np.zeros((x.shape[0], y.shape[1]))
    for k in range(x.shape[1]):
        product += x[:, k, None] * y[k]
    return product


def qr(x: Matrix) -> tuple[Matrix, Matrix]:
    """Orthonormal columns and an upper triangle, by Gram-Schmidt, each column twice.

    A column that depends on those before it becomes zeros. Shape: (n, k) -> (n, k), (k, k).
    Source: Giraud et al., The loss of orthogonality in the Gram-Schmidt process (2005): twice is enough.
    """
    q, r = np.zeros_like(x), np.zeros((x.shape[1], x.shape[1]))
    for j in range(x.shape[1]):
        column = x[:, j].copy()
        before = np.sqrt(dot(column, column))
        for _ in range(2):
            for i in range(j):
                part = dot(q[:, i], column)
                r[i, j] += part
                column = column - q[:, i] * part
        length = np.sqrt(dot(column, column))
        if length > before * x.shape[0] * _TINY:
            r[j, j] = length
            q[:, j] = column / length
    return q, r


def svd(x: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """U, singular values from the largest down, and V, with x = U diag(s) V^T. One-sided Jacobi, in a fixed order.

    Meant for small cores. Shape: (n, k) with n >= k -> (n, k), (k), (k, k).
    Source: Hestenes (1958); Demmel and Veselic, Jacobi's method is more accurate than QR (1992).
    """
    u, v = x.copy(), np.eye(x.shape[1])
    for _ in range(MAX_SWEEPS):
        n_rotated = 0
        for p in range(x.shape[1]):
            for q in range(p + 1, x.shape[1]):
                n_rotated += _rotate(u, v, p, q)
        if not n_rotated:
            break
    lengths = np.array([np.sqrt(dot(u[:, j], u[:, j])) for j in range(u.shape[1])])
    order = sorted(range(len(lengths)), key=lambda j: (-lengths[j], j))
    u, v, lengths = u[:, order], v[:, order], lengths[order]
    for j, length in enumerate(lengths):
        if length > 0.0:
            u[:, j] = u[:, j] / length
    return u, lengths, v


def _rotate(u: Matrix, v: Matrix, p: int, q: int) -> bool:
    """Make two columns orthogonal; False when they are."""
    x, y = u[:, p], u[:, q]
    a, b, c = total(np.stack((x * x, y * y, x * y), axis=1)).tolist()  # each as `dot` adds it up
    if abs(c) <= _TINY * np.sqrt(a) * np.sqrt(b) or c == 0.0:
        return False
    zeta = (b - a) / (2.0 * c)
    t = (1.0 if zeta >= 0.0 else -1.0) / (abs(zeta) + np.sqrt(1.0 + zeta * zeta))
    cosine = 1.0 / np.sqrt(1.0 + t * t)
    sine = cosine * t
    for matrix in (u, v):
        first, second = matrix[:, p].copy(), matrix[:, q].copy()
        matrix[:, p] = first * cosine - second * sine
        matrix[:, q] = first * sine + second * cosine
    return True
