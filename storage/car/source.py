"""A stream that knows where it is: whatever a CAR lacks is refused with the offset.

Only `read` is asked of the stream: it may be a pipe, and may give fewer bytes than it is asked for.
"""

from typing import Final, Protocol

from storage.cid import varint_decode
from storage.errors import InvalidCar

READ_BYTES: Final = 1 << 20
MAX_VARINT_BYTES: Final = 9


class Stream(Protocol):
    """What bytes come from: up to `n` of them, none at the end."""

    def read(self, n: int, /) -> bytes | None:
        """Up to `n` bytes."""


class Source:
    """Bytes of a stream in turn. `at` is the offset of the next one; nothing behind `limit` is given out."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.buffer = b""
        self.pos = 0
        self._before = 0
        self.limit: int | None = None

    @property
    def at(self) -> int:
        """The offset of the next byte in the stream."""
        return self._before + self.pos

    def is_at_end(self) -> bool:
        """Is there nothing left, up to the limit?"""
        if self.limit is not None:
            return self.at >= self.limit
        return self.pos == len(self.buffer) and not self._fill(1)

    def require(self, n_bytes: int, what: str) -> int:
        """Have `n_bytes` in the buffer from `pos` on; return where they end in it. Raises: InvalidCar."""
        if self.limit is not None and self.at + n_bytes > self.limit:
            raise InvalidCar(f"{what} of {n_bytes} bytes reaches over the end of the data at {self.limit}", self.at)
        if len(self.buffer) - self.pos < n_bytes and not self._fill(n_bytes):
            raise InvalidCar(f"the file ends in the middle of {what}", self._before + len(self.buffer))
        return self.pos + n_bytes

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next bytes. Raises: InvalidCar where there are fewer."""
        end = self.require(n_bytes, what)
        data = self.buffer[self.pos : end]
        self.pos = end
        return data

    def varint(self, what: str) -> int:
        """The next varint. Raises: InvalidCar where it is cut short, overlong or not minimal."""
        start = self.at
        length, end = 1, self.require(1, what)
        while self.buffer[end - 1] >= 0x80:
            if length == MAX_VARINT_BYTES:
                raise InvalidCar(f"{what} is a varint of more than {MAX_VARINT_BYTES} bytes", start)
            length += 1
            end = self.require(length, what)
        try:
            value, _ = varint_decode(self.take(length, what))
        except ValueError as error:
            raise InvalidCar(f"{what}: {error}", start) from None
        return value

    def skip_to(self, offset: int, what: str) -> None:
        """Pass over what stands before `offset`. Raises: InvalidCar where the stream ends before it."""
        while self.at < offset:
            self.take(min(offset - self.at, READ_BYTES), what)

    def _fill(self, n_bytes: int) -> bool:
        """Read until `n_bytes` are there. False: the stream ended before."""
        parts = [self.buffer[self.pos :]]
        n_held = len(parts[0])
        while n_held < n_bytes and (part := self._stream.read(max(READ_BYTES, n_bytes - n_held))):
            parts.append(part)
            n_held += len(part)
        self._before += self.pos
        self.buffer, self.pos = b"".join(parts), 0
        return n_held >= n_bytes
