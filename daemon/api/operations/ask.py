"""One question, one answer: by the model of this node, or by a peer's."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from agents.chat.events import Adapter, ChatEvent, Loading
from daemon.api.operation import Operation, Params, Result
from daemon.api.operations.chat import MAX_QUESTION_CHARS, Wish

if TYPE_CHECKING:
    from agents.chat.answer import Engine, Settings
    from daemon.app import Node
    from storage.catalog.models import ModelRow
    from storage.cid import Cid

MAX_STOPS: Final = 16
USUAL_TOKENS: Final = 256


class Question(Params, frozen=True):
    """A question, who answers it, and how tokens are drawn."""

    text: Annotated[str, Meta(min_length=1, max_length=MAX_QUESTION_CHARS, description="The question; - reads stdin.")]
    on: Annotated[str, Meta(max_length=512, description="A peer that answers: its id, or what you call it.")] | None = (
        None
    )
    adapter: Wish = "none"
    model: Annotated[str, Meta(max_length=64, description="The model's name; by default the node's.")] | None = None
    system: Annotated[str, Meta(max_length=64 << 10, description="The system prompt.")] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 16, description="The longest answer.")] = USUAL_TOKENS
    temperature: Annotated[float, Meta(ge=0, le=10, description="0 always takes the likeliest token.")] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1, description="Among the likeliest tokens of this share.")] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 20, description="Among so many tokens; 0 is all.")] = 0
    min_p: Annotated[float, Meta(ge=0, le=1, description="None less likely than this share of the likeliest.")] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10, description="Above 1, what was said comes less.")] = 1.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1, description="The same seed, the same draws.")] | None = None
    stop: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...],
        Meta(max_length=MAX_STOPS, description="Texts that end the answer; commas between."),
    ] = ()
    is_record: Annotated[bool, Meta(description="Have a signed record made of the answer.")] = False
    timeout_s: Annotated[float, Meta(gt=0, le=3600, description="The longest time for the answer.")] | None = None


class Recorded(Result, frozen=True, tag="recorded", tag_field="type"):
    """The signed record of the answer: `covey record verify CID` checks it."""

    record: str


async def say(node: "Node", params: Question) -> AsyncIterator[ChatEvent | Recorded]:
    """Answer one question; closing the stream stops the answer."""
    from agents.chat.answer import answer
    from agents.chat.conversation import DEFAULT_SYSTEM, Conversation
    from agents.models import card_of
    from daemon.answering import is_loaded
    from storage.cid import Cid

    records: list[Cid] = []
    settings = _settings(node, params)
    system = node.config.chat.system or DEFAULT_SYSTEM if params.system is None else params.system
    engine, model, wanted = await _answerer(node, params, settings, records)
    if params.on is None and not is_loaded(node, model):
        yield Loading(model=model.name)
    events = answer(
        Conversation(system=system, wish=params.adapter),
        engine,
        params.text,
        wanted,
        settings=settings,
        context_tokens=card_of(model).context_tokens,
    )
    async with aclosing(events):
        async for event in events:
            yield event
    for cid in records:
        yield Recorded(record=str(cid))


def _settings(node: "Node", params: Question) -> "Settings":
    import secrets

    from agents.chat.answer import Settings

    seed = params.seed
    if seed is None:
        seed = 0 if params.temperature == 0 else secrets.randbits(62)
    return Settings(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        seed=seed,
        stop=params.stop,
        timeout_s=params.timeout_s or node.config.engine.answer_timeout_s,
    )


async def _answerer(
    node: "Node", params: Question, settings: "Settings", records: "list[Cid]"
) -> "tuple[Engine, ModelRow, Adapter | None]":
    """The engine, the model and the adapter that answer. Raises: AgentError."""
    import trio

    from daemon.answering import engine_before, who_answers
    from daemon.asking import engine_of, recorded_here, remote_model

    if params.on is not None:
        remote = await remote_model(node, params.on)
        wanted = remote.resolve(params.adapter)
        return engine_of(node, remote, settings.timeout_s, records if params.is_record else None), remote.row, wanted
    model, wanted = await trio.to_thread.run_sync(who_answers, node, params.model, params.adapter)
    engine = engine_before(node.answers, node.engine, node.desk, model, is_seeded=params.seed is not None)
    return recorded_here(node, engine, model, wanted, records) if params.is_record else engine, model, wanted


OPERATIONS = (
    Operation(
        noun="ask",
        verb="say",
        summary="Ask one question; the answer streams.",
        params=Question,
        result=ChatEvent | Recorded,
        handler=say,
        is_stream=True,
        arguments=("text",),
        command=None,
    ),
)
