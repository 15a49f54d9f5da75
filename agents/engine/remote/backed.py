"""The engine of a node that has a backend: chats of the backend's model go there, all else to the worker as ever."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio

from agents.engine.client import Engine
from agents.engine.messages import Generate, Load, Reply, Request, Stage, Train
from agents.engine.remote.server import Server, ServerSettings, open_server
from agents.errors import BackendRefused


class BackedEngine(Engine):
    """An engine that sends to `server` what comes after a `Load` of `folder`, which stands for the server's model."""

    def __init__(self, nursery: trio.Nursery, server: Server, folder: str, **options: Any) -> None:
        super().__init__(nursery, **options)
        self._server = server
        self._folder = folder
        self._is_served = False

    @property
    def server(self) -> Server:
        """The backend."""
        return self._server

    @asynccontextmanager
    async def call(self, request: Request) -> AsyncIterator[AsyncIterator[Reply]]:
        """As `Engine.call`, of the server or of the worker."""
        async with self._chosen(request) as replies:
            yield replies

    def _chosen(self, request: Request) -> AbstractAsyncContextManager[AsyncIterator[Reply]]:
        if isinstance(request, Load):
            self._is_served = request.folder == self._folder
        if self._is_served and isinstance(request, Train):
            raise BackendRefused("the backend's model cannot be trained here: name a model of this node with --model")
        if self._is_served and isinstance(request, Load | Stage | Generate):
            return self._server.call(request)
        return super().call(request)


@asynccontextmanager
async def open_backed_engine(settings: ServerSettings, folder: str, **options: Any) -> AsyncIterator[BackedEngine]:
    """An engine with a backend, for the length of the block. Options: see `Engine`. Raises: BackendRefused."""
    async with open_server(settings) as server, trio.open_nursery() as nursery:
        yield BackedEngine(nursery, server, folder, **options)
        nursery.cancel_scope.cancel()
