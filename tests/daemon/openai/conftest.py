"""The OpenAI-compatible face over a real listener: a real catalog, an engine that plays, and the official client."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import openai
import pytest
import trio

from agents.engine import messages
from agents.engine.messages import Finished, Generate, Logprob, Token
from agents.models import Desk
from daemon.api.openai.app import Limits, OpenAiApp
from daemon.api.openai.face import Face
from daemon.api.openai.face import Token as BearerToken
from daemon.api.served import http_served
from daemon.config import Config, EngineConfig
from storage.catalog import Catalog
from storage.catalog.adapters import AdapterRow, AdapterState
from storage.catalog.models import ModelRow
from storage.cid import Cid
from storage.keys import Identity

BASE = str(Cid.of(b"base"))
CARD = messages.ModelCard(
    name="smollm2",
    fingerprint=BASE,
    architecture="LlamaForCausalLM",
    n_params=135_000_000,
    n_layers=30,
    hidden_size=576,
    vocabulary=49_152,
    context_tokens=2048,
    dtype="float32",
    has_chat_template=True,
)


@dataclass
class PlayedEngine:
    """Says the last turn back, a word a token, in the name of its adapter; `error` fails, `hang` never ends."""

    asked: list[messages.Request] = field(default_factory=list)
    n_open: int = 0
    n_most_open: int = 0
    error: Exception | None = None
    hold: trio.Event = field(default_factory=trio.Event)

    async def one(self, request: messages.Request) -> messages.Reply:
        self.asked.append(request)
        await trio.lowlevel.checkpoint()
        if isinstance(request, messages.Embed):
            rows = b"".join(b"\0\0\x80\x3f" + bytes(4) for _ in request.texts)
            return messages.Embedded(vectors=rows, width=2, n_tokens=(3,) * len(request.texts))
        return messages.Loaded(card=CARD, load_s=0.0)

    @asynccontextmanager
    async def call(self, request: messages.Request) -> AsyncIterator[AsyncIterator[messages.Reply]]:
        assert isinstance(request, Generate)
        self.asked.append(request)
        self.n_open += 1
        self.n_most_open = max(self.n_most_open, self.n_open)
        try:
            async with aclosing(self._replies(request)) as replies:
                yield replies
        finally:
            self.n_open -= 1

    async def _replies(self, ask: Generate) -> AsyncIterator[messages.Reply]:
        said = ask.text if ask.text is not None else ask.turns[-1].content
        words = [Path(ask.adapter).name] if ask.adapter else []
        words += said.split()
        for word in words[: ask.max_tokens]:
            await trio.lowlevel.checkpoint()
            if word == "fail":
                assert self.error is not None
                raise self.error
            if word == "hang":
                await self.hold.wait()
            yield Token(text=f"{word} ", logprobs=self._logprobs(ask, word))
        is_cut = len(words) > ask.max_tokens
        n_tokens = min(len(words), ask.max_tokens)
        yield Finished(
            reason="length" if is_cut else "stop",
            n_prompt_tokens=10,
            n_tokens=n_tokens,
            first_token_s=0.0,
            total_s=0.0,
            n_cached_tokens=4,
        )

    def _logprobs(self, ask: Generate, word: str) -> tuple[Logprob, ...]:
        if ask.n_logprobs is None:
            return ()
        token = f"{word} ".encode()
        return (Logprob(token, -0.5, tuple((token, -0.5 - at) for at in range(ask.n_logprobs))),)


@pytest.fixture
def engine() -> PlayedEngine:
    return PlayedEngine()


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return tmp_path / "mini"


@pytest.fixture
def node(tmp_path: Path, engine: PlayedEngine, encoder: Path) -> Any:
    catalog = Catalog.open(tmp_path / "catalog.db")
    card = msgspec.to_builtins(CARD)
    catalog.models.upsert(
        ModelRow(name="smollm2", fingerprint=BASE, folder="/m", source="wheel:x", card=card, added_unix_s=7.0)
    )
    yield SimpleNamespace(
        catalog=catalog,
        config=Config(engine=EngineConfig(encoder=str(encoder))),
        engine=engine,
        desk=Desk(engine),
        openai=Face(BearerToken(tmp_path / "openai.token")),
    )
    catalog.close()


@pytest.fixture
def publish(node: Any) -> Callable[..., str]:
    """Have an adapter ready; returns the CID of its manifest."""

    def ready(name: str = "kjv", version: int = 1, *, base: str = BASE, is_own: bool = True) -> str:
        cid = Cid.of(f"{name}{version}{base}".encode())
        node.catalog.adapters.upsert(
            AdapterRow(
                manifest=cid,
                name=name,
                base=base,
                publisher=Identity.generate().peer_id,
                version=version,
                rank=8,
                n_bytes=1,
                created_unix_s=5.0,
                heard_unix_s=1.0,
                is_own=is_own,
            )
        )
        node.catalog.adapters.set_state(cid, AdapterState.READY, float(version), folder=f"/a/{name}{version}")
        return str(cid)

    return ready


@dataclass
class Served:
    """The face, and the official client for it, which blocks: `ask` calls it in a thread."""

    app: OpenAiApp
    url: str
    client: openai.OpenAI

    async def ask(self, call: Callable[..., Any], /, **options: Any) -> Any:
        return await trio.to_thread.run_sync(partial(call, **options))

    async def chat(self, text: str = "hello there", **options: Any) -> Any:
        turns = [{"role": "user", "content": text}]
        return await self.ask(self.client.chat.completions.create, **{"model": "smollm2", "messages": turns} | options)

    async def refused(self, kind: type[openai.APIStatusError], text: str = "hi", **options: Any) -> dict[str, Any]:
        with pytest.raises(kind) as caught:
            await self.chat(text, **options)
        assert isinstance(caught.value.body, dict)
        return {**caught.value.body, "status": caught.value.status_code}


@pytest.fixture
async def face(node: Any) -> AsyncIterator[Served]:
    app = OpenAiApp(node, Limits(n_answers=8, answer_s=20.0), lambda: 1.8e9)
    key = node.openai.token.value()
    async with http_served(app, "127.0.0.1", 0) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20) as client:
            yield Served(app, url, client)
