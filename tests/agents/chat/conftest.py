"""A scripted engine, and what goes into a chat."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from agents.chat.events import Adapter
from agents.engine import messages


@dataclass
class ScriptedEngine:
    """Plays one script per `Generate`: texts are tokens, numbers are seconds of silence, errors are raised."""

    scripts: list[list[object]] = field(default_factory=list)
    requests: list[messages.Request] = field(default_factory=list)
    bad_adapters: dict[str, Exception] = field(default_factory=dict)
    is_busy: bool = False

    async def one(self, request: messages.Request) -> messages.Reply:
        assert isinstance(request, messages.Stage)
        self.requests.append(request)
        await trio.lowlevel.checkpoint()
        bad = self.bad_adapters.get(request.adapter)
        if bad:
            raise bad
        return messages.Staged(id=1, stage_s=0.01)

    @asynccontextmanager
    async def call(self, request: messages.Request) -> AsyncIterator[AsyncIterator[messages.Reply]]:
        assert not self.is_busy
        self.requests.append(request)
        self.is_busy = True
        try:
            async with aclosing(self._play(self.scripts.pop(0))) as replies:
                yield replies
        finally:
            self.is_busy = False

    async def _play(self, script: list[object]) -> AsyncIterator[messages.Reply]:
        n_tokens = 0
        for step in script:
            await trio.lowlevel.checkpoint()
            match step:
                case str():
                    n_tokens += 1
                    yield messages.Token(id=1, text=step)
                case int() | float():
                    await trio.sleep(step)
                case Exception():
                    raise step
                case messages.Finished():
                    yield step
                    return
                case None:
                    return
        yield messages.Finished(
            id=1, reason="stop", n_prompt_tokens=20, n_tokens=n_tokens, first_token_s=0.1, total_s=0.5
        )


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    def make(version: int = 1, name: str = "kjv") -> Adapter:
        return Adapter(
            name=name, version=version, cid=f"bafy{name}{version}", publisher="12D3Koo", folder=f"/a/{name}{version}"
        )

    return make
