"""Values in 8 bits: blocks with a scale each, that of the largest value in it.

Source: Dettmers et al., 8-bit optimizers via block-wise quantization (arXiv 2110.02861), section 2.1; linear here.
"""

from typing import Final

import numpy as np

from agents.aggregation.updates import Vector
from agents.federation.updates.compression.codec import BadCompressed, Reader, f32_bytes

MOST: Final = 127  # levels to either side of zero
BLOCK: Final = 256


def n_bytes(n_values: int) -> int:
    """What they take."""
    return n_values + 4 * -(-n_values // BLOCK)


def pack_levels(values: Vector) -> bytes:
    """Scales, then levels. A block of zeros has the scale 0."""
    n_blocks = -(-len(values) // BLOCK)
    padded = np.zeros(n_blocks * BLOCK, np.float32)
    padded[: len(values)] = values
    blocks = padded.reshape(n_blocks, BLOCK)
    scales = np.abs(blocks).max(axis=1, initial=0.0) / np.float32(MOST)
    safe = np.where(scales > 0.0, scales, np.float32(1.0))
    levels = np.clip(np.rint(blocks / safe[:, None]), -MOST, MOST).astype(np.int8)
    return f32_bytes(scales) + levels.reshape(-1)[: len(values)].tobytes()


def unpack_levels(read: Reader, n_values: int) -> Vector:
    """The values: level times scale, one product of floats each. Raises: BadCompressed."""
    scales = read.floats(-(-n_values // BLOCK))
    if (scales < 0.0).any():
        raise BadCompressed("a scale is below zero")
    levels = np.frombuffer(read.take(n_values), np.int8)
    if (levels == -MOST - 1).any():
        raise BadCompressed("a level is out of range")
    return np.multiply(levels.astype(np.float32), np.repeat(scales, BLOCK)[:n_values], dtype=np.float32)
