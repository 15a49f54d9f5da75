"""An engine that has the right model in it whenever it is asked, and only then: what a cache answers needs none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agents.cache.answers import Engine
from agents.engine.messages import Reply, Request
from agents.models import Desk
from storage.catalog.models import ModelRow


class SeatedEngine:
    """`engine`, with `model` held in it for the length of each request."""

    def __init__(self, engine: Engine, desk: Desk, model: ModelRow) -> None:
        self._engine = engine
        self._desk = desk
        self._model = model

    async def one(self, request: Request) -> Reply:
        """Send a request and return its final reply. Raises: AgentError."""
        async with self._desk.using(self._model):
            return await self._engine.one(request)

    @asynccontextmanager
    async def call(self, request: Request) -> AsyncIterator[AsyncIterator[Reply]]:
        """Send a request and read its replies. Raises: AgentError."""
        async with self._desk.using(self._model), self._engine.call(request) as replies:
            yield replies
