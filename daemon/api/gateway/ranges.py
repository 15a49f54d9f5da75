"""Byte ranges of HTTP (RFC 9110, section 14), and the multipart form in which several are answered."""

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from daemon.api.gateway.refusal import Refusal

MAX_RANGES: Final = 16
BOUNDARY: Final = f"covey-part-{secrets.token_hex(12)}"  # content that could know it could forge parts

_ONE: Final = re.compile(r"([0-9]{0,18})-([0-9]{0,18})")


class ByteRange(NamedTuple):
    """A half-open range."""

    first: int
    end: int

    @property
    def n_bytes(self) -> int:
        """How long it is."""
        return self.end - self.first

    def content_range(self, n_total: int) -> str:
        """The Content-Range of it."""
        return f"bytes {self.first}-{self.end - 1}/{n_total}"


Reader = Callable[[ByteRange], Iterator[bytes]]


def read_ranges(header: str | None, n_total: int) -> list[ByteRange]:
    """The ranges that a Range header asks for; none where it is to be ignored: no bytes, not well-formed, too many, or
    more in sum than the whole. Raises: Refusal (416) when nothing of it lies within.
    """
    unit, _, text = (header or "").partition("=")
    parts = text.split(",")
    if unit.strip().lower() != "bytes" or len(parts) > MAX_RANGES:
        return []
    found = []
    for part in parts:
        match = _ONE.fullmatch(part.strip())
        if match is None or not (match[1] or match[2]) or (match[1] and match[2] and int(match[1]) > int(match[2])):
            return []
        if match[1]:
            one = ByteRange(int(match[1]), min(int(match[2]) + 1 if match[2] else n_total, n_total))
        else:
            one = ByteRange(max(n_total - int(match[2]), 0), n_total)
        if one.n_bytes > 0:
            found.append(one)
    if not found:
        raise Refusal(416, f"the range lies outside of {n_total} bytes", [("Content-Range", f"bytes */{n_total}")])
    return found if sum(one.n_bytes for one in found) <= n_total else []


def part_heads(ranges: Sequence[ByteRange], n_total: int, content_type: str) -> list[bytes]:
    """What stands before each part."""
    return [
        (
            f"\r\n--{BOUNDARY}\r\nContent-Type: {content_type}\r\nContent-Range: {one.content_range(n_total)}\r\n\r\n"
        ).encode("latin-1")
        for one in ranges
    ]


TAIL: Final = f"\r\n--{BOUNDARY}--\r\n".encode()


def multipart(ranges: Sequence[ByteRange], heads: Sequence[bytes], read: Reader) -> Iterator[bytes]:
    """The body with every part."""
    for one, head in zip(ranges, heads, strict=True):
        yield head
        yield from read(one)
    yield TAIL
