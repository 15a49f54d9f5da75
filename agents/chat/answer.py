"""The shell of a chat's turn: switch if the policy says so, ask the engine, report each event as it happens."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from typing import Final, NamedTuple, Protocol

import msgspec
import trio

from agents.chat.conversation import Conversation, Prompt
from agents.chat.events import Adapter, ChatEvent, Failed, Finished, Refused, Switched, Token
from agents.engine import messages
from agents.errors import AgentError, BadAdapter, EngineDied, EngineFailed
from agents.retrieval.index import Passage

DEFAULT_TIMEOUT_S: Final = 300.0

Find = Callable[[str], Awaitable[Sequence[Passage]]]


class Engine(Protocol):
    """What a chat needs of the engine (`agents.engine.client.Engine` has it). Leaving a call early cancels it."""

    def call(self, request: messages.Request) -> AbstractAsyncContextManager[AsyncIterator[messages.Reply]]:
        """Send a request and read its replies. Raises: AgentError."""
        ...

    async def one(self, request: messages.Request) -> messages.Reply:
        """Send a request and return its final reply. Raises: AgentError."""
        ...


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a chat samples, and how long an answer may take, the switch of adapter included."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    seed: int = 0
    stop: tuple[str, ...] = ()
    timeout_s: float = DEFAULT_TIMEOUT_S


class _Turn(NamedTuple):
    """One question on its way. A generator must not yield inside a cancel scope: each wait has its own deadline."""

    conversation: Conversation
    engine: Engine
    settings: Settings
    deadline_s: float


async def answer(
    conversation: Conversation,
    engine: Engine,
    question: str,
    wanted: Adapter | None,
    *,
    settings: Settings,
    context_tokens: int,
    find: Find | None = None,
) -> AsyncGenerator[ChatEvent, None]:
    """Answer `question` with the adapter that the policy resolved to (`wanted`), within `settings.timeout_s`.

    Close the generator to stop the answer. Whatever happens, the engine is free and the conversation ready for the
    next turn afterwards: a stopped or late answer keeps what was said of it, a failed one is forgotten.
    """
    turn = _Turn(conversation, engine, settings, trio.current_time() + settings.timeout_s)
    try:
        with trio.fail_at(turn.deadline_s):
            news = await _switch(conversation, engine, wanted)
        for event in news:
            yield event
        with trio.fail_at(turn.deadline_s):
            passages = await find(question) if find else ()
        async with aclosing(_said(turn, question, passages, context_tokens)) as said:
            async for event in said:
                yield event
    except trio.TooSlowError:
        conversation.interrupt()
        yield Failed(code="timed_out", text=_too_slow(settings.timeout_s))
    except AgentError as error:
        conversation.abandon()
        yield Failed(code=error.code, text=error_text(error))
    finally:
        conversation.interrupt()


async def _said(
    turn: _Turn, question: str, passages: Sequence[Passage], context_tokens: int
) -> AsyncGenerator[ChatEvent, None]:
    """What the engine says to the question, to its end."""
    conversation = turn.conversation
    # Small models have small contexts: half of it is always left for the prompt.
    reply_tokens = max(1, min(turn.settings.max_tokens, context_tokens // 2))
    prompt = conversation.begin(question, context_tokens=context_tokens, reply_tokens=reply_tokens, passages=passages)
    finished: Finished | None = None
    async with AsyncExitStack() as stack:
        with trio.fail_at(turn.deadline_s):
            request = _request(conversation, prompt, turn.settings, reply_tokens)
            replies = await stack.enter_async_context(turn.engine.call(request))
        while finished is None:
            with trio.fail_at(turn.deadline_s):
                reply = await anext(replies, None)
            if isinstance(reply, messages.Token):
                conversation.heard(reply.text)
                yield Token(text=reply.text)
            else:
                finished = _finished(reply, prompt)
    cited = conversation.finish(finished)
    if cited:
        yield cited
    yield finished


async def _switch(conversation: Conversation, engine: Engine, wanted: Adapter | None) -> list[ChatEvent]:
    """Make the adapter of this turn ready; return what the user is told about it.

    Raises: BadAdapter for one that cannot be used, where no other may answer in its place; EngineDied.
    """
    target, offered = conversation.choose(wanted)
    news: list[ChatEvent] = [offered] if offered else []
    was = conversation.answering
    if target == was:
        return news
    started_s = trio.current_time()
    if target is not None:
        try:
            await engine.one(messages.Stage(id=0, adapter=target.folder))
        except EngineDied:
            raise
        except AgentError as error:
            if not conversation.may_stay:
                raise BadAdapter(f"{target.name} cannot be used: {error_text(error)}") from None
            conversation.refuse(target)
            return [*news, Refused(adapter=target, staying=was, reason=error_text(error))]
    conversation.switched(target)
    return [*news, Switched(now=target, was=was, swap_s=trio.current_time() - started_s)]


def _request(conversation: Conversation, prompt: Prompt, settings: Settings, reply_tokens: int) -> messages.Generate:
    return messages.Generate(
        id=0,
        turns=prompt.turns,
        adapter=conversation.answering.folder if conversation.answering else None,
        max_tokens=reply_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
        stop=settings.stop,
    )


def _finished(reply: messages.Reply | None, prompt: Prompt) -> Finished:
    if not isinstance(reply, messages.Finished):
        raise EngineFailed("the engine stopped without saying that the answer is complete: ask again")
    return Finished(
        reason=reply.reason,
        n_prompt_tokens=reply.n_prompt_tokens,
        n_tokens=reply.n_tokens,
        first_token_s=reply.first_token_s,
        total_s=reply.total_s,
        n_forgotten_turns=prompt.n_forgotten_turns,
        cache=reply.cache,
        distance=reply.distance,
        threshold=reply.threshold,
    )


def error_text(error: AgentError) -> str:
    """What the user reads of an error: its own text, or else its class's docstring."""
    return " ".join((str(error) or inspect.getdoc(type(error)) or type(error).__name__).split())


def _too_slow(timeout_s: float) -> str:
    return (
        f"no whole answer within {timeout_s:g} s: it was stopped, and the model is free. "
        "Raise --timeout-s, or lower --max-tokens"
    )
