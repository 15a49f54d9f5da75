"""The shell of a chat's turn: switch if the policy says so, ask the engine, report each event as it happens."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import msgspec
import trio

from agents.chat.conversation import Conversation, Passage, Prompt
from agents.chat.events import Adapter, ChatEvent, Cited, Failed, Finished, Refused, Switched, Token
from agents.engine import messages
from agents.errors import AgentError, EngineDied, EngineFailed

DEFAULT_TIMEOUT_S: Final = 120.0

Emit = Callable[[ChatEvent], Awaitable[None]]


class Replies(Protocol):
    """The replies of one request, ended by its final one."""

    def __aiter__(self) -> "Replies": ...
    async def __anext__(self) -> messages.Reply: ...


class Engine(Protocol):
    """What a chat needs of the engine. Leaving `call` early cancels the request and frees the model."""

    def call(self, request: messages.Request) -> AbstractAsyncContextManager[Replies]:
        """Send a request; its `id` is the engine's to choose."""
        ...

    async def one(self, request: messages.Request) -> messages.Reply:
        """Send a request that has one reply. Raises: AgentError."""
        ...


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a chat samples, and how long an answer may take, the switch of adapter included."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.1
    seed: int = 0
    timeout_s: float = DEFAULT_TIMEOUT_S


async def answer(
    conversation: Conversation,
    engine: Engine,
    question: str,
    wanted: Adapter | None,
    emit: Emit,
    *,
    settings: Settings,
    context_tokens: int,
    find: Callable[[str], Awaitable[Sequence[Passage]]] | None = None,
) -> None:
    """Answer `question` with the adapter that the policy resolved to (`wanted`), within `settings.timeout_s`.

    Whatever happens, the engine is free and the conversation ready for the next turn when this returns or is
    cancelled: a cancelled or late answer keeps what was said of it, a failed one is forgotten.
    """
    # Small models have small contexts: half of it is always left for the prompt.
    reply_tokens = max(1, min(settings.max_tokens, context_tokens // 2))
    failed: Failed | None = None
    try:
        with trio.move_on_after(settings.timeout_s) as limit:
            await _switch(conversation, engine, wanted, emit)
            passages = await find(question) if find else ()
            prompt = conversation.begin(
                question, context_tokens=context_tokens, reply_tokens=reply_tokens, passages=passages
            )
            await _generate(conversation, engine, prompt, emit, settings, reply_tokens)
        if limit.cancelled_caught:
            failed = Failed(code="timed_out", text=_too_slow(settings.timeout_s))
    except AgentError as error:
        conversation.abandon()
        failed = Failed(code=error.code, text=error_text(error))
    finally:
        conversation.interrupt()
    if failed:
        await emit(failed)


async def _switch(conversation: Conversation, engine: Engine, wanted: Adapter | None, emit: Emit) -> None:
    target, offered = conversation.choose(wanted)
    if offered:
        await emit(offered)
    was = conversation.answering
    if target == was:
        return
    started_s = trio.current_time()
    if target is not None:
        try:
            await _one(engine, messages.Stage(id=0, adapter=target.folder))
        except EngineDied:
            raise
        except AgentError as error:
            conversation.refuse(target)
            await emit(Refused(adapter=target, staying=was, reason=error_text(error)))
            return
    conversation.switched(target)
    await emit(Switched(now=target, was=was, swap_s=trio.current_time() - started_s))


async def _one(engine: Engine, request: messages.Request) -> messages.Reply:
    reply = await engine.one(request)
    if isinstance(reply, messages.Failed):
        raise engine_error(reply)
    return reply


async def _generate(
    conversation: Conversation,
    engine: Engine,
    prompt: Prompt,
    emit: Emit,
    settings: Settings,
    reply_tokens: int,
) -> None:
    request = messages.Generate(
        id=0,
        turns=prompt.turns,
        adapter=conversation.answering.folder if conversation.answering else None,
        max_tokens=reply_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
    )
    finished: Finished | None = None
    async with engine.call(request) as replies:
        async for reply in replies:
            match reply:
                case messages.Token(text=text):
                    conversation.heard(text)
                    await emit(Token(text=text))
                case messages.Finished():
                    finished = _finished(reply, prompt)
                case messages.Failed():
                    raise engine_error(reply)
    if finished is None:
        raise EngineFailed("the engine stopped without saying that the answer is complete: ask again")
    sources = conversation.finish(finished)
    if sources:
        await emit(Cited(sources=sources))
    await emit(finished)


def _finished(reply: messages.Finished, prompt: Prompt) -> Finished:
    return Finished(
        reason=reply.reason,
        n_prompt_tokens=reply.n_prompt_tokens,
        n_tokens=reply.n_tokens,
        first_token_s=reply.first_token_s,
        total_s=reply.total_s,
        n_forgotten_turns=prompt.n_forgotten_turns,
    )


def engine_error(failed: messages.Failed) -> AgentError:
    """The error that a `Failed` of the engine stands for."""
    kinds = {kind.code: kind for kind in AgentError.__subclasses__()}
    return kinds.get(failed.code, EngineFailed)(failed.text)


def error_text(error: AgentError) -> str:
    """What the user reads of an error: its own text, or else its class's docstring."""
    return " ".join((str(error) or inspect.getdoc(type(error)) or type(error).__name__).split())


def _too_slow(timeout_s: float) -> str:
    return (
        f"no whole answer within {timeout_s:g} s: it was stopped, and the model is free. "
        "Raise --timeout-s, or lower --max-tokens"
    )
