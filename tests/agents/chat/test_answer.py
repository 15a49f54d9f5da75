from contextlib import aclosing

import pytest
import trio

from agents.chat.answer import Settings, answer
from agents.chat.conversation import Conversation
from agents.chat.events import Cited, Failed, Finished, Refused, Switched, Token
from agents.engine import messages
from agents.errors import BadAdapter, EngineDied, EngineFailed
from agents.retrieval.index import Passage


@pytest.fixture
def ask(engine):
    """Ask one question; return the events."""

    async def ask(chat, question="hi", wanted=None, *, timeout_s=60.0, max_tokens=64, context_tokens=2048, find=None):
        settings = Settings(timeout_s=timeout_s, max_tokens=max_tokens)
        events = answer(chat, engine, question, wanted, settings=settings, context_tokens=context_tokens, find=find)
        async with aclosing(events):
            return [event async for event in events]

    return ask


def said(events):
    return "".join(event.text for event in events if isinstance(event, Token))


async def test_an_answer_streams_and_is_remembered(engine, ask):
    engine.scripts = [["Hel", "lo"], ["again"]]
    chat = Conversation()
    events = await ask(chat)
    assert said(events) == "Hello"
    assert isinstance(events[-1], Finished) and events[-1].n_tokens == 2
    await ask(chat, "more")
    assert [t.content for t in engine.requests[-1].turns[1:]] == ["hi", "Hello", "more"]


async def test_a_new_adapter_is_staged_told_and_used(engine, ask, make_adapter):
    engine.scripts = [["a"], ["b"]]
    chat = Conversation()
    await ask(chat)
    events = await ask(chat, wanted=make_adapter(3))
    assert isinstance(events[0], Switched)
    assert (events[0].now.version, events[0].was) == (3, None)
    stage, generate = engine.requests[-2:]
    assert stage == messages.Stage(id=0, adapter="/a/kjv3")
    assert generate.adapter == "/a/kjv3"


async def test_an_adapter_that_arrives_in_mid_turn_waits_for_the_next(engine, ask, make_adapter):
    engine.scripts = [["one"], ["two"]]
    chat = Conversation()
    first = await ask(chat, wanted=make_adapter(1))
    assert [type(e) for e in first] == [Switched, Token, Finished]
    second = await ask(chat, wanted=make_adapter(2))
    assert [r.adapter for r in engine.requests if isinstance(r, messages.Generate)] == ["/a/kjv1", "/a/kjv2"]
    assert second[0].was == make_adapter(1)


async def test_an_adapter_that_cannot_be_loaded_is_refused_and_the_old_one_answers(engine, ask, make_adapter):
    engine.scripts = [["ok"], ["ok"]]
    engine.bad_adapters["/a/kjv1"] = BadAdapter("rank 0")
    chat = Conversation()
    events = await ask(chat, wanted=make_adapter(1))
    assert events[0] == Refused(adapter=make_adapter(1), staying=None, reason="rank 0")
    assert said(events) == "ok"
    assert not any(isinstance(e, Refused) for e in await ask(chat, wanted=make_adapter(1)))


async def test_who_names_an_adapter_is_not_answered_by_another_until_it_can_be_used(engine, ask, make_adapter):
    engine.scripts = [["ok"], ["ok"]]
    engine.bad_adapters["/a/kjv1"] = BadAdapter("rank 0")
    chat = Conversation(wish="kjv")
    for _ in range(2):
        events = await ask(chat, wanted=make_adapter(1))
        assert events == [Failed(code="bad_adapter", text="kjv cannot be used: rank 0")]
    engine.bad_adapters = {"/a/kjv2": BadAdapter("rank 0")}
    assert said(await ask(chat, wanted=make_adapter(1))) == "ok"
    events = await ask(chat, wanted=make_adapter(2))
    assert events[0] == Refused(adapter=make_adapter(2), staying=make_adapter(1), reason="rank 0")
    assert said(events) == "ok", "an earlier version of what was named goes on"


async def test_naming_another_adapter_ends_what_the_one_before_may_answer(engine, ask, make_adapter):
    engine.scripts = [["ok"], ["ok"]]
    chat = Conversation()
    await ask(chat, wanted=make_adapter(1))
    chat.use("kjv")
    await ask(chat, wanted=make_adapter(1))
    engine.bad_adapters = {"/a/kjv3": BadAdapter("rank 0")}
    assert chat.may_stay, "it is the one that was named"
    chat.use("kjv@3")
    assert (await ask(chat, wanted=make_adapter(3)))[-1].code == "bad_adapter"


@pytest.mark.parametrize("where", ["stage", "generate"])
async def test_the_engine_s_death_is_told_and_the_next_turn_works(engine, ask, make_adapter, where):
    chat = Conversation()
    if where == "stage":
        engine.bad_adapters["/a/kjv1"] = EngineDied()
    engine.scripts = [["Hel", EngineDied()]]
    events = await ask(chat, wanted=make_adapter(1))
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "engine_died"
    assert "starts a new engine" in events[-1].text
    assert chat.history == ()
    engine.bad_adapters.clear()
    engine.scripts = [["fine"]]
    assert said(await ask(chat, wanted=make_adapter(1))) == "fine"
    assert engine.requests[-1].adapter == "/a/kjv1"


async def test_a_failure_of_the_engine_is_told_with_its_code(engine, ask):
    engine.scripts = [[EngineFailed("prompt too long: shorten it")]]
    (event,) = await ask(Conversation())
    assert event == Failed(code="engine_failed", text="prompt too long: shorten it")


async def test_replies_that_end_without_a_final_one_are_a_failure(engine, ask):
    engine.scripts = [["a", None]]
    events = await ask(Conversation())
    assert events[-1].code == "engine_failed"


async def test_a_late_answer_is_stopped_and_frees_the_model(engine, ask, autojump_clock):
    engine.scripts = [["slow", 1_000.0, "never"], ["next"]]
    chat = Conversation()
    events = await ask(chat, timeout_s=30)
    assert [type(e) for e in events] == [Token, Failed]
    assert events[-1].code == "timed_out" and "30 s" in events[-1].text
    assert not engine.is_busy
    assert trio.current_time() == pytest.approx(30, abs=1)
    assert [t.content for t in chat.history] == ["hi", "slow"]
    assert said(await ask(chat)) == "next"


async def test_a_reader_who_goes_away_frees_the_model_and_keeps_what_was_said(engine, ask, autojump_clock):
    engine.scripts = [["half", 1_000.0], ["next"]]
    chat = Conversation()
    with trio.move_on_after(5):
        await ask(chat)
    assert not engine.is_busy and not chat.in_turn
    assert [t.content for t in chat.history] == ["hi", "half"]
    assert said(await ask(chat)) == "next"


async def test_answers_cite_the_sources_they_were_given(engine, ask):
    async def find(question):
        assert question == "who?"
        return [Passage(path="kjv.txt", first_line=1, last_line=2, text="Noah.", score=0.9)]

    engine.scripts = [["Noah ", "[1]."]]
    events = await ask(Conversation(), "who?", find=find)
    assert [type(e) for e in events] == [Token, Token, Cited, Finished]
    (source,) = events[-2].sources
    assert source.cited and source.path == "kjv.txt"


async def test_a_reader_who_closes_the_answer_frees_the_model(engine):
    engine.scripts = [["half", " whole"]]
    chat = Conversation()
    events = answer(chat, engine, "hi", None, settings=Settings(), context_tokens=2048)
    assert said([await anext(events)]) == "half"
    assert engine.is_busy
    await events.aclose()
    assert not engine.is_busy and not chat.in_turn
    assert [t.content for t in chat.history] == ["hi", "half"]


async def test_a_small_context_leaves_half_for_the_prompt(engine, ask):
    engine.scripts = [["ok"]]
    assert said(await ask(Conversation(), max_tokens=256, context_tokens=256)) == "ok"
    assert engine.requests[-1].max_tokens == 128


async def test_a_message_over_the_context_is_refused_without_asking_the_engine(engine, ask):
    (event,) = await ask(Conversation(), "x" * 100_000)
    assert event.code == "too_long"
    assert engine.requests == []
