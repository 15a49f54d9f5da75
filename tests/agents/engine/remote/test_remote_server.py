"""A server as an engine, over real sockets: its answers, its adapters, its errors, and being left."""

from contextlib import aclosing
from dataclasses import replace

import msgspec
import pytest
import trio

from agents.chat.answer import Settings, answer
from agents.chat.conversation import Conversation
from agents.chat.events import Adapter, Failed, Finished, Refused, Switched
from agents.chat.events import Token as Said
from agents.engine.messages import Embed, Generate, Load, Stage, Token, Turn
from agents.engine.remote import server as remote
from agents.engine.remote.backed import open_backed_engine
from agents.engine.remote.server import ServerSettings, card_of, open_server
from agents.engine.remote.wire import Entry
from agents.errors import (
    BackendBusy,
    BackendFailed,
    BackendRefused,
    BackendUnreachable,
    BadAdapter,
    NoAdapters,
    UnknownName,
)
from daemon.api.served import http_served
from simulations.world import TINY
from storage.cid import Cid

A, B, C = (str(Cid.of(name)) for name in (b"a", b"b", b"c"))


def ask(text="one two", adapter=None, **options):
    return Generate(turns=(Turn("user", text),), adapter=adapter, **options)


async def said(engine, request):
    async with engine.call(request) as replies:
        every = [reply async for reply in replies]
    return "".join(reply.text for reply in every if isinstance(reply, Token)), every[-1]


def paths(fake):
    return [path for _, path, _ in fake.asked]


async def test_an_answer_comes_back_as_from_the_engine(fake, connected):
    async with connected(token="secret") as server:
        text, end = await said(server, ask(n_logprobs=1))
        assert (text, end.reason, end.n_prompt_tokens, end.n_tokens) == ("base one two ", "stop", 7, 3)
        text, end = await said(server, Generate(text="once upon", n_logprobs=1))
        assert text == "base once upon "
    assert set(fake.tokens) == {"Bearer secret"}


async def test_its_model_is_looked_for_as_it_is_loaded(fake, connected):
    async with connected(context_tokens=0) as server:
        card = (await server.one(Load(folder="x"))).card
        assert (card.name, card.context_tokens, card.architecture) == ("base", 512, "served by vllm")
    async with connected(model="other") as server:
        with pytest.raises(UnknownName, match=r"it has: base"):
            await server.one(Load(folder="x"))


async def test_an_adapter_is_loaded_once_by_its_folder_and_used_by_its_name(fake, connected):
    fake.visible = {f"/shelf/{A}", f"/shelf/{B}"}
    async with connected() as server:
        await server.one(Stage(adapter=f"/shelf/{A}"))
        text, _ = await said(server, ask(adapter=f"/shelf/{A}"))
        assert text == f"covey-{A} one two "
        assert (await said(server, ask(adapter=f"/shelf/{B}")))[0].startswith(f"covey-{B}")
    assert paths(fake).count("load_lora_adapter") == 2
    assert fake.models[f"covey-{A}"] == f"/shelf/{A}"


async def test_an_adapter_that_is_there_already_is_used(fake, connected):
    fake.models[f"covey-{A}"] = "/shelf"
    async with connected() as server:
        assert (await said(server, ask(adapter=f"/shelf/{A}")))[0].startswith(f"covey-{A}")


async def test_a_server_elsewhere_sees_the_shelf_at_its_own_place(fake, connected):
    fake.visible = {f"/mnt/adapters/{A}"}
    async with connected(adapters_path="/mnt/adapters/") as server:
        await server.one(Stage(adapter=f"/shelf/{A}"))
    async with connected() as server:
        with pytest.raises(BadAdapter, match=r"backend\.adapters_path"):
            await server.one(Stage(adapter=f"/shelf/{B}"))
        with pytest.raises(BadAdapter, match="no published adapter"):
            await server.one(Stage(adapter="/training/kjv"))


async def test_adapters_beyond_the_limit_are_unloaded_but_for_those_in_use(fake, connected):
    fake.visible = {f"/shelf/{name}" for name in (A, B, C)}
    async with connected(n_adapters=1) as server, trio.open_nursery() as nursery:
        nursery.start_soon(said, server, ask("hang", f"/shelf/{A}"))
        with trio.fail_after(10):
            while fake.n_open == 0 or "chat/completions" not in paths(fake):
                await trio.sleep(0.01)
        await said(server, ask(adapter=f"/shelf/{B}"))
        await said(server, ask(adapter=f"/shelf/{C}"))
        assert set(fake.models) == {"base", f"covey-{A}", f"covey-{C}"}
        fake.hold.set()


async def test_answers_of_the_base_take_no_adapters_place(fake, connected):
    fake.visible = {f"/shelf/{A}"}
    async with connected(n_adapters=1) as server:
        await said(server, ask())
        await said(server, ask(adapter=f"/shelf/{A}"))
        await said(server, ask())
        assert server.adapters == (f"covey-{A}",)
    assert "unload_lora_adapter" not in paths(fake)


async def test_a_server_that_was_started_anew_is_given_its_adapters_again(fake, connected):
    fake.visible = {f"/shelf/{A}"}
    async with connected() as server:
        await said(server, ask(adapter=f"/shelf/{A}"))
        fake.models = {"base": None}
        assert (await said(server, ask(adapter=f"/shelf/{A}")))[0].startswith(f"covey-{A}")
        assert paths(fake).count("load_lora_adapter") == 2
        del fake.models["base"]
        with pytest.raises(UnknownName):
            await said(server, ask())


async def test_a_server_without_run_time_loading_says_how_to_have_it(fake, connected):
    fake.has_loading = False
    async with connected() as server:
        with pytest.raises(NoAdapters, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            await server.one(Stage(adapter=f"/shelf/{A}"))
    for kind, words in (("llama.cpp", "only as it starts"), ("generic", r"backend\.kind")):
        async with connected(kind=kind) as server:
            with pytest.raises(NoAdapters, match=words):
                await said(server, ask(adapter=f"/shelf/{A}"))
            assert (await said(server, ask()))[0] == "base one two "


async def test_answers_run_at_the_same_time_whatever_their_adapters(fake, connected):
    fake.visible = {f"/shelf/{name}" for name in (A, B, C)}
    async with connected() as server, trio.open_nursery() as nursery:
        for adapter in (None, f"/shelf/{A}", f"/shelf/{B}", f"/shelf/{C}"):
            nursery.start_soon(said, server, ask("hang", adapter))
        with trio.fail_after(10):
            while fake.n_open < 4:
                await trio.sleep(0.01)
        fake.hold.set()


async def test_leaving_an_answer_ends_it_at_the_server(fake, connected):
    async with connected() as server:
        async with server.call(ask("hang")) as replies:
            assert (await anext(replies)).text == "base "
        with trio.move_on_after(0.3):
            await said(server, ask("hang"))
        with trio.fail_after(10):
            while fake.n_open:
                await trio.sleep(0.01)


async def test_errors_are_told_and_the_next_request_is_served(fake, connected):
    async with connected() as server:
        for status, kind in ((429, BackendBusy), (401, BackendRefused), (500, BackendFailed)):
            fake.answer = lambda model, status=status: (status, {"error": {"message": "sorry"}})
            with pytest.raises(kind, match="sorry"):
                await said(server, ask())
        fake.answer = lambda model: (500, b"x" * (remote.MAX_ERROR_BYTES * 2))
        with pytest.raises(BackendFailed):
            await said(server, ask())
        fake.answer = None
        assert (await said(server, ask()))[0]


async def test_a_stream_that_is_none_or_breaks_off_is_told(fake, connected):
    async with connected() as server:
        for chunks in ([b"<html>"], [], [b"data: {]\n\n"], [b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n']):
            fake.chunks = chunks
            with pytest.raises(BackendFailed):
                await said(server, ask())


async def test_a_server_that_falls_silent_is_left(fake, connected):
    async with connected(silence_s=2.0) as server:
        with pytest.raises(BackendFailed, match="silent"):
            await said(server, ask("hang"))


async def test_a_server_that_is_not_there_is_told_with_its_address():
    async with open_server(ServerSettings(url="http://127.0.0.1:1/v1", kind="generic", model="m")) as server:
        with pytest.raises(BackendUnreachable, match=r"127\.0\.0\.1:1/v1 does not answer"):
            await said(server, ask())
    for url in ("ftp://x/v1", "nonsense", "http:///v1", "http://x:70000x", ""):
        with pytest.raises(BackendRefused, match=r"backend\.url"):
            async with open_server(ServerSettings(url=url, kind="generic", model="m")):
                pass


async def test_a_list_of_models_without_end_is_cut(fake, connected, monkeypatch):
    monkeypatch.setattr(remote, "MAX_LISTING_BYTES", 10)
    async with connected() as server:
        with pytest.raises(BackendFailed, match="over 10 bytes"):
            await server.card()


async def test_what_is_not_for_a_server_is_refused(connected):
    async with connected() as server:
        with pytest.raises(BackendRefused, match="engine of this node"):
            await server.one(Embed(texts=("a",)))


def test_the_card_is_what_the_user_or_a_covey_says():
    covey = ServerSettings(url="http://x/v1", kind="covey", model="m")
    listed = msgspec.to_builtins(msgspec.structs.replace(TINY, derived_from=B))
    card = card_of(covey, Entry(id="m", card=listed, max_model_len=99))
    assert card == msgspec.structs.replace(TINY, name="m", derived_from=B, context_tokens=99)
    named = ServerSettings(url="http://x/v1", kind="vllm", model="m", base=C, context_tokens=77)
    card = card_of(named, Entry(id="m", card=listed, max_model_len=512))
    assert (card.fingerprint, card.derived_from, card.context_tokens, card.hidden_size) == (C, None, 77, 0)
    known = card_of(replace(named, card=TINY), Entry(id="m"))
    assert known == msgspec.structs.replace(TINY, name="m", context_tokens=77)


@pytest.mark.parametrize("said", [None, {}, {"fingerprint": 5}, msgspec.to_builtins(TINY) | {"fingerprint": "x"}])
def test_a_card_that_is_none_leaves_the_model_unknown(said):
    covey = ServerSettings(url="http://x/v1", kind="covey", model="m")
    card = card_of(covey, Entry(id="m", card=said))
    assert (card.fingerprint, card.context_tokens) == (str(Cid.of(b"http://x/v1 m")), remote.USUAL_CONTEXT_TOKENS)


async def conversation_says(engine, text, wanted=None):
    """A turn of a chat, as the daemon makes it."""
    conversation = Conversation(wish="latest")
    turn = answer(conversation, engine, text, wanted, settings=Settings(), context_tokens=512)
    async with aclosing(turn) as events:
        return [event async for event in events]


async def test_a_chat_goes_through_the_backend_with_its_adapter(fake):
    fake.visible = {f"/shelf/{A}"}
    adapter = Adapter(name="kjv", version=1, cid=A, publisher="you", folder=f"/shelf/{A}")
    bad = Adapter(name="bad", version=1, cid=B, publisher="you", folder=f"/shelf/{B}")
    async with http_served(fake, "127.0.0.1", 0) as url:
        settings = ServerSettings(url=f"{url}/v1", kind="vllm", model="base")
        async with open_backed_engine(settings, "/the/backend") as engine:
            await engine.one(Load(folder="/the/backend"))
            switched, *pieces, finished = await conversation_says(engine, "hi", adapter)
            assert isinstance(switched, Switched) and isinstance(finished, Finished)
            assert "".join(piece.text for piece in pieces if isinstance(piece, Said)) == f"covey-{A} hi "
            refused, *rest = await conversation_says(engine, "hi", bad)
            assert isinstance(refused, Refused) and "adapters_path" in refused.reason
            assert isinstance(rest[-1], Finished)
            fake.answer = lambda model: (503, {"error": {"message": "down"}})
            assert (await conversation_says(engine, "hi"))[-1] == Failed(
                code="backend_failed", text="the server says: down"
            )


FAKE_WORKER_SAYS = """
for value in requests():
    if value["type"] == "load":
        send(Loaded(id=value["id"], card=CARD, load_s=0.0))
    elif value["type"] == "embed":
        send(Embedded(id=value["id"], vectors=b"", width=1))
    else:
        send(Token(id=value["id"], text="worker"))
        send(finished(value["id"]))
"""


async def test_what_is_not_the_backends_stays_with_the_worker(fake, fake_worker):
    async with http_served(fake, "127.0.0.1", 0) as url:
        settings = ServerSettings(url=f"{url}/v1", kind="vllm", model="base")
        async with open_backed_engine(settings, "/the/backend", command=fake_worker(FAKE_WORKER_SAYS)) as engine:
            await engine.one(Load(folder="/the/backend"))
            assert (await said(engine, ask()))[0] == "base one two "
            assert engine.pid is None
            await engine.one(Embed(texts=("a",)))
            assert engine.pid is not None
            await engine.one(Load(folder="/models/tiny"))
            assert (await said(engine, ask()))[0] == "worker"
            await engine.one(Load(folder="/the/backend"))
            assert (await said(engine, ask()))[0] == "base one two "
