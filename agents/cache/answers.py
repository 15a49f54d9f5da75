"""The cache before an engine: a question that was answered already is answered at once, and says so.

    engine = cache.before(SeatedEngine(node.engine, node.desk, model), model)
    async with engine.call(request) as replies: ...

`engine` is an engine like any other. Only questions whose answer is repeatable are kept: greedy ones, and those whose
caller says that the seed is meant (`is_seeded`).
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import trio

from agents.cache.key import OWN, Key, key_of
from agents.cache.stores import Answers, Given
from agents.engine.messages import Embed, Embedded, Finished, Generate, Reply, Request, Token
from agents.errors import AgentError
from agents.models import card_of
from storage.catalog.models import ModelRow
from storage.cid import Cid
from storage.errors import InvalidCid

PIECE_CHARS: Final = 2048


class Engine(Protocol):
    """What stands behind a cache, and what it looks like."""

    def call(self, request: Request) -> AbstractAsyncContextManager[AsyncIterator[Reply]]:
        """Send a request and read its replies. Raises: AgentError."""
        ...

    async def one(self, request: Request) -> Reply:
        """Send a request and return its final reply. Raises: AgentError."""
        ...


class Hit(NamedTuple):
    """An answer that was found; `distance` is None for one to the very same question."""

    given: Given
    distance: float | None


class AnswerCache:
    """Given answers, in the stores given, the fastest first; without stores it keeps nothing.

    Args:
        max_distance: the greatest cosine distance at which a similar question gets the answer of another; 0 for none.
        unix_s: the wall clock.
    """

    def __init__(self, stores: Sequence[Answers], *, max_distance: float, unix_s: Callable[[], float]) -> None:
        self._stores = stores
        self._max_distance = max_distance
        self._unix_s = unix_s

    @property
    def max_distance(self) -> float:
        """The threshold; 0 where only the same question counts."""
        return self._max_distance

    def before(self, engine: Engine, model: ModelRow, *, scope: str = OWN, is_seeded: bool = False) -> Engine:
        """An engine that answers from this cache where it can. `model` is the one that stands in `engine`."""
        if not self._stores:
            return engine
        return CachedEngine(self, engine, Cid.parse(card_of(model).fingerprint), scope, is_seeded=is_seeded)

    async def find(self, key: Key) -> Hit | None:
        """The answer to this very question."""
        return await trio.to_thread.run_sync(self._find, key)

    async def find_near(self, key: Key, vector: bytes) -> Hit | None:
        """The answer to the nearest question within the threshold, by what it means (`vector`)."""
        return await trio.to_thread.run_sync(self._find_near, key, vector)

    async def keep(self, key: Key, given: Given) -> None:
        """Keep an answer."""
        await trio.to_thread.run_sync(self._keep, key, given)

    def now(self) -> float:
        """The wall clock."""
        return self._unix_s()

    def _find(self, key: Key) -> Hit | None:
        now_s = self._unix_s()
        for place, store in enumerate(self._stores):
            given = store.get(key, now_s)
            if given is not None:
                for faster in self._stores[:place]:
                    faster.put(key, given, now_s)
                return Hit(given, None)
        return None

    def _find_near(self, key: Key, vector: bytes) -> Hit | None:
        now_s = self._unix_s()
        near = [given for store in self._stores for given in store.near(key, now_s)]
        return nearest(vector, near, self._max_distance)

    def _keep(self, key: Key, given: Given) -> None:
        for store in self._stores:
            store.put(key, given, self._unix_s())


class CachedEngine:
    """An engine with a cache before it; made by `AnswerCache.before`."""

    def __init__(self, cache: AnswerCache, engine: Engine, base: Cid, scope: str, *, is_seeded: bool) -> None:
        self._cache = cache
        self._engine = engine
        self._base = base
        self._scope = scope
        self._is_seeded = is_seeded

    async def one(self, request: Request) -> Reply:
        """Nothing but questions is answered from the cache."""
        return await self._engine.one(request)

    @asynccontextmanager
    async def call(self, request: Request) -> AsyncIterator[AsyncIterator[Reply]]:
        """Answer from the cache, or ask the engine and remember. Raises: AgentError."""
        key = self._key(request)
        if key is None or not isinstance(request, Generate):
            async with self._engine.call(request) as replies:
                yield replies
            return
        began_s = trio.current_time()
        vector = None
        hit = await self._cache.find(key)
        if hit is None and (vector := await self._vector(key)) is not None:
            hit = await self._cache.find_near(key, vector)
        if hit is not None:
            async with aclosing(self._given(request, hit, began_s)) as given:
                yield given
            return
        async with self._engine.call(request) as replies, aclosing(self._noted(replies, key, vector)) as noted:
            yield noted

    def _key(self, request: Request) -> Key | None:
        """The key of a question whose answer is worth keeping; None for all else."""
        if not isinstance(request, Generate) or request.n_logprobs is not None:
            return None
        if request.temperature > 0 and not self._is_seeded:
            return None
        try:
            # Adapters stand in folders that are called by their manifests (`agents.adapters.shelf`).
            adapter = None if request.adapter is None else Cid.parse(Path(request.adapter).name)
        except InvalidCid:
            return None
        return key_of(request, self._base, adapter, self._scope)

    async def _vector(self, key: Key) -> bytes | None:
        """What the question means, where that is asked for and an encoder is here."""
        if not self._cache.max_distance or self._scope != OWN or not key.question:
            return None
        try:
            reply = await self._engine.one(Embed(texts=(key.question,)))
        except AgentError:
            return None
        return reply.vectors if isinstance(reply, Embedded) else None

    async def _given(self, request: Generate, hit: Hit, began_s: float) -> AsyncGenerator[Reply, None]:
        given = hit.given
        for at in range(0, len(given.text), PIECE_CHARS):
            await trio.lowlevel.checkpoint()
            yield Token(id=request.id, text=given.text[at : at + PIECE_CHARS])
        took_s = trio.current_time() - began_s
        yield Finished(
            id=request.id,
            reason=given.reason,
            n_prompt_tokens=given.n_prompt_tokens,
            n_tokens=given.n_tokens,
            first_token_s=took_s,
            total_s=took_s,
            n_cached_tokens=given.n_prompt_tokens,
            cache="exact" if hit.distance is None else "semantic",
            distance=hit.distance,
            threshold=None if hit.distance is None else self._cache.max_distance,
        )

    async def _noted(
        self, replies: AsyncIterator[Reply], key: Key, vector: bytes | None
    ) -> AsyncGenerator[Reply, None]:
        said: list[str] = []
        async for reply in replies:
            if isinstance(reply, Token):
                said.append(reply.text)
            elif isinstance(reply, Finished) and reply.reason != "cancelled":
                given = Given(
                    text="".join(said),
                    reason=reply.reason,
                    n_prompt_tokens=reply.n_prompt_tokens,
                    n_tokens=reply.n_tokens,
                    unix_s=self._cache.now(),
                    vector=vector,
                )
                await self._cache.keep(key, given)
            yield reply


def nearest(vector: bytes, given: Sequence[Given], max_distance: float) -> Hit | None:
    """The answer whose question is nearest by cosine distance, if it is within `max_distance`."""
    import numpy as np

    rows = [one for one in given if one.vector is not None and len(one.vector) == len(vector)]
    if not rows:
        return None
    wanted = np.frombuffer(vector, dtype="<f4")  # (width,)
    matrix = np.stack([np.frombuffer(one.vector or b"", dtype="<f4") for one in rows])  # (n_rows, width)
    distances = 1.0 - matrix @ wanted  # (n_rows,)
    distances[~np.isfinite(distances)] = np.inf  # a vector that is no number is near to nothing
    place = int(np.argmin(distances))
    distance = max(0.0, float(distances[place]))
    return Hit(rows[place], distance) if distance <= max_distance else None
