"""Chats: they live in the daemon, so that a terminal may go and the model be shared. `covey chat` is their terminal."""

import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from agents.chat.events import Adapter, ChatEvent, Loading, Switched
from agents.retrieval.events import Loaded, LoadEvent, Read, Skipped
from daemon.api.operation import Done, Operation, Params, Progress, Result
from daemon.errors import Unfit

if TYPE_CHECKING:
    from agents.chat.answer import Engine
    from agents.chat.sessions import Chat
    from agents.retrieval.index import Passage
    from daemon.app import Node

MAX_QUESTION_CHARS: Final = 1 << 20
MAX_INDEXES: Final = 8
N_PASSAGES: Final = 4

Wish = Annotated[
    str, Meta(max_length=256, description="latest, none, NAME, NAME@VERSION, a CID, or best:METRIC:min or :max.")
]
ChatId = Annotated[str, Meta(max_length=64, description="What chat/open gave.")]


class Open(Params, frozen=True):
    """How to chat. With `on`, a peer answers; model and adapters are its own then."""

    adapter: Wish = "latest"
    on: Annotated[str, Meta(max_length=512, description="A peer that answers: its id, or its name here.")] | None = None
    model: Annotated[str, Meta(max_length=64, description="The model's name; by default the node's.")] | None = None
    system: Annotated[str, Meta(max_length=64 << 10, description="The system prompt.")] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20, description="The longest answer.")] | None = None
    temperature: Annotated[float, Meta(ge=0, le=10, description="0 always takes the likeliest token.")] = 0.0
    timeout_s: Annotated[float, Meta(gt=0, le=86_400, description="The longest time for an answer.")] | None = None


class OfChat(Params, frozen=True):
    """Which chat."""

    chat: ChatId


class Say(OfChat, frozen=True):
    """A message."""

    text: Annotated[str, Meta(min_length=1, max_length=MAX_QUESTION_CHARS)]


class Use(OfChat, frozen=True):
    """Who shall answer from the next turn on."""

    adapter: Wish


class Load(OfChat, frozen=True):
    """A folder or file to answer from."""

    path: Annotated[str, Meta(min_length=1, max_length=4096, extra={"path": True})]


class IndexOf(Result, frozen=True):
    """Files that a chat answers from."""

    name: str
    root: str
    n_documents: int
    n_chunks: int


class ChatStatus(Result, frozen=True):
    """How a chat is. `answering` answered last, `next` will answer the next turn unless the chat asks first."""

    chat: str
    model: str
    n_params: int
    context_tokens: int
    policy: str
    answering: Adapter | None
    next: Adapter | None
    on_new_adapter: str
    n_turns: int
    indexes: list[IndexOf]


class AdaptersOf(Result, frozen=True):
    """The adapters that can answer in a chat, the newest first."""

    adapters: list[Adapter]


class Arrived(Result, frozen=True, tag="arrived", tag_field="type"):
    """The policy of the chat now resolves to `adapter` (None: the base model)."""

    adapter: Adapter | None


async def open_chat(node: "Node", params: Open) -> ChatStatus:
    """Open a chat; the model is loaded by the first answer."""
    import trio

    from agents.chat.answer import Settings
    from agents.chat.conversation import DEFAULT_SYSTEM, Conversation
    from agents.chat.sessions import Chat
    from daemon.answering import who_answers

    remote = None
    if params.on is not None:
        from daemon.asking import remote_model

        remote = await remote_model(node, params.on)
        model = remote.row
        remote.resolve(params.adapter)
    else:
        model, _ = await trio.to_thread.run_sync(who_answers, node, params.model, params.adapter)
    settings = node.config.chat
    system = settings.system or DEFAULT_SYSTEM if params.system is None else params.system
    chat = Chat(
        key=secrets.token_hex(8),
        model=model,
        conversation=Conversation(system=system, wish=params.adapter, asks=settings.on_new_adapter != "switch"),
        settings=Settings(
            max_tokens=params.max_tokens or settings.max_tokens,
            temperature=params.temperature,
            timeout_s=params.timeout_s or node.config.engine.answer_timeout_s,
        ),
        on_new_adapter=settings.on_new_adapter,
        remote=remote,
    )
    node.chats.add(chat.key, chat, trio.current_time())
    return await _status(node, chat)


async def say(node: "Node", params: Say) -> AsyncIterator[ChatEvent]:
    """Answer a message; closing the stream stops the answer."""
    from agents.chat.answer import answer
    from agents.models import card_of
    from agents.retrieval.load import search

    chat = _chat(node, params)

    async def find(question: str) -> "list[Passage]":
        return await search(list(chat.indexes.values()), node.engine, question, N_PASSAGES)

    async with _alone(chat):
        events = answer(
            chat.conversation,
            _engine(node, chat),
            params.text,
            await _wanted_now(node, chat),
            settings=chat.settings,
            context_tokens=card_of(chat.model).context_tokens,
            find=find if chat.indexes else None,
        )
        if not _is_loaded(node, chat):
            yield Loading(model=chat.model.name)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Switched):
                    _note_switch(node, event)
                yield event


def _engine(node: "Node", chat: "Chat") -> "Engine":
    """Who answers: this node's engine, with the cache before it, or a peer."""
    if chat.remote is None:
        from daemon.answering import engine_before

        return engine_before(node.answers, node.engine, node.desk, chat.model)
    from daemon.asking import engine_of

    return engine_of(node, chat.remote, chat.settings.timeout_s)


def _note_switch(node: "Node", event: Switched) -> None:
    now = event.now
    named = {"name": now.name, "version": now.version, "manifest": now.cid} if now else {"name": "base"}
    node.events.note("adapter_switched", {**named, "swap_s": round(event.swap_s, 4)})


async def use(node: "Node", params: Use) -> ChatStatus:
    """Follow another policy from the next turn on. Raises: UnknownName."""
    import trio

    from daemon.answering import resolve_wish

    chat = _chat(node, params)
    if chat.remote is not None:
        await _refresh(node, chat)
        chat.remote.resolve(params.adapter)
    else:
        await trio.to_thread.run_sync(resolve_wish, node, chat.model, params.adapter)
    chat.conversation.use(params.adapter)
    return await _status(node, chat)


async def agree(node: "Node", params: OfChat) -> ChatStatus:
    """Switch at the next turn to what the policy resolves to."""
    chat = _chat(node, params)
    chat.conversation.agree()
    return await _status(node, chat)


async def clear(node: "Node", params: OfChat) -> Done:
    """Forget what was said."""
    _chat(node, params).conversation.clear()
    return Done(text="forgotten: the next message begins a new conversation")


async def load(node: "Node", params: Load) -> AsyncIterator[Progress | Skipped | Loaded]:
    """Index files and answer from them in this chat; files that did not change are not embedded again."""
    import trio

    from agents.retrieval.index import Index
    from agents.retrieval.load import load as load_index

    chat = _chat(node, params)
    root = Path(params.path).resolve()
    async with _alone(chat):
        index = chat.indexes.get(str(root))
        if index is None:
            if len(chat.indexes) >= MAX_INDEXES:
                raise Unfit(f"a chat answers from at most {MAX_INDEXES} folders or files: open another chat")
            await trio.to_thread.run_sync(root.stat)  # before anything is made for it
            index = await trio.to_thread.run_sync(Index.open, node.home.root / "retrieval", root)
        try:
            async with aclosing(load_index(index, node.engine)) as events:
                async for event in events:
                    yield _told(event)
        except BaseException:
            if str(root) not in chat.indexes:
                index.close()
            raise
        chat.indexes[str(root)] = index


async def status(node: "Node", params: OfChat) -> ChatStatus:
    """How a chat is."""
    return await _status(node, _chat(node, params))


async def adapters(node: "Node", params: OfChat) -> AdaptersOf:
    """What can answer."""
    import trio

    from agents.chat.ready import ready_adapters

    chat = _chat(node, params)
    if chat.remote is not None:
        await _refresh(node, chat)
        return AdaptersOf(adapters=chat.remote.adapters())
    return AdaptersOf(adapters=await trio.to_thread.run_sync(ready_adapters, node.catalog, chat.model))


async def news(node: "Node", params: OfChat) -> AsyncIterator[Arrived]:
    """Tell, for as long as the chat is open, when its policy comes to another adapter than before."""
    import trio

    chat = _chat(node, params)
    if chat.remote is not None:
        await trio.sleep_forever()  # what a peer has new it tells when it is asked: /adapters
    last_id = await trio.to_thread.run_sync(lambda: node.catalog.events.last_id)
    known, wish = await _wanted(node, chat), chat.conversation.wish
    feed = node.events.follow(last_id, forever=True)
    async with aclosing(feed) as events:  # type: ignore[type-var]  # it is an async generator
        async for event in events:
            if not event.kind.startswith("adapter"):
                continue
            wanted = await _wanted(node, _chat(node, params))
            is_news = wanted != known and wish == chat.conversation.wish
            known, wish = wanted, chat.conversation.wish
            if is_news:
                yield Arrived(adapter=wanted)
                await _stage(node, chat, wanted)


async def _stage(node: "Node", chat: "Chat", adapter: Adapter | None) -> None:
    """Have an adapter that answers next ready in the engine, so that the switch costs the next turn nothing.

    Only where that disturbs nobody: with the chat's model loaded and nothing else to do.
    """
    from agents.chat.answer import error_text
    from agents.engine import messages
    from agents.errors import AgentError

    if adapter is None or chat.conversation.asks or node.engine.n_calls or not _is_loaded(node, chat):
        return
    named = {"name": adapter.name, "version": adapter.version, "manifest": adapter.cid}
    try:
        await node.engine.one(messages.Stage(id=0, adapter=adapter.folder))
    except AgentError as error:  # the next turn tries again, and tells the user
        node.events.note("adapter_not_staged", {**named, "code": error.code, "text": error_text(error)})
    else:
        node.events.note("adapter_staged", named)


def _is_loaded(node: "Node", chat: "Chat") -> bool:
    from daemon.answering import is_loaded

    return chat.remote is not None or is_loaded(node, chat.model)


async def _refresh(node: "Node", chat: "Chat") -> None:
    """Ask the peer of a chat what it offers now."""
    from daemon.asking import again

    assert chat.remote is not None
    chat.remote = await again(node, chat.remote)


async def close(node: "Node", params: OfChat) -> Done:
    """End a chat."""
    node.chats.remove(params.chat)
    return Done(text="closed")


def _chat(node: "Node", params: OfChat) -> "Chat":
    import trio

    return node.chats.get(params.chat, trio.current_time())


def _told(event: LoadEvent) -> Progress | Skipped | Loaded:
    if isinstance(event, Read):
        return Progress(step="indexing", n_done=event.n_done, n_total=event.n_files, unit="files")
    return event


@asynccontextmanager
async def _alone(chat: "Chat") -> AsyncIterator[None]:
    """One answer or load at a time. Raises: Unfit."""
    if chat.is_busy:
        raise Unfit("this chat is answering or loading already: stop that first, or open another chat")
    chat.is_busy = True
    try:
        yield
    finally:
        chat.is_busy = False


async def _wanted(node: "Node", chat: "Chat") -> Adapter | None:
    """What the chat's policy resolves to; what is answering, where its name is gone."""
    from agents.errors import UnknownName

    try:
        return await _resolved(node, chat)
    except UnknownName:
        return chat.conversation.answering


async def _wanted_now(node: "Node", chat: "Chat") -> Adapter | None:
    """The same for an answer. Raises: UnknownName where what is answering is not what was asked for."""
    from agents.errors import UnknownName

    try:
        return await _resolved(node, chat)
    except UnknownName:
        if not chat.conversation.may_stay:
            raise
        return chat.conversation.answering


async def _resolved(node: "Node", chat: "Chat") -> Adapter | None:
    """Raises: UnknownName."""
    import trio

    from agents.chat.ready import resolve

    if chat.remote is not None:
        return chat.remote.resolve(chat.conversation.wish)
    return await trio.to_thread.run_sync(resolve, node.catalog, chat.model, chat.conversation.wish)


async def _status(node: "Node", chat: "Chat") -> ChatStatus:
    import trio

    from agents.models import card_of

    card = card_of(chat.model)
    held = [await trio.to_thread.run_sync(index.status) for index in chat.indexes.values()]
    return ChatStatus(
        chat=chat.key,
        model=chat.model.name,
        n_params=card.n_params,
        context_tokens=card.context_tokens,
        policy=chat.conversation.wish,
        answering=chat.conversation.answering,
        next=await _wanted(node, chat),
        on_new_adapter=chat.on_new_adapter,
        n_turns=len(chat.conversation.history) // 2,
        indexes=[IndexOf(name=i.name, root=i.root, n_documents=i.n_documents, n_chunks=i.n_chunks) for i in held],
    )


def _operation(verb: str, summary: str, params: type[Params], result: Any, handler: Any, **more: Any) -> Operation:
    return Operation(
        noun="chat", verb=verb, summary=summary, params=params, result=result, handler=handler, command=None, **more
    )


OPERATIONS = (
    _operation("open", "Open a chat.", Open, ChatStatus, open_chat),
    _operation("say", "Say something in a chat; the answer streams.", Say, ChatEvent, say, is_stream=True),
    _operation("use", "Choose which adapter answers from the next turn on.", Use, ChatStatus, use),
    _operation("agree", "Switch to the adapter that a chat offered.", OfChat, ChatStatus, agree),
    _operation("clear", "Forget what was said in a chat.", OfChat, Done, clear),
    _operation(
        "load", "Answer from a folder or file in a chat.", Load, Progress | Skipped | Loaded, load, is_stream=True
    ),
    _operation("status", "How a chat is.", OfChat, ChatStatus, status),
    _operation("adapters", "The adapters that can answer in a chat.", OfChat, AdaptersOf, adapters),
    _operation("news", "Tell when a chat's policy comes to another adapter.", OfChat, Arrived, news, is_stream=True),
    _operation("close", "End a chat.", OfChat, Done, close),
)
