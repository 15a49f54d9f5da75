"""Answer the questions of peers that may ask, within their quotas, with the adapters that they may see."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, Protocol

import trio

from agents.adapters.announce import Turnstile
from agents.adapters.ports import Ports
from agents.ask.convert import request_of
from agents.ask.records import Said, store_record
from agents.chat.answer import Engine, error_text
from agents.chat.events import Adapter
from agents.chat.ready import ready_adapters, resolve
from agents.engine import messages
from agents.errors import (
    AgentError,
    BadAdapter,
    EngineDied,
    EngineFailed,
    EngineMissing,
    TooLong,
    UnknownName,
    WrongBase,
)
from agents.models import Desk, card_of, find_model
from protocols.ask import wire
from protocols.ask.quota import Denied, Limits, Quota
from protocols.ask.shell import Answerer, Refusal, answer
from protocols.ask.wire import Accepted, Answered, Ask, Offer, OfferedAdapter, Piece, Reply, SignedRecord
from protocols.net import Stream
from storage.catalog.models import ModelRow
from storage.cid import Cid
from storage.keys import PeerId

TRUST_KIND: Final = "ask"
BYTES_PER_TOKEN: Final = 3  # what a prompt is counted as before the engine has read it
ENGINE_RETRY_S: Final = 10.0
STREAM_EVERY_S: Final = 0.5
STREAM_BURST: Final = 60  # far above what quotas let through


class Terms(NamedTuple):
    """To whom this node answers, and how much. `is_flock`: to every peer that is trusted with anything."""

    is_flock: bool
    limits: Limits
    max_tokens: int
    timeout_s: float
    model: str  # the usual one


class EngineFor(Protocol):
    """Gives the engine that answers a peer, with the model in it; with a cache before it, or not."""

    def __call__(self, peer: PeerId, model: ModelRow) -> Engine:
        """The engine."""


@dataclass
class _Job:
    """One question on its way."""

    n_prompt_tokens: int
    has_begun: bool = False
    said: list[str] = field(default_factory=list)
    finished: messages.Finished | None = None

    @property
    def n_cost(self) -> int:
        """What counts for the quota: nothing before the engine has begun; each piece as a token where it broke off."""
        if self.finished is not None:
            return self.finished.n_prompt_tokens + self.finished.n_tokens
        return self.n_prompt_tokens + len(self.said) if self.has_begun else 0


class Host:
    """Answers peers. Their questions run `limits.n_running` at a time, in the order in which they came."""

    def __init__(self, ports: Ports, desk: Desk, engine_for: EngineFor, terms: Terms) -> None:
        self._ports = ports
        self._desk = desk
        self._engine_for = engine_for
        self._terms = terms
        self._quota = Quota(terms.limits)
        self._places = trio.Semaphore(terms.limits.n_running)
        self._n_waiting = 0

    @property
    def answerer(self) -> Answerer:
        """For the protocol."""
        return Answerer(self.offer, self.answer, lambda: self._n_waiting, self._terms.timeout_s)

    async def offer(self, peer: PeerId) -> Offer:
        """What this peer may ask. Raises: Refusal."""
        await self._admit(peer)
        model = await self._model(None)
        card = card_of(model)
        shown = await trio.to_thread.run_sync(
            lambda: ready_adapters(self._ports.catalog, model, self._visible_to(peer))[: wire.MAX_OFFERED]
        )
        return Offer(
            model=model.name,
            base=Cid.parse(card.base),
            architecture=card.architecture[:128],
            n_params=card.n_params,
            context_tokens=card.context_tokens,
            max_tokens=self._terms.max_tokens,
            adapters=tuple(
                OfferedAdapter(name=one.name, version=one.version, manifest=Cid.parse(one.cid)) for one in shown
            ),
        )

    async def answer(self, peer: PeerId, question: Ask) -> AsyncGenerator[Reply, None]:
        """Answer a question. Close the generator to stop. Raises: Refusal."""
        await self._admit(peer)
        if question.options.max_tokens > self._terms.max_tokens:
            asked, most = question.options.max_tokens, self._terms.max_tokens
            raise Refusal("invalid_option", f"max_tokens is {asked:,}, and this node gives at most {most:,}")
        n_prompt = sum(len(turn.content.encode()) for turn in question.turns) // BYTES_PER_TOKEN
        n_most = n_prompt + question.options.max_tokens
        ticket = self._quota.admit(peer, n_most, trio.current_time())
        if isinstance(ticket, Denied):
            self._ports.emit("question_refused", by=peer, code=ticket.code)
            raise Refusal(ticket.code, ticket.text, ticket.retry_s)
        job = _Job(n_prompt)
        try:
            model = await self._model(question.base)
            adapter = await self._adapter(peer, model, question.adapter)
            accepted = Accepted(
                model=model.name,
                base=Cid.parse(card_of(model).base),
                adapter=Cid.parse(adapter.cid) if adapter else None,
                n_ahead=self._n_waiting,
            )
            yield accepted
            async with AsyncExitStack() as stack:
                await self._wait_for_place(stack)
                job.has_begun = True
                engine = self._engine_for(peer, model)
                request = request_of(question.turns, question.options, adapter.folder if adapter else None)
                said = await stack.enter_async_context(aclosing(self._said(engine, request, job)))
                async for piece in said:
                    yield piece
            yield await self._answered(peer, question, accepted, job)
        except AgentError as error:
            raise self._refusal(error) from None
        finally:
            self._quota.settle(ticket, job.n_cost, trio.current_time())

    async def _said(self, engine: Engine, request: messages.Generate, job: _Job) -> AsyncGenerator[Piece, None]:
        async with engine.call(request) as replies:
            async for reply in replies:
                if isinstance(reply, messages.Token):
                    job.said.append(reply.text)
                    for text in wire.pieces(reply.text):
                        yield Piece(text=text)
                elif isinstance(reply, messages.Finished):
                    job.finished = reply

    async def _answered(self, peer: PeerId, question: Ask, accepted: Accepted, job: _Job) -> Answered:
        """The last word, with a record where one is wanted. Raises: Refusal."""
        finished = job.finished
        if finished is None or finished.reason == "cancelled":
            raise Refusal("engine_failed", "the engine stopped before the answer was complete", ENGINE_RETRY_S)
        record = None
        if question.wants_record:
            said = Said(
                model=accepted.model,
                base=accepted.base,
                adapter=accepted.adapter,
                options=question.options,
                reason=finished.reason,
                n_prompt_tokens=finished.n_prompt_tokens,
                n_tokens=finished.n_tokens,
            )
            store = partial(store_record, self._ports, said, question.turns, "".join(job.said), peer, is_kept=False)
            signed = await self._ports.exchange.work(store)
            record = SignedRecord(entry=signed.entry.block, body=signed.entry.body_block)
        self._ports.emit(
            "question_answered",
            by=peer,
            model=accepted.model,
            adapter=str(accepted.adapter) if accepted.adapter else None,
            n_prompt_tokens=finished.n_prompt_tokens,
            n_tokens=finished.n_tokens,
        )
        return Answered(
            reason=finished.reason,
            n_prompt_tokens=finished.n_prompt_tokens,
            n_tokens=finished.n_tokens,
            cache=finished.cache,
            record=record,
        )

    async def _wait_for_place(self, stack: AsyncExitStack) -> None:
        self._n_waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._n_waiting -= 1
        stack.callback(self._places.release)

    async def _admit(self, peer: PeerId) -> None:
        """Raises: Refusal, where this peer may not ask."""
        peers = self._ports.catalog.peers
        is_flock = self._terms.is_flock
        may = await trio.to_thread.run_sync(
            lambda: peers.is_trusted(peer, TRUST_KIND) or (is_flock and peer in peers.flock())
        )
        if not may:
            self._ports.emit("question_refused", by=peer, code="untrusted")
            raise Refusal("untrusted", f"its owner allows that with: covey peer trust {peer} --kinds ask")

    async def _model(self, base: Cid | None) -> ModelRow:
        """The model that answers: the usual one, or the one in the engine where only that fits. Raises: Refusal."""
        catalog = self._ports.catalog
        try:
            usual = await trio.to_thread.run_sync(find_model, catalog, None, self._terms.model)
        except AgentError:
            raise Refusal("no_model", "this node has no model to answer with") from None
        rows = await trio.to_thread.run_sync(catalog.models.list)
        loaded = [row for row in rows if self._desk.holds(row)]
        for row in (usual, *loaded):
            if base is None or str(base) in row.accepts:
                return row
        raise Refusal("wrong_base", f"this node answers with {usual.name}, whose fingerprint is another one")

    async def _adapter(self, peer: PeerId, model: ModelRow, wish: str) -> Adapter | None:
        """Raises: Refusal, with the same words for what is not here and for what this peer may not see."""
        if wish == wire.NO_ADAPTER:
            return None
        try:
            return await trio.to_thread.run_sync(resolve, self._ports.catalog, model, wish, self._visible_to(peer))
        except UnknownName:
            raise Refusal("unknown_name", f"this node has no adapter {wish[:80]!r} that you may use") from None

    def _visible_to(self, peer: PeerId) -> Callable[[Cid], bool]:
        roots, catalog = self._ports.roots, self._ports.catalog
        is_flock = peer in catalog.peers.flock()
        return lambda manifest: roots.may_see(peer, manifest, is_flock=is_flock)

    def _refusal(self, error: AgentError) -> Refusal:
        """What a peer is told of a failure here: never a path of this machine."""
        text = error_text(error)
        if isinstance(error, EngineDied | EngineMissing):
            return Refusal("engine_died", "the engine of this node failed; it is started again", ENGINE_RETRY_S)
        if isinstance(error, TooLong | BadAdapter | WrongBase | EngineFailed) and "/" not in text:
            return Refusal(error.code, text)
        return Refusal("engine_failed", "the engine of this node refused the question")


def serve(host: Host, ports: Ports) -> None:
    """Answer the protocol from now on. The streams of who floods it just end, before anything is read or looked up."""
    turnstile = Turnstile(STREAM_EVERY_S, STREAM_BURST)

    async def handle(stream: Stream) -> None:
        if turnstile.admits(stream.peer, trio.current_time()):
            await answer(stream, host.answerer)

    ports.network.serve(wire.PROTOCOL, handle)
