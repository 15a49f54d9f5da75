"""The chat's operations on a node made of a real catalog, a real event feed and a scripted engine."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import trio

from agents.cache.answers import AnswerCache
from agents.chat.events import Cited, Failed, Finished, Loading, Switched, Token
from agents.chat.sessions import Chat, Sessions, UnknownChat
from agents.engine import messages
from agents.errors import AgentError, BadAdapter, EngineDied, UnknownName
from agents.models import Desk
from agents.retrieval.events import Loaded, Skipped
from daemon.api.operation import Operation
from daemon.api.operations import chat as chat_module
from daemon.config import ChatConfig, Config
from daemon.errors import Unfit
from daemon.events import EventFeed
from daemon.lifecycle import running
from daemon.paths import Home
from storage.catalog import Catalog
from storage.catalog.adapters import AdapterRow, AdapterState
from storage.catalog.models import ModelRow
from storage.cid import Cid
from storage.keys import Identity

OPERATIONS: dict[str, Operation] = {operation.verb: operation for operation in chat_module.OPERATIONS}
BASE = str(Cid.of(b"base"))
CARD = {
    "name": "smollm2",
    "fingerprint": BASE,
    "architecture": "LlamaForCausalLM",
    "n_params": 135_000_000,
    "n_layers": 30,
    "hidden_size": 576,
    "vocabulary": 49_152,
    "context_tokens": 2048,
    "dtype": "float32",
    "has_chat_template": True,
}


@dataclass
class EchoEngine:
    """Answers with the question's last line; `hang` never ends, `die` kills the engine."""

    requests: list[messages.Request] = field(default_factory=list)
    n_open: int = 0
    pid: int | None = None
    n_calls: int = 0

    async def one(self, request: messages.Request) -> messages.Reply:
        self.requests.append(request)
        self.pid = 7
        if isinstance(request, messages.Stage) and "bad" in request.adapter:
            raise BadAdapter("its ranks differ")
        await trio.lowlevel.checkpoint()
        if isinstance(request, messages.Embed):
            rows = b"".join(b"\0\0\x80\x3f" + b"\0\0\0\0" for _ in request.texts)
            return messages.Embedded(id=1, vectors=rows, width=2)
        return messages.Staged(id=1, stage_s=0.0)

    @asynccontextmanager
    async def call(self, request: messages.Request) -> AsyncIterator[AsyncIterator[messages.Reply]]:
        self.requests.append(request)
        self.n_open += 1
        try:
            async with aclosing(self._replies(request)) as replies:
                yield replies
        finally:
            self.n_open -= 1

    async def _replies(self, request: messages.Request) -> AsyncIterator[messages.Reply]:
        assert isinstance(request, messages.Generate)
        question = request.turns[-1].content
        yield messages.Token(id=1, text=f"{question.splitlines()[-1]} [1]")
        if question == "hang":
            await trio.sleep_forever()
        if question == "die":
            self.pid = None
            raise EngineDied("the engine died")
        yield messages.Finished(id=1, reason="stop", n_prompt_tokens=9, n_tokens=2, first_token_s=0.1, total_s=0.2)


class WatchedFeed(EventFeed):
    """Tells when somebody began to follow it."""

    is_followed = False

    def follow(self, after_id, *, forever):
        self.is_followed = True
        return super().follow(after_id, forever=forever)


@pytest.fixture
async def node(tmp_path):
    catalog = Catalog.open(tmp_path / "catalog.db")
    catalog.models.upsert(
        ModelRow(name="smollm2", fingerprint=BASE, folder="/m", source="wheel:x", card=CARD, added_unix_s=1.0)
    )
    engine = EchoEngine()
    feed = WatchedFeed(catalog, lambda: 1.0)
    async with running(feed.run):
        yield SimpleNamespace(
            home=Home(tmp_path),
            config=Config(),
            catalog=catalog,
            events=feed,
            engine=engine,
            desk=Desk(engine),
            chats=Sessions[Chat](),
            answers=AnswerCache([], max_distance=0.0, unix_s=lambda: 0.0),
        )
    catalog.close()


@pytest.fixture
def publish(node):
    def publish_(version=1, name="kjv", *, base=BASE, publisher=None, is_own=False, note=True):
        cid = Cid.of(f"{name}{version}{publisher}".encode())
        row = AdapterRow(
            manifest=cid,
            name=name,
            base=base,
            publisher=publisher or Identity.generate().peer_id,
            version=version,
            rank=8,
            n_bytes=1,
            created_unix_s=1.0,
            heard_unix_s=1.0,
            is_own=is_own,
        )
        node.catalog.adapters.upsert(row)
        node.catalog.adapters.set_state(cid, AdapterState.READY, float(version), folder=f"/a/{name}{version}")
        if note:
            node.events.note("adapter_ready", {"name": name})
        return row

    return publish_


async def do(node, verb, **params):
    operation = OPERATIONS[verb]
    return await operation.handler(node, operation.params(**params))


async def items(node, verb, **params):
    operation = OPERATIONS[verb]
    async with aclosing(operation.handler(node, operation.params(**params))) as stream:
        return [item async for item in stream]


def said(events):
    return "".join(event.text for event in events if isinstance(event, Token))


async def test_a_chat_opens_says_and_closes(node):
    opened = await do(node, "open")
    assert (opened.model, opened.answering, opened.next, opened.on_new_adapter) == ("smollm2", None, None, "switch")
    events = await items(node, "say", chat=opened.chat, text="hello")
    assert said(events) == "hello [1]" and isinstance(events[-1], Finished)
    assert (await do(node, "status", chat=opened.chat)).n_turns == 1
    await do(node, "clear", chat=opened.chat)
    assert (await do(node, "status", chat=opened.chat)).n_turns == 0
    await do(node, "close", chat=opened.chat)
    with pytest.raises(UnknownChat):
        await do(node, "status", chat=opened.chat)


async def test_the_newest_adapter_of_a_trusted_publisher_answers_from_the_next_turn(node, publish):
    opened = await do(node, "open")
    row = publish(3)
    assert (await do(node, "status", chat=opened.chat)).next is None
    node.catalog.peers.trust(row.publisher, ["adapters"], 1.0)
    node.catalog.peers.add(row.publisher, [], 1.0, name="bob")
    events = await items(node, "say", chat=opened.chat, text="hi")
    assert isinstance(events[1], Switched)
    assert (events[1].now.name, events[1].now.version, events[1].now.publisher) == ("kjv", 3, "bob")
    assert node.engine.requests[-1].adapter == "/a/kjv3"
    node.catalog.peers.untrust(row.publisher)
    events = await items(node, "say", chat=opened.chat, text="hi")
    assert events[0].now is None and events[0].was.name == "kjv"


async def test_an_adapter_for_another_model_is_not_for_this_chat(node, publish):
    publish(1, base=str(Cid.of(b"other")), is_own=True)
    opened = await do(node, "open")
    assert (await do(node, "adapters", chat=opened.chat)).adapters == []
    with pytest.raises(UnknownName):
        await do(node, "use", chat=opened.chat, adapter="kjv")


async def test_use_pins_a_version_or_the_base(node, publish):
    publish(1, is_own=True)
    publish(2, is_own=True)
    opened = await do(node, "open", adapter="kjv@1")
    assert (opened.next.name, opened.next.version, opened.next.publisher) == ("kjv", 1, "you")
    assert (await do(node, "use", chat=opened.chat, adapter="latest")).next.version == 2
    assert (await do(node, "use", chat=opened.chat, adapter="none")).next is None
    assert [a.version for a in (await do(node, "adapters", chat=opened.chat)).adapters] == [2, 1]
    with pytest.raises(UnknownName):
        await do(node, "open", adapter="nothing")


async def test_an_adapter_that_was_named_and_is_gone_before_it_answered_is_told(node, publish):
    row = publish(1, "poet", is_own=True)
    opened = await do(node, "open", adapter="poet")
    node.catalog.adapters.set_state(row.manifest, AdapterState.REMOVED, 3.0)
    with pytest.raises(UnknownName, match="there is no adapter poet"):
        await items(node, "say", chat=opened.chat, text="hi")
    assert (await do(node, "status", chat=opened.chat)).next is None
    await do(node, "use", chat=opened.chat, adapter="none")
    assert said(await items(node, "say", chat=opened.chat, text="hi")) == "hi [1]"


async def test_a_chat_that_asks_waits_for_agreement(node, publish):
    node.config = Config(chat=ChatConfig(on_new_adapter="ask"))
    opened = await do(node, "open")
    await items(node, "say", chat=opened.chat, text="hi")
    publish(1, is_own=True)
    events = await items(node, "say", chat=opened.chat, text="hi")
    assert not any(isinstance(event, Switched) for event in events)
    await do(node, "agree", chat=opened.chat)
    assert isinstance((await items(node, "say", chat=opened.chat, text="hi"))[0], Switched)


async def test_a_client_that_goes_away_frees_the_engine_and_the_chat(node, autojump_clock):
    opened = await do(node, "open")
    with trio.move_on_after(5):
        await items(node, "say", chat=opened.chat, text="hang")
    assert node.engine.n_open == 0
    assert said(await items(node, "say", chat=opened.chat, text="hello")) == "hello [1]"


async def test_a_timeout_frees_the_engine(node, autojump_clock):
    opened = await do(node, "open", timeout_s=3.0)
    events = await items(node, "say", chat=opened.chat, text="hang")
    assert events[-1].code == "timed_out" and node.engine.n_open == 0


async def test_the_engine_s_death_is_an_event_and_the_chat_goes_on(node):
    opened = await do(node, "open")
    events = await items(node, "say", chat=opened.chat, text="die")
    assert events[-1] == Failed(code="engine_died", text="the engine died")
    assert said(await items(node, "say", chat=opened.chat, text="hello")) == "hello [1]"


async def test_a_chat_answers_one_message_at_a_time(node, autojump_clock):
    opened = await do(node, "open")
    async with trio.open_nursery() as nursery:
        await nursery.start(hang_in, node, opened.chat)
        with pytest.raises(Unfit, match="already"):
            await items(node, "say", chat=opened.chat, text="me too")
        with pytest.raises(AgentError, match="under way"):
            await do(node, "clear", chat=opened.chat)
        nursery.cancel_scope.cancel()


async def hang_in(node, chat, *, task_status):
    """Be in the middle of an answer."""
    operation = OPERATIONS["say"]
    async with aclosing(operation.handler(node, operation.params(chat=chat, text="hang"))) as answer:
        async for event in answer:
            if isinstance(event, Token):
                task_status.started()


async def test_loaded_files_are_cited_and_status_lists_them(node, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "ark.txt").write_text("Noah built an ark.")
    (notes / "pic.png").write_bytes(b"\0")
    opened = await do(node, "open")
    events = await items(node, "load", chat=opened.chat, path=str(notes))
    assert [type(e) for e in events] == [Skipped, Loaded]
    events = await items(node, "say", chat=opened.chat, text="Who built?")
    (cited,) = [event for event in events if isinstance(event, Cited)]
    assert [(s.path, s.cited) for s in cited.sources] == [("ark.txt", True)]
    assert "Noah built an ark." in node.engine.requests[-1].turns[-1].content
    (index,) = (await do(node, "status", chat=opened.chat)).indexes
    assert (index.root, index.n_documents) == (str(notes), 1)
    assert (tmp_path / "retrieval" / index.name / "index.db").exists()
    await do(node, "close", chat=opened.chat)


async def test_a_path_that_is_not_there_is_refused_and_leaves_nothing(node, tmp_path):
    opened = await do(node, "open")
    with pytest.raises(FileNotFoundError):
        await items(node, "load", chat=opened.chat, path=str(tmp_path / "nothing"))
    assert (await do(node, "status", chat=opened.chat)).indexes == []
    assert not list(tmp_path.glob("retrieval/*"))


async def test_news_tells_what_arrives_for_this_chat_and_not_what_the_user_chose(node, publish):
    opened = await do(node, "open")
    async with followed_news(node, opened) as arrived:
        publish(1, is_own=True)
        await until(lambda: arrived == [1])
        publish(2, name="untrusted")
        node.events.note("peer_connected", {})
        publish(3, is_own=True)
        await until(lambda: arrived == [1, 3])


@asynccontextmanager
async def followed_news(node, opened):
    arrived = []

    async def follow():
        async with aclosing(OPERATIONS["news"].handler(node, OPERATIONS["news"].params(chat=opened.chat))) as stream:
            async for item in stream:
                arrived.append(item.adapter.version)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await until(lambda: node.events.is_followed)
        yield arrived
        nursery.cancel_scope.cancel()


async def until(is_true):
    with trio.fail_after(10):
        while not is_true():
            await trio.to_thread.run_sync(int)


def has_staged(node):
    return [r.adapter for r in node.engine.requests if isinstance(r, messages.Stage)]


async def test_an_adapter_that_answers_next_is_staged_before_the_turn(node, publish):
    opened = await do(node, "open")
    await items(node, "say", chat=opened.chat, text="hi")
    async with followed_news(node, opened) as arrived:
        publish(1, is_own=True)
        await until(lambda: "adapter_staged" in [event.kind for event in node.catalog.events.since()])
        assert arrived == [1] and has_staged(node) == ["/a/kjv1"]


async def test_an_adapter_that_cannot_be_staged_is_noted_and_the_news_go_on(node, publish):
    opened = await do(node, "open")
    await items(node, "say", chat=opened.chat, text="hi")
    async with followed_news(node, opened) as arrived:
        publish(1, name="bad", is_own=True)
        await until(lambda: arrived == [1])
        publish(2, is_own=True)
        await until(lambda: "adapter_staged" in [event.kind for event in node.catalog.events.since()])
    (noted,) = [event for event in node.catalog.events.since() if event.kind == "adapter_not_staged"]
    assert noted.fields["text"] == "its ranks differ" and noted.fields["name"] == "bad"


@pytest.mark.parametrize("reason", ["not loaded", "busy", "asks", "dead"])
async def test_nothing_is_staged_where_that_would_disturb(node, publish, reason):
    if reason == "asks":
        node.config = Config(chat=ChatConfig(on_new_adapter="ask"))
    opened = await do(node, "open")
    if reason != "not loaded":
        await items(node, "say", chat=opened.chat, text="die" if reason == "dead" else "hi")
    node.engine.n_calls = 1 if reason == "busy" else 0
    async with followed_news(node, opened) as arrived:
        publish(1, is_own=True)
        await until(lambda: arrived == [1])
        publish(2, is_own=True)
        await until(lambda: arrived == [1, 2])  # so the first is dealt with
    assert has_staged(node) == []


async def test_loading_is_told_once_and_again_after_the_engine_s_death(node):
    opened = await do(node, "open")
    loading = Loading(model="smollm2")
    assert (await items(node, "say", chat=opened.chat, text="hi"))[0] == loading
    assert loading not in await items(node, "say", chat=opened.chat, text="die")
    assert (await items(node, "say", chat=opened.chat, text="hi"))[0] == loading


async def test_there_is_a_limit_of_folders(node, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_module, "MAX_INDEXES", 1)
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    opened = await do(node, "open")
    await items(node, "load", chat=opened.chat, path=str(tmp_path / "a.txt"))
    with pytest.raises(Unfit, match="at most 1"):
        await items(node, "load", chat=opened.chat, path=str(tmp_path / "b.txt"))
    await items(node, "load", chat=opened.chat, path=str(tmp_path / "a.txt"))
    await do(node, "close", chat=opened.chat)
