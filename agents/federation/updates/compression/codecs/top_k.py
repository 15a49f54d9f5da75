"""The largest values alone, with their places; what is left out waits in the client's memory.

Places are counted within pages of 2^16 parameters, two bytes each behind a number of them for each page.

Source: Stich et al., Sparsified SGD with memory (arXiv 1809.07599), algorithm 1; Lin et al. (arXiv 1712.01887).
"""

import math
from typing import Annotated, Final, Literal

import numpy as np
from msgspec import Meta

from agents.aggregation.updates import Vector
from agents.federation.updates.compression.codec import BadCompressed, Codec, Reader, f32_bytes
from agents.federation.updates.compression.levels import n_bytes, pack_levels, unpack_levels
from agents.federation.updates.tensors import Layout

PAGE: Final = 1 << 16


class TopK(Codec, frozen=True, tag="top_k"):
    """The `part` of all values that is largest, in floats or in 8 bits."""

    part: Annotated[float, Meta(gt=0.0, le=0.5)]
    bits: Literal[8, 32] = 8

    def n_kept(self, layout: Layout) -> int:
        """How many values are sent."""
        return max(1, math.floor(layout.n_params * self.part))

    def max_bytes(self, layout: Layout) -> int:
        """All updates of a layout take the same."""
        n_kept = self.n_kept(layout)
        return 4 * _n_pages(layout) + 2 * n_kept + (n_bytes(n_kept) if self.bits == 8 else 4 * n_kept)

    def pack(self, vector: Vector, layout: Layout) -> bytes:
        """Of equals the earlier are kept."""
        order = np.argsort(-np.abs(vector), kind="stable")[: self.n_kept(layout)]
        places = np.sort(order)
        counts = np.bincount(places // PAGE, minlength=_n_pages(layout)).astype("<u4")
        values = vector[places]
        body = pack_levels(values) if self.bits == 8 else f32_bytes(values)
        return counts.tobytes() + (places % PAGE).astype("<u2").tobytes() + body

    def unpack(self, read: Reader, layout: Layout) -> Vector:
        """Raises: BadCompressed."""
        n_kept = self.n_kept(layout)
        counts = read.whole("<u4", _n_pages(layout))
        if int(counts.sum()) != n_kept:
            raise BadCompressed(f"it names {int(counts.sum())} places, and {n_kept} are to be sent")
        places = read.whole("<u2", n_kept) + np.repeat(np.arange(len(counts)) * PAGE, counts)
        if (np.diff(places) <= 0).any() or int(places[-1]) >= layout.n_params:
            raise BadCompressed("its places are not in order, or lie beyond the last parameter")
        vector = np.zeros(layout.n_params, np.float32)
        vector[places] = unpack_levels(read, n_kept) if self.bits == 8 else read.floats(n_kept)
        return vector


def _n_pages(layout: Layout) -> int:
    return -(-layout.n_params // PAGE)
