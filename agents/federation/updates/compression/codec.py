"""What a codec is, and how its bytes are read: every one of them is somebody else's."""

import msgspec
import numpy as np
import numpy.typing as npt

from agents.aggregation.updates import CannotAggregate, Vector, largest
from agents.errors import AgentError
from agents.federation.updates.tensors import Layout

_F32 = np.dtype("<f4")


class BadCompressed(AgentError):
    """The bytes are not an update that was compressed as the plan says."""

    code = "bad_compressed"


class Codec(msgspec.Struct, frozen=True, tag_field="codec", forbid_unknown_fields=True, kw_only=True):
    """Base of all codecs: settings, as they stand in a plan, and the two ways.

    A client's `memory` is what was left out so far. It is added to the next update (error feedback), so that it comes
    in the end. It stays with the client, and one that loses it loses no more than that.

    Source: Karimireddy et al., Error feedback fixes SignSGD (arXiv 1901.09847).
    """

    def encode(self, vector: Vector, layout: Layout, memory: Vector | None = None) -> bytes:
        """The bytes to submit; `memory`, of the vector's shape, goes on in place. Raises: CannotAggregate."""
        if vector.shape != (layout.n_params,):
            raise CannotAggregate(f"an update of shape {vector.shape} is not one of {layout.n_params} parameters")
        if not np.isfinite(largest(vector)):
            raise CannotAggregate("the update holds NaN or infinity: it is not sent")
        whole = vector if memory is None else vector + memory
        data = self.pack(whole, layout)
        if memory is not None:
            memory[:] = whole - self.decode(data, layout)
        return data

    def decode(self, data: bytes, layout: Layout) -> Vector:
        """The update that everybody reads out of these bytes, bit for bit. Raises: BadCompressed."""
        read = Reader(data)
        with np.errstate(over="ignore", under="ignore"):
            vector = self.unpack(read, layout)
        read.end()
        return vector

    def max_bytes(self, layout: Layout) -> int:
        """No update of this layout takes more: what is larger need not be fetched."""
        raise NotImplementedError

    def pack(self, vector: Vector, layout: Layout) -> bytes:
        """The bytes of a vector."""
        raise NotImplementedError

    def unpack(self, read: "Reader", layout: Layout) -> Vector:
        """The vector. Raises: BadCompressed."""
        raise NotImplementedError


class Reader:
    """Takes numbers off bytes from outside, and no more of them than are there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, n_bytes: int) -> memoryview:
        """The next bytes. Raises: BadCompressed."""
        if n_bytes > len(self._data) - self._at:
            raise BadCompressed(f"it ends after {len(self._data)} bytes, in the middle of something")
        part = memoryview(self._data)[self._at : self._at + n_bytes]
        self._at += n_bytes
        return part

    def whole(self, dtype: str, n_values: int) -> npt.NDArray[np.int64]:
        """Whole numbers of a fixed width. Raises: BadCompressed."""
        kind = np.dtype(dtype)
        return np.frombuffer(self.take(n_values * kind.itemsize), kind).astype(np.int64)

    def floats(self, n_values: int) -> Vector:
        """Finite numbers. Raises: BadCompressed."""
        values = np.frombuffer(self.take(n_values * _F32.itemsize), _F32).astype(np.float32)
        if not np.isfinite(values).all():
            raise BadCompressed("it holds NaN or infinity")
        return values

    def end(self) -> None:
        """Nothing may follow. Raises: BadCompressed."""
        if self._at != len(self._data):
            raise BadCompressed(f"{len(self._data) - self._at} bytes follow what was to be read")


def f32_bytes(values: npt.NDArray[np.floating]) -> bytes:
    """Numbers as they are sent."""
    return values.astype(_F32).tobytes()
