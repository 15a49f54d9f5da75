"""Operations over the control socket, under trio or asyncio. What there is, with all parameters: daemon/CONTROL.md."""

import json
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, Self

import httpx

from daemon.paths import home_from

MAX_ANSWER_BYTES: Final = 64 << 20
MAX_LINE_BYTES: Final = 32 << 20
CONNECT_LIMIT_S: Final = 5.0


class NotRunning(Exception):
    """No daemon answers in this home. Start it: covey up"""


class Refused(Exception):
    """The daemon answered with an error: its `code` is for programs, `hint` says what to do next."""

    def __init__(self, code: str, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.hint = hint


class Client:
    """A daemon, by its home: COVEY_HOME, or the usual one. A context: `async with Client() as node`."""

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self._home = home_from({"COVEY_HOME": os.fspath(home)} if home is not None else os.environ)
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self._home.socket)),
            base_url="http://localhost/v1/",
            timeout=httpx.Timeout(None, connect=CONNECT_LIMIT_S),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def call(self, operation: str, /, **params: Any) -> Any:
        """The result of an operation, `noun/verb`, as JSON has it. Raises: NotRunning, Refused."""
        data = bytearray()
        async with aclosing(self._chunks(operation, params)) as chunks:
            async for chunk in chunks:
                data += chunk
                if len(data) > MAX_ANSWER_BYTES:
                    raise Refused("too_large", f"the answer to {operation} has over {MAX_ANSWER_BYTES} bytes")
        return json.loads(data)

    async def stream(self, operation: str, /, **params: Any) -> AsyncGenerator[Any, None]:
        """Each item of an operation that streams. Use `contextlib.aclosing`. Raises: NotRunning, Refused."""
        held = b""
        async with aclosing(self._chunks(operation, params)) as chunks:
            async for chunk in chunks:
                *lines, held = (held + chunk).split(b"\n")
                if len(held) > MAX_LINE_BYTES:
                    raise Refused("too_large", f"{operation} sends a line that is too long")
                for item in map(json.loads, filter(None, lines)):
                    if isinstance(item, dict) and item.keys() == {"error"}:
                        raise _refused(item)
                    yield item

    async def _chunks(self, operation: str, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        try:
            async with self._http.stream("POST", operation, json=params) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refused(json.loads(await response.aread()))
                async for chunk in response.aiter_bytes():
                    yield chunk
        except httpx.ConnectError:
            raise NotRunning(f"the daemon is not running in {self._home.root}. Start it: covey up") from None
        except httpx.TransportError as error:
            raise Refused("connection_lost", f"the daemon stopped before it had answered: {error}") from None


def _refused(answer: Any) -> Refused:
    error = answer.get("error", {}) if isinstance(answer, dict) else {}
    return Refused(str(error.get("code", "unknown")), str(error.get("text", "it failed")), str(error.get("hint") or ""))
