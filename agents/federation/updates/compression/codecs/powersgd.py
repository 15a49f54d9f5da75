"""Matrices as products of two thin ones, found by power iteration; all else as it is.

The factors are sent, and everybody multiplies them by sums in a fixed order. Finding them is a client's own matter, but
it takes the same order too: one that was killed and trains again submits the same bytes.

Source: Vogels et al. (arXiv 1905.13727), algorithm 1; a few iterations from a fixed start in place of the warm one.
"""

import hashlib
from typing import Annotated, Final, Literal

import numpy as np
from msgspec import Meta

from agents.aggregation.fixed import Matrix, matmul, qr
from agents.aggregation.updates import Vector
from agents.federation.updates.compression.codec import Codec, Reader, f32_bytes
from agents.federation.updates.compression.levels import n_bytes, pack_levels, unpack_levels
from agents.federation.updates.tensors import Layout

N_ITERATIONS: Final = 2


class PowerSgd(Codec, frozen=True, tag="powersgd"):
    """Factors of `rank` columns, in floats or in 8 bits."""

    rank: Annotated[int, Meta(ge=1, le=64)] = 1
    bits: Literal[8, 32] = 8

    def max_bytes(self, layout: Layout) -> int:
        """All updates of a layout take the same."""
        return sum(self._n_bytes(size) for _, shape in layout.shapes for size in self._sizes(shape))

    def pack(self, vector: Vector, layout: Layout) -> bytes:
        """Tensor by tensor."""
        packed, at = [], 0
        for _, shape in layout.shapes:
            size = int(np.prod(shape, dtype=np.int64))
            part = vector[at : at + size]
            at += size
            if (folded := self._folded(shape)) is None:
                packed.append(self._packed(part))
                continue
            matrix = part.reshape(folded).astype(np.float64)
            left, right = _factors(matrix, self.rank)
            packed += [self._packed(left.astype(np.float32).ravel()), self._packed(right.astype(np.float32).ravel())]
        return b"".join(packed)

    def unpack(self, read: Reader, layout: Layout) -> Vector:
        """Raises: BadCompressed."""
        parts = []
        for _, shape in layout.shapes:
            values = [self._unpacked(read, size) for size in self._sizes(shape)]
            if (folded := self._folded(shape)) is None:
                parts.append(values[0])
                continue
            left, right = (one.astype(np.float64).reshape(-1, self.rank) for one in values)
            parts.append(matmul(left, right.T).astype(np.float32).reshape(folded[0] * folded[1]))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _folded(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """A tensor as a matrix; None where factors would take as much."""
        if len(shape) < 2:
            return None
        rows, columns = shape[0], int(np.prod(shape[1:], dtype=np.int64))
        return (rows, columns) if self.rank * (rows + columns) < rows * columns else None

    def _sizes(self, shape: tuple[int, ...]) -> list[int]:
        folded = self._folded(shape)
        return [side * self.rank for side in folded] if folded else [int(np.prod(shape, dtype=np.int64))]

    def _n_bytes(self, n_values: int) -> int:
        return n_bytes(n_values) if self.bits == 8 else 4 * n_values

    def _packed(self, values: Vector) -> bytes:
        return pack_levels(values) if self.bits == 8 else f32_bytes(values)

    def _unpacked(self, read: Reader, n_values: int) -> Vector:
        return unpack_levels(read, n_values) if self.bits == 8 else read.floats(n_values)


def _factors(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Orthonormal columns, and what of the matrix they reach. Shape: (n, m) -> (n, rank), (m, rank)."""
    right = _start(matrix.shape[1], rank)
    left = np.zeros((matrix.shape[0], rank))
    for _ in range(N_ITERATIONS):
        left, _ = qr(matmul(matrix, right))
        right = matmul(matrix.T, left)
    return left, right


def _start(n_rows: int, rank: int) -> Matrix:
    """Numbers between -1 and 1 that look like chance, the same everywhere."""
    stream = hashlib.shake_256(b"covey powersgd start").digest(2 * n_rows * rank)
    return (np.frombuffer(stream, "<i2").astype(np.float64) / 32768.0).reshape(n_rows, rank)
