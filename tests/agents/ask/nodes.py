"""An engine that takes its time, and the questions that are put to it."""

from contextlib import aclosing, asynccontextmanager

import trio

from agents.ask.remote import RemoteEngine
from agents.ask.serve import Terms
from agents.engine.messages import Finished, Generate, Load, Loaded, Token, Turn
from protocols.ask import wire
from protocols.ask.quota import Limits
from protocols.ask.wire import Ask
from simulations.world import TINY
from storage.cid import Cid

ASK = Generate(turns=(Turn("user", "why?"),), max_tokens=8)
BASE = Cid.parse(TINY.base)
QUESTION = Ask(turns=(wire.Turn(role="user", content="why?"),), options=wire.Options(max_tokens=8))
LIMITS = Limits(n_at_once=2, n_per_minute=100, tokens_per_hour=10_000, tokens_per_day=20_000, n_running=1, n_queued=2)
TERMS = Terms(is_flock=False, limits=LIMITS, max_tokens=100, timeout_s=60.0, model="tiny")


class SlowEngine:
    """Says one word a second, for ever; fails where it is told to. Knows how many questions were taken back."""

    def __init__(self, n_words: float = 3, error: Exception | None = None) -> None:
        self.n_words = n_words
        self.error = error
        self.n_taken_back = 0
        self.asked: list[Generate] = []

    @asynccontextmanager
    async def call(self, request):
        self.asked.append(request)
        try:
            async with aclosing(self._replies(request)) as replies:
                yield replies
        except trio.Cancelled:
            self.n_taken_back += 1
            raise
        except GeneratorExit:
            self.n_taken_back += 1
            raise

    async def _replies(self, request):
        n = 0
        while n < self.n_words:
            await trio.sleep(1)
            n += 1
            yield Token(id=0, text=f"word{n} ")
        if self.error:
            raise self.error
        yield Finished(id=0, reason="stop", n_prompt_tokens=5, n_tokens=n, first_token_s=1.0, total_s=float(n))

    async def one(self, request):
        assert isinstance(request, Load)
        return Loaded(id=0, card=TINY, load_s=0.0)


async def answered(bob, info, request=ASK, **options):
    async with RemoteEngine(bob.network, info, **{"timeout_s": 100.0} | options).call(request) as replies:
        return [reply async for reply in replies]


def text_of(replies) -> str:
    return "".join(reply.text for reply in replies if isinstance(reply, Token))
