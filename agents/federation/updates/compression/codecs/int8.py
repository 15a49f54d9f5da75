"""Every value in 8 bits, by blocks: a quarter of the bytes."""

from agents.aggregation.updates import Vector
from agents.federation.updates.compression.codec import Codec, Reader
from agents.federation.updates.compression.levels import n_bytes, pack_levels, unpack_levels
from agents.federation.updates.tensors import Layout


class Int8(Codec, frozen=True, tag="int8"):
    """Blockwise, linear."""

    def max_bytes(self, layout: Layout) -> int:
        """All updates of a layout take the same."""
        return n_bytes(layout.n_params)

    def pack(self, vector: Vector, layout: Layout) -> bytes:
        """Scales and levels."""
        return pack_levels(vector)

    def unpack(self, read: Reader, layout: Layout) -> Vector:
        """Raises: BadCompressed."""
        return unpack_levels(read, layout.n_params)
