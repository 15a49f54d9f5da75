"""The port to servers that are asked over HTTP: block sources and routers. `protocols.web_http` is the adapter."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple

from protocols.errors import TooBig

MAX_RETRY_AFTER_S: Final = 3600.0


class Ask(NamedTuple):
    """One request. `accept` is the Accept header; `body` is of the media type `kind`."""

    url: str
    accept: str = "*/*"
    method: str = "GET"
    body: bytes = b""
    kind: str = ""


@dataclass(frozen=True)
class Reply:
    """What came back, behind redirects. `headers` are by lower-case name; `chunks` is the body, as it comes."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]

    @property
    def kind(self) -> str:
        """The media type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def retry_after_s(self) -> float | None:
        """How long the server asks to be left alone, where it says so in seconds."""
        text = self.headers.get("retry-after", "").strip()
        return min(float(text), MAX_RETRY_AFTER_S) if text.isascii() and text.isdecimal() else None


Send = Callable[[Ask], AbstractAsyncContextManager[Reply]]
"""Raises: HttpFailed, also while the body is read."""


async def whole(reply: Reply, max_bytes: int, what: str) -> bytes:
    """The whole body. Raises: TooBig, HttpFailed."""
    stated = reply.headers.get("content-length", "")
    body = bytearray()
    if not (stated.isdecimal() and int(stated[:20]) > max_bytes):
        async for chunk in reply.chunks:
            body += chunk
            if len(body) > max_bytes:
                break
        else:
            return bytes(body)
    raise TooBig(f"{what} sends over {max_bytes} bytes")
