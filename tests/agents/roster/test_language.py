"""An agent thinks with a server, a peer or an engine; whatever these say or leave unsaid is one answer or one error."""

import json

import pytest
import trio

from agents.ask.errors import AnsweredWrongly, BrokeOff, PeerFailed, PeerRefuses
from agents.ask.remote import RemoteEngine
from agents.engine.messages import Finished, Token, Turn
from agents.engine.remote.events import MAX_EVENT_BYTES
from agents.engine.remote.server import ServerSettings, open_server
from agents.errors import (
    AgentError,
    BackendBusy,
    BackendFailed,
    BackendRefused,
    BackendUnreachable,
    EngineDied,
    EngineFailed,
    UnknownName,
)
from agents.roster.anthropic import open_anthropic
from agents.roster.declaration import Model
from agents.roster.language import MAX_ANSWER_CHARS, EngineModel, Seat
from protocols.ask.wire import Accepted, Answered, Piece
from protocols.net import PeerInfo
from simulations.world import make_node
from tests.agents.ask.conftest import meeting  # noqa: F401 (a fixture)
from tests.agents.ask.nodes import BASE, SlowEngine
from tests.agents.ask.test_ask_hostile import framed, liar

TURNS = [Turn("system", "Be brief."), Turn("user", "What is a flock?")]
SILENCE_S = 0.3


def piece(text, **more):
    return {"choices": [{"index": 0, "delta": {"content": text}, **more}]}


END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "usage": None}
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


# --- an OpenAI-compatible server


async def ask_openai(url, timeout_s=20.0, silence_s=20.0):
    wish = Model(kind="openai", url=url, name="large", temperature=0.5, seed=3, timeout_s=timeout_s)
    settings = ServerSettings(url=url, kind="generic", model="large", token="secret", silence_s=silence_s)
    async with open_server(settings) as server:
        return await EngineModel(server, Seat("large", by=url), wish).answer(TURNS, 99)


async def test_a_server_is_asked_in_openais_form_and_its_answer_is_whole(rude):
    rude.streams(piece(" many"), piece(" birds "), END, USAGE, "[DONE]")
    answer = await ask_openai(rude.url)
    assert (answer.text, answer.reason, answer.model, answer.by) == ("many birds", "length", "large", rude.url)
    assert (answer.n_prompt_tokens, answer.n_tokens) == (7, 2)
    [(head, body)] = rude.asked
    sent = json.loads(body)
    assert head.startswith(b"POST /v1/chat/completions") and b"bearer secret" in head.lower()
    assert (sent["model"], sent["max_tokens"], sent["temperature"], sent["seed"]) == ("large", 99, 0.5, 3)
    assert [turn["content"] for turn in sent["messages"]] == ["Be brief.", "What is a flock?"]


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, b'{"error": {"message": "no such key"}}', BackendRefused),
        (404, b'{"error": {"message": "no model", "code": "model_not_found"}}', UnknownName),
        (429, b"{}", BackendBusy),
        (500, b"\xff\xfe", BackendFailed),
        (503, b"[" * 9000, AgentError),
        (302, b"", BackendFailed),
        (500, b"x" * (1 << 20), BackendFailed),
    ],
)
async def test_a_status_of_a_server_is_one_error_in_one_line(rude, status, body, kind):
    rude.says(status, body)
    with pytest.raises(kind) as caught:
        await ask_openai(rude.url)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert len(rude.asked) == 1, "nobody is led elsewhere, and nothing is asked twice"


@pytest.mark.parametrize(
    "events",
    [
        [],
        ["{"],
        [piece("half")],
        [piece("half"), "not json"],
        [piece("half"), {"choices": "none"}],
        [piece("half"), {"error": {"message": "out of memory"}}],
        [piece("x" * (MAX_EVENT_BYTES + 1))],
        [{"choices": [{"index": 0, "delta": {"content": 5}}]}],
        [{**END, "usage": {"prompt_tokens": -1, "completion_tokens": 2}}, "[DONE]"],
        [{**END, "usage": {"prompt_tokens": 1 << 70, "completion_tokens": 2}}, "[DONE]"],
    ],
    ids=range(10),
)
async def test_a_stream_that_is_no_answer_is_one_error(rude, events):
    rude.streams(*events)
    with pytest.raises(BackendFailed):
        await ask_openai(rude.url)


async def test_bytes_that_are_no_http_are_one_error(rude):
    for chunk in (b"hello\r\n\r\n", b"\0" * 5000, b"HTTP/1.1 200 So\r\n" + b"x: y\r\n" * 50_000, b""):
        rude.chunks = [chunk]
        with pytest.raises(BackendUnreachable):
            await ask_openai(rude.url)


async def test_a_server_that_falls_silent_before_or_in_an_answer_is_left(rude):
    rude.hangs = True
    with pytest.raises(BackendUnreachable, match="in time"):
        await ask_openai(rude.url, silence_s=SILENCE_S)
    rude.streams(piece("half"))
    with pytest.raises(BackendFailed, match="silent"):
        await ask_openai(rude.url, silence_s=2.0)  # on a busy machine what is said takes a while, too


async def test_a_server_that_drips_is_left_when_the_answers_time_is_over(rude):
    rude.streams(*[piece("x")] * 1000)
    rude.pause_s = 0.05
    with pytest.raises(trio.TooSlowError):
        await ask_openai(rude.url, timeout_s=SILENCE_S)


async def test_a_long_answer_is_cut_at_what_an_agent_may_say(rude):
    rude.streams(*[piece("x" * 10_000)] * 4, END, USAGE, "[DONE]")
    assert 0 < len((await ask_openai(rude.url)).text) <= MAX_ANSWER_CHARS


@pytest.mark.parametrize("url", ["x", "file:///etc/passwd", "http://", "http://[::1"])
async def test_what_is_no_address_is_refused(url):
    with pytest.raises(BackendRefused):
        await ask_openai(url)


# --- Anthropic's API, beside test_anthropic.py: what time does to it


async def ask_anthropic(url, timeout_s=SILENCE_S):
    async with open_anthropic(Model(kind="anthropic", url=url, name="large", timeout_s=timeout_s), "") as model:
        return await model.answer(TURNS, 99)


async def test_an_anthropic_server_that_is_silent_drips_or_breaks_off_is_left(rude):
    rude.hangs = True
    with pytest.raises((BackendUnreachable, trio.TooSlowError)):
        await ask_anthropic(rude.url)
    rude.chunks = [b"HTTP/1.1 200 So\r\ncontent-length: 99999\r\n\r\n", *[b" "] * 1000]
    rude.pause_s = 0.05
    with pytest.raises(trio.TooSlowError):
        await ask_anthropic(rude.url)
    rude.hangs, rude.pause_s, rude.chunks = False, 0.0, rude.chunks[:3]
    with pytest.raises(BackendUnreachable):
        await ask_anthropic(rude.url, 20.0)
    assert all(b"x-api-key" not in head.lower() for head, _ in rude.asked), "no token is none, not an empty one"


# --- a peer


async def ask_peer(bob, info, timeout_s=100.0):
    wish = Model(kind="peer", peer=str(info.peer), timeout_s=timeout_s)
    engine = RemoteEngine(bob.network, info, timeout_s=timeout_s)
    return await EngineModel(engine, Seat("tiny", base=str(BASE), by=str(info.peer)), wish).answer(TURNS, 8)


async def test_a_peer_answers_and_the_answer_says_who_it_was(meeting, autojump_clock):  # noqa: F811
    _, bob, info, engine = await meeting()
    answer = await ask_peer(bob, info)
    assert (answer.text, answer.reason, answer.by) == ("word1 word2 word3", "stop", str(info.peer))
    assert (answer.model, answer.base, answer.adapter) == ("tiny", str(BASE), "")
    assert (answer.n_prompt_tokens, answer.n_tokens) == (5, 3)
    assert [turn.content for turn in engine.asked[0].turns] == ["Be brief.", "What is a flock?"]


@pytest.mark.parametrize(("engine", "error"), [(SlowEngine(error=EngineDied("out of memory")), PeerFailed)])
async def test_what_goes_wrong_at_a_peer_is_told_as_its_doing(meeting, autojump_clock, engine, error):  # noqa: F811
    _, bob, info, _ = await meeting(engine)
    with pytest.raises(error, match=str(info.peer)):
        await ask_peer(bob, info)


async def test_a_peer_that_takes_too_long_is_asked_no_more(meeting, autojump_clock):  # noqa: F811
    _, bob, info, engine = await meeting(SlowEngine(n_words=float("inf")))
    with pytest.raises((trio.TooSlowError, AgentError)):
        await ask_peer(bob, info, timeout_s=5.0)
    await trio.sleep(5)
    assert engine.n_taken_back == 1


async def test_a_peer_that_trusts_nobody_refuses(meeting, autojump_clock):  # noqa: F811
    _, bob, info, _ = await meeting(trusts=False)
    with pytest.raises(AgentError):
        await ask_peer(bob, info)


ACCEPTED = framed(Accepted(model="tiny", base=BASE, adapter=None, n_ahead=0))


@pytest.mark.parametrize(
    ("replies", "hangs", "error"),
    [
        ([], True, (BrokeOff, trio.TooSlowError)),
        ([ACCEPTED, framed(Piece(text="so"))], True, (BrokeOff, trio.TooSlowError)),
        ([ACCEPTED, framed(Piece(text="so"))[:-1]], False, BrokeOff),
        ([b"\xff" * 2000], False, AnsweredWrongly),
        ([framed(Answered(reason="stop", n_prompt_tokens=1, n_tokens=1))], False, AnsweredWrongly),
        ([ACCEPTED, *[framed(Piece(text="x" * 30_000))] * 40], False, AnsweredWrongly),
    ],
    ids=range(6),
)
async def test_a_peer_that_keeps_no_rule_is_one_error(sim_world, tmp_path, autojump_clock, replies, hangs, error):
    eve, bob = (make_node(sim_world, name, tmp_path) for name in ("eve", "bob"))
    liar(eve, *replies, hangs=hangs)
    with pytest.raises(error):
        await ask_peer(bob, PeerInfo.parse(eve.network.addresses()[0]))


async def test_a_peer_that_answers_no_questions_says_how_that_is_turned_on(sim_world, tmp_path, autojump_clock):
    eve, bob = (make_node(sim_world, name, tmp_path) for name in ("eve", "bob"))
    with pytest.raises(PeerRefuses, match=r"ask\.is_enabled"):
        await ask_peer(bob, PeerInfo.parse(eve.network.addresses()[0]))


# --- whatever is behind the engine's messages


async def test_an_engine_that_stops_without_an_end_gave_no_answer_and_more_than_one_may_say_is_cut(autojump_clock):
    class Endless(SlowEngine):
        async def _replies(self, request):
            for _ in range(9):
                yield Token(id=0, text="x" * 7000)
            if self.n_words:
                yield Finished(id=0, reason="stop", n_prompt_tokens=1, n_tokens=9, first_token_s=0.0, total_s=0.0)

    with pytest.raises(EngineFailed, match="ask again"):
        await EngineModel(Endless(0), Seat("x"), Model()).answer(TURNS, 9)
    assert len((await EngineModel(Endless(), Seat("x"), Model()).answer(TURNS, 9)).text) == 21_000
