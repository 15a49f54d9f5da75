"""A server of which every byte is the test's, for models that are asked over HTTP."""

import json
from functools import partial

import pytest
import trio


class Rude:
    """Sends `chunks`, each `pause_s` after the one before, to whoever asks; then ends, or falls silent."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[bytes, bytes]] = []  # head and body
        self.chunks: list[bytes] = []
        self.pause_s = 0.0
        self.hangs = False

    def says(self, status: int, body: bytes, kind: str = "application/json") -> None:
        head = (
            f"HTTP/1.1 {status} So\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.chunks = [head.encode() + body]

    def streams(self, *events: object) -> None:
        """Events of an answer; a text as it is, all else as JSON."""
        head = b"HTTP/1.1 200 So\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        told = (event if isinstance(event, str) else json.dumps(event) for event in events)
        self.chunks = [head, *(f"data: {event}\n\n".encode() for event in told)]

    async def answer(self, stream: trio.SocketStream) -> None:
        try:
            await self._answer(stream)
        except trio.BrokenResourceError:
            """The other side has heard enough."""

    async def _answer(self, stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some() or b"\r\n\r\n"
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        while lengths and len(body) < int(lengths[0].split(b":")[1]):
            body += await stream.receive_some()
        self.asked.append((head, body))
        for chunk in self.chunks:
            await stream.send_all(chunk)
            await trio.sleep(self.pause_s)
        if self.hangs:
            await trio.sleep_forever()


@pytest.fixture
async def rude(nursery):
    server = Rude()
    [listener] = await nursery.start(partial(trio.serve_tcp, server.answer, 0, host="127.0.0.1"))
    server.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1"
    return server
