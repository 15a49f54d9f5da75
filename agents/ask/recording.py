"""An engine whose answers are put on record, signed by this node."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

from agents.chat.answer import Engine
from agents.engine.messages import Finished, Generate, Reply, Request, Token

Keep = Callable[[Generate, str, Finished], Awaitable[None]]


class RecordedEngine:
    """`engine`, with `keep` called for each complete answer before its end is told."""

    def __init__(self, engine: Engine, keep: Keep) -> None:
        self._engine = engine
        self._keep = keep

    async def one(self, request: Request) -> Reply:
        """Nothing but answers is put on record."""
        return await self._engine.one(request)

    @asynccontextmanager
    async def call(self, request: Request) -> AsyncIterator[AsyncIterator[Reply]]:
        """Ask, and put the answer on record. Raises: AgentError."""
        async with self._engine.call(request) as replies:
            if not isinstance(request, Generate):
                yield replies
                return
            async with aclosing(self._recorded(request, replies)) as recorded:
                yield recorded

    async def _recorded(self, request: Generate, replies: AsyncIterator[Reply]) -> AsyncGenerator[Reply, None]:
        said: list[str] = []
        async for reply in replies:
            if isinstance(reply, Token):
                said.append(reply.text)
            elif isinstance(reply, Finished) and reply.reason != "cancelled":
                await self._keep(request, "".join(said), reply)
            yield reply
