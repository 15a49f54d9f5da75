"""Servers that speak OpenAI's API, to be a client of: a plain one and one with vLLM's run-time loading of adapters.

The latter is written from vLLM's public documentation and the answers seen in its public issues; it was not held
against a live vLLM.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from agents.engine.remote.server import Server, ServerSettings, open_server
from daemon.api.served import http_served


@dataclass
class FakeServer:
    """Says the prompt back, a word a piece, after the name of the model. `has_loading` is vLLM with LoRA enabled."""

    has_loading: bool = True
    models: dict[str, str | None] = field(default_factory=lambda: {"base": None})  # id -> where its adapter lies
    visible: set[str] = field(default_factory=set)  # the folders that it can read
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    n_open: int = 0
    n_most_open: int = 0
    answer: Callable[[str], tuple[int, Any]] | None = None  # takes the place of the usual answer to a generation
    chunks: list[bytes] | None = None  # the stream, byte by byte
    hold: trio.Event = field(default_factory=trio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["raw_path"].decode().removeprefix("/v1/")
        self.tokens += [value.decode() for key, value in scope["headers"] if key == b"authorization"]
        self.asked.append((scope["method"], path, json.loads(body) if body else None))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, receive, nursery.cancel_scope)
            self.n_open += 1
            self.n_most_open = max(self.n_most_open, self.n_open)
            try:
                await self._serve(path, self.asked[-1][2], send)
            finally:
                self.n_open -= 1
            nursery.cancel_scope.cancel()

    async def _watch(self, receive: Any, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _serve(self, path: str, body: Any, send: Any) -> None:
        if path == "models":
            entries = [
                {"id": name, "object": "model", "root": root, "parent": root and "base", "max_model_len": 512}
                for name, root in self.models.items()
            ]
            await self._json(send, 200, {"object": "list", "data": entries})
        elif path in ("load_lora_adapter", "unload_lora_adapter") and self.has_loading:
            await self._json(send, *(self._load(body) if path.startswith("load") else self._unload(body)))
        elif path in ("chat/completions", "completions"):
            await self._generate(body, send)
        else:
            await self._json(send, 404, {"detail": "Not Found"})

    def _load(self, body: Any) -> tuple[int, Any]:
        name, path = body["lora_name"], body["lora_path"]
        if name in self.models:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput", 400)
        if path not in self.visible:
            return 404, _error(f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError", 404)
        self.models[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, body: Any) -> tuple[int, Any]:
        if self.models.pop(body["lora_name"], None) is None:
            return 404, _error(f"The lora adapter '{body['lora_name']}' cannot be found.", "NotFoundError", 404)
        return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    async def _generate(self, body: Any, send: Any) -> None:
        model = body["model"]
        if self.answer:
            await self._json(send, *self.answer(model))
            return
        if model not in self.models:
            await self._json(send, 404, _error(f"The model `{model}` does not exist.", "NotFoundError", 404))
            return
        await self._begin(send, 200, b"text/event-stream")
        for chunk in self.chunks if self.chunks is not None else self._events(body):
            if b"hang" in chunk:
                await self.hold.wait()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _events(self, body: Any) -> list[bytes]:
        is_chat = "messages" in body
        said = body["messages"][-1]["content"] if is_chat else body["prompt"]
        words = [body["model"], *said.split()]
        pieces: list[Any] = [{"choices": [self._choice(is_chat, f"{word} ", body)]} for word in words]
        pieces.append({"choices": [{"delta": {}, "text": "", "index": 0, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 7, "completion_tokens": len(words), "prompt_tokens_details": None}
        pieces.append({"choices": [], "usage": usage})
        return [b"data: " + json.dumps(piece).encode() + b"\n\n" for piece in pieces] + [b"data: [DONE]\n\n"]

    def _choice(self, is_chat: bool, text: str, body: Any) -> Any:
        if not is_chat:
            logprobs = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{text: -0.5}], "text_offset": [0]}
            return {
                "text": text,
                "index": 0,
                "finish_reason": None,
                "logprobs": logprobs if "logprobs" in body else None,
            }
        told = {"token": text, "logprob": -0.5, "bytes": list(text.encode())}
        logprobs = {"content": [{**told, "top_logprobs": [told]}]} if body.get("logprobs") else None
        return {"delta": {"content": text}, "index": 0, "finish_reason": None, "logprobs": logprobs}

    async def _json(self, send: Any, status: int, value: Any) -> None:
        await self._begin(send, status, b"application/json")
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        await send({"type": "http.response.body", "body": raw, "more_body": False})

    async def _begin(self, send: Any, status: int, kind: bytes) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})


def _error(message: str, kind: str, code: int) -> Any:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


@pytest.fixture
def fake() -> FakeServer:
    return FakeServer()


@pytest.fixture
def connected(fake: FakeServer) -> Callable[..., AbstractAsyncContextManager[Server]]:
    """Our client of the fake server: `connected(kind="vllm")`."""

    @asynccontextmanager
    async def connect(**settings: Any) -> AsyncIterator[Server]:
        async with http_served(fake, "127.0.0.1", 0) as url:
            made = ServerSettings(**{"url": f"{url}/v1", "kind": "vllm", "model": "base"} | settings)
            async with open_server(made) as server:
                yield server

    return connect
