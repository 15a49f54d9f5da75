"""The pure parts of a backend: events, bodies, answers and errors, and which adapters the server holds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.engine.messages import Finished, Generate, Logprob, Token, Turn
from agents.engine.remote import events, wire
from agents.engine.remote.events import Events
from agents.engine.remote.loras import Loras, manifest_of
from agents.engine.remote.wire import Reading, body_of, error_of, path_of, read_models
from agents.errors import AgentError, BackendBusy, BackendFailed, BackendRefused, BadAdapter, TooLong, UnknownName
from storage.cid import Cid

TURNS = (Turn("system", "be kind"), Turn("user", "hi"))


def cut(raw, sizes):
    at = 0
    for size in sizes:
        yield raw[at : at + size]
        at += size
    yield raw[at:]


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 5), max_size=60),
)
def test_events_are_read_however_they_are_cut(texts, end, sizes):
    raw = "".join(
        f": ping{end}{end}event: x{end}data: {text}{end}id: 7{end}data: more{end}{end}" for text in texts
    ).encode()
    reader = Events()
    assert [data for chunk in cut(raw, sizes) for data in reader.feed(chunk)] == [f"{text}\nmore" for text in texts]


def test_data_of_several_lines_is_one_event():
    assert Events().feed(b"data: a\ndata:b\n\ndata\n\n: nothing\n\n") == ["a\nb", ""]


@pytest.mark.parametrize("raw", [b"data: " + b"x" * events.MAX_EVENT_BYTES, b"data: xx\n" * 600_000, b"data: \xff\n\n"])
def test_events_that_are_too_large_or_no_text_are_refused(raw):
    with pytest.raises(BackendFailed):
        Events().feed(raw)


def test_a_chat_becomes_a_body():
    ask = Generate(turns=TURNS, max_tokens=9, temperature=0.5, top_p=0.9, seed=7, stop=("x",), presence_penalty=1.0)
    body = json.loads(body_of(ask, "m", "generic"))
    assert (path_of(ask), body.pop("stream_options")) == ("chat/completions", {"include_usage": True})
    assert body == {
        "model": "m",
        "stream": True,
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["x"],
        "presence_penalty": 1.0,
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
    }


def test_each_kind_of_server_has_its_names_for_what_openai_has_not():
    ask = Generate(turns=TURNS, top_k=5, min_p=0.1, repetition_penalty=1.1, seed=(1 << 63) - 1)
    assert {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}.items() <= json.loads(
        body_of(ask, "m", "vllm")
    ).items()
    llama = json.loads(body_of(ask, "m", "llama.cpp"))
    assert llama["repeat_penalty"] == 1.1 and llama["seed"] < 1 << 31
    with pytest.raises(BackendRefused, match="takes no top_k"):
        body_of(ask, "m", "generic")
    assert "repetition_penalty" not in json.loads(
        body_of(Generate(turns=TURNS, repetition_penalty=1.1), "m", "generic")
    )


def test_logprobs_and_schemas_are_asked_for():
    body = json.loads(body_of(Generate(turns=TURNS, n_logprobs=3, json_schema='{"type":"object"}'), "m", "vllm"))
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    ask = Generate(text="once", n_logprobs=0)
    body = json.loads(body_of(ask, "m", "vllm"))
    assert (path_of(ask), body["prompt"], body["logprobs"], "messages" in body) == ("completions", "once", 0, False)


def read(*said):
    """The replies to a stream of events, one a second."""
    reading, replies = Reading(10.0), []
    for at, one in enumerate(said, 1):
        token = reading.event(one if isinstance(one, str) else json.dumps(one), 10.0 + at)
        replies += [token] if token else []
    return [*replies, reading.end(10.0 + len(said))]


def chat(text=None, reason=None, **more):
    return {"id": "x", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}], **more}


def test_a_stream_becomes_tokens_and_an_end():
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
    *tokens, end = read(chat(""), chat("a"), chat("b"), chat(None, "length"), {"choices": [], "usage": usage}, "[DONE]")
    assert tokens == [Token(text="a"), Token(text="b")]
    assert end == Finished(
        reason="length", n_prompt_tokens=5, n_tokens=2, first_token_s=2.0, total_s=6.0, n_cached_tokens=3
    )


def test_a_server_that_counts_no_tokens_or_sends_no_done_is_read_too():
    *_, end = read(chat("a"), chat("b"), chat(None, "tool_calls"))
    assert (end.reason, end.n_prompt_tokens, end.n_tokens) == ("stop", 0, 2)
    assert read("[DONE]")[-1].n_tokens == 0


def test_an_answer_that_breaks_off_is_no_answer():
    with pytest.raises(BackendFailed, match="broke off"):
        read(chat("a"))


def test_logprobs_are_read_in_both_forms():
    told = {"token": "é", "logprob": -1.0, "bytes": [0xC3, 0xA9]}
    odd = {"token": "x", "logprob": -2.0, "bytes": [900]}
    content = {"content": [{**told, "top_logprobs": [told, odd]}]}
    piece = {"choices": [{"delta": {"content": "é"}, "logprobs": content}]}
    expected = (Logprob("é".encode(), -1.0, (("é".encode(), -1.0), (b"x", -2.0))),)
    assert read(piece, "[DONE]")[0].logprobs == expected
    text = {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "top_logprobs": [None, {"b": -1.0}]}
    piece = {"choices": [{"text": "ab", "logprobs": text}]}
    assert read(piece, "[DONE]")[0] == Token(text="ab", logprobs=(Logprob(b"b", -1.0, ((b"b", -1.0),)),))
    text = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": None}
    assert read({"choices": [{"text": "a", "logprobs": text}]}, "[DONE]")[0].logprobs == (Logprob(b"a", -1.0),)


@pytest.mark.parametrize(
    "said", ["", "{", "[]", '{"choices": 1}', '{"choices": [{"delta": {"content": 5}}]}', "[" * 10_000]
)
def test_what_is_no_part_of_an_answer_is_refused(said):
    with pytest.raises(BackendFailed):
        read(said)


def test_an_error_in_the_stream_is_told():
    with pytest.raises(BackendFailed, match="out of memory"):
        read({"error": {"message": "out of memory", "code": 500}})
    with pytest.raises(TooLong):
        read({"error": {"message": "no", "code": "context_length_exceeded"}})
    assert read(chat("a", error=None), "[DONE]")[0].text == "a"


def test_an_answer_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(wire, "MAX_ANSWER_CHARS", 10)
    with pytest.raises(BackendFailed, match="over 10"):
        read(chat("aaaaaa"), chat("aaaaaa"))


@given(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)), st.sampled_from([400, 404, 429, 500]))
def test_any_answer_but_200_is_an_error_of_ours(raw, status):
    error = error_of(status, raw)
    assert isinstance(error, AgentError) and str(error)


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (401, {"error": {"message": "no"}}, BackendRefused),
        (400, {"error": {"message": "bad", "code": None}}, BackendRefused),
        (400, {"error": {"message": "This model's maximum context length is 512 tokens."}}, TooLong),
        (400, {"object": "error", "message": "x", "code": "context_length_exceeded"}, TooLong),
        (404, {"error": {"message": "no such model", "code": "model_not_found"}}, UnknownName),
        (429, {"error": "slow down"}, BackendBusy),
        (500, {"detail": [{"msg": "x"}]}, BackendFailed),
    ],
)
def test_errors_are_told_apart(status, said, kind):
    assert type(error_of(status, json.dumps(said).encode())) is kind


def test_what_a_server_says_is_cut():
    assert len(str(error_of(500, b"x" * 100_000))) < 600


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"data": 5}', b'{"data": [{}]}', b"\xff"])
def test_a_list_of_models_that_is_none_is_refused(raw):
    with pytest.raises(BackendFailed):
        read_models(raw)


def test_adapters_are_named_by_their_manifests():
    cid = str(Cid.of(b"x"))
    assert manifest_of(f"/home/adapters/{cid}") == cid
    with pytest.raises(BadAdapter, match="no published adapter"):
        manifest_of("/home/training/kjv")


def test_the_longest_unused_adapter_gives_way_and_none_that_is_in_use():
    loras = Loras(2)
    for name in "abc":
        loras.loaded(name)
    loras.begin("a")
    assert loras.surplus("c") == ["b"]
    loras.forget("b")
    assert loras.surplus("c") == []
    loras.loaded("d")
    assert loras.surplus("d") == ["c"]
    loras.end("a")
    assert "b" not in loras and "a" in loras
    loras.end("b")
    assert "b" not in loras


@given(st.lists(st.tuples(st.sampled_from(["load", "begin", "end", "forget"]), st.sampled_from("abcde")), max_size=40))
def test_at_most_the_limit_stays_but_for_those_in_use(steps):
    loras, users = Loras(2), dict.fromkeys("abcde", 0)
    for step, name in steps:
        if step == "load":
            loras.loaded(name)
        elif step == "begin":
            loras.begin(name)
            users[name] += 1
        elif step == "end" and users[name]:
            loras.end(name)
            users[name] -= 1
        elif step == "forget":
            loras.forget(name)
            users[name] = 0
        for other in loras.surplus(name):
            assert not users[other] and other != name
            loras.forget(other)
        held = [one for one in "abcde" if one in loras]
        assert len(held) <= max(2, sum(1 for one in held if users[one] or one == name))
