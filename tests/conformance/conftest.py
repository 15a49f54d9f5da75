"""Asking an ASGI application, without a server between."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio


@pytest.fixture
def ask_app() -> Any:
    """Send one request; the reply with its status, headers (joined) and body."""

    async def ask(
        app: Any, method: str, path: str, query: str = "", headers: list[tuple[str, str]] | None = None
    ) -> SimpleNamespace:
        reply = SimpleNamespace(status=0, headers={}, body=b"", is_whole=False)

        async def receive() -> dict[str, Any]:
            await trio.sleep_forever()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                for name, value in message["headers"]:
                    key, text = name.decode(), value.decode("latin-1")
                    reply.headers[key] = f"{reply.headers[key]}, {text}" if key in reply.headers else text
            else:
                reply.body += message["body"]
                reply.is_whole = not message["more_body"]

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers or ()],
        }
        await app(scope, receive, send)
        return reply

    return ask
