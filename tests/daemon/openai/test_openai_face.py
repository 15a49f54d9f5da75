"""The face below the official client: who may ask, bodies of any kind, the token's file, and the cores."""

import json
import stat
from functools import partial
from types import SimpleNamespace

import httpx
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from agents.engine.messages import Finished, Token
from agents.errors import EngineFailed
from daemon.api.openai import app, replies, wire
from daemon.api.openai.face import Token as BearerToken
from daemon.api.openai.guard import check
from daemon.api.openai.problems import Refusal
from daemon.api.openai.replies import ChatShape, Choice, Head, TextShape
from daemon.errors import BadHome

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted({*wire.Chat.__struct_fields__, *wire.IGNORED, *wire.NEUTRAL})


async def post(face, path="/v1/chat/completions", raw=b"{}", method="POST", token=None, **headers):
    def send():
        given = {"authorization": f"Bearer {face.client.api_key if token is None else token}", **headers}
        return httpx.request(method, face.url + path, content=raw, headers=given, timeout=20, trust_env=False)

    return await trio.to_thread.run_sync(send)


async def test_pages_of_other_sites_are_refused_before_anything_else(face):
    for foreign in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}, {"host": ""}):
        reply = await post(face, token="whatever", **foreign)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "foreign_origin")
    assert (await post(face, "/v1/models", method="GET", origin=face.url)).status_code == 200


@pytest.mark.parametrize("given", ["", "Basic abc", "Bearer", "covey"])
async def test_without_a_token_nothing_is_told(face, given):
    for path in ("/v1/models", "/v1/nothing"):
        reply = await post(face, path, method="GET", authorization=given)
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"


async def test_what_is_no_request_has_its_answer(face):
    for path, method, status in (
        ("/v1/nothing", "POST", 404),
        ("/", "GET", 404),
        ("/v1/models/", "GET", 404),
        ("/v1/models", "POST", 405),
        ("/v1/chat/completions", "GET", 405),
    ):
        reply = await post(face, path, method=method)
        assert (reply.status_code, reply.json()["error"]["type"]) == (status, "invalid_request_error")
    for raw in (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": 1}', b'{"temperature": NaN}'):
        assert (await post(face, raw=raw)).status_code == 400
    reply = await post(face, raw=b" " * (app.MAX_BODY_BYTES + 1))
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


async def test_a_name_is_told_apart_from_a_path(face):
    assert (await post(face, "/v1/models/smollm2", method="GET")).json()["id"] == "smollm2"
    assert (await post(face, "/v1/models/a%2Fb", method="GET")).json()["error"]["code"] == "model_not_found"


async def test_a_body_that_never_ends_is_cut(face, monkeypatch):
    monkeypatch.setattr(app, "READ_LIMIT_S", 0.2)

    def drip():
        yield b"{"
        trio.from_thread.run(partial(trio.sleep, 1))
        yield b"}"

    def send():
        return httpx.post(
            f"{face.url}/v1/embeddings", content=drip(), headers={"authorization": f"Bearer {face.client.api_key}"}
        )

    assert (await trio.to_thread.run_sync(send)).status_code == 504


def scope(host="127.0.0.1:4703", version="1.1", **headers):
    named = {"host": host, **headers}
    return {"http_version": version, "headers": [(key.encode(), value.encode()) for key, value in named.items()]}


def test_a_face_is_called_by_this_machines_names_and_those_it_was_given(tmp_path):
    token = BearerToken(tmp_path / "token")
    bearer = f"bearer {token.value()}"
    for host in ("localhost", "localhost:1", "127.0.0.1", "[::1]:4703", "box.lan:4703"):
        check(scope(host, authorization=bearer), token, ("box.lan",))
    check(scope("192.0.2.1:4703", authorization=bearer), token, ("0.0.0.0",))
    for host, hosts in [("box.lan", ("0.0.0.0",)), ("192.0.2.1", ("127.0.0.1",)), ("[", ()), ("a@localhost.evil", ())]:
        with pytest.raises(Refusal, match="Host"):
            check(scope(host, authorization=bearer), token, hosts)
    with pytest.raises(Refusal, match=r"HTTP/1\.1"):
        check(scope(version="2", authorization=bearer), token, ())
    twice = scope(authorization=bearer)
    twice["headers"] *= 2
    with pytest.raises(Refusal, match="more than once"):
        check(twice, token, ())


def test_the_token_is_made_once_for_its_owner_alone(tmp_path):
    path = tmp_path / "token"
    made = BearerToken(path).value()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    again = BearerToken(path)
    assert again.value() == made and again.is_(made) and not again.is_(made[:-1]) and not again.is_("\ud800")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    renewed = again.renew()
    assert renewed != made and BearerToken(path).value() == renewed


@pytest.mark.parametrize("raw", [b"", b"short", b"x" * 300, b"a b" * 20, b"\xff" * 40])
def test_a_file_that_holds_no_token_is_told_of(tmp_path, raw):
    (tmp_path / "token").write_bytes(raw)
    with pytest.raises(BadHome, match="remove it"):
        BearerToken(tmp_path / "token").value()


def read_or_refused(raw, kind):
    try:
        return wire.read(raw, kind)[0], 0
    except Refusal as refusal:
        return None, refusal.status


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), JSON_VALUES, max_size=6))
def test_any_body_is_read_or_refused(body):
    for kind in (wire.Chat, wire.Completion, wire.Embedding):
        read, status = read_or_refused(json.dumps(body).encode(), kind)
        assert isinstance(read, kind) or status == 400


@given(st.lists(st.text(max_size=6), max_size=6), st.sampled_from([ChatShape(), TextShape()]), st.text(max_size=4))
def test_the_pieces_say_what_the_whole_says(texts, shape, echo):
    echo = echo if isinstance(shape, TextShape) else ""
    head, choice = Head("k", 1, "m", "f"), Choice(echo=echo)
    end = Finished(reason="stop", n_prompt_tokens=3, n_tokens=len(texts), first_token_s=0, total_s=0)
    pieces = [shape.begins(0, choice)]
    for text in texts:
        choice.take(Token(text=text))
        pieces.append(shape.piece(0, choice, Token(text=text), has_logprobs=False))
    choice.take(end)
    said = "".join(piece.get("text", "") + piece.get("delta", {}).get("content", "") for piece in pieces if piece)
    whole = replies.whole(shape, head, [choice], has_logprobs=False)["choices"][0]
    assert said == (whole["text"] if isinstance(shape, TextShape) else whole["message"]["content"])
    assert said == echo + "".join(texts)
    assert shape.ends(0, choice.reason)["finish_reason"] == whole["finish_reason"] == "stop"
    event = replies.chunk(shape, head, shape.ends(0, "stop"), has_usage=True)
    assert event.startswith(b"data: {") and event.endswith(b"}\n\n") and event.count(b"\n") == 2


def test_an_engine_that_gives_up_is_no_answer():
    gone = Finished(reason="cancelled", n_prompt_tokens=0, n_tokens=0, first_token_s=0, total_s=0)
    with pytest.raises(EngineFailed, match="ask again"):
        Choice().take(gone)


@pytest.mark.parametrize("tokens", [[1, 2], [[1, 2], [3]], ["text", 3]])
@pytest.mark.parametrize(("name", "kind"), [("prompt", wire.Completion), ("input", wire.Embedding)])
def test_arrays_of_tokens_are_refused_by_saying_what_to_send(name, kind, tokens):
    with pytest.raises(Refusal, match=r"arrays of tokens are not read .* send the text") as caught:
        wire.read(json.dumps({"model": "tiny", name: tokens}).encode(), kind)
    body = json.loads(caught.value.body)["error"]
    assert (caught.value.status, body["param"], body["code"]) == (400, name, "unsupported")


def test_a_schema_that_is_too_large_is_refused():
    from daemon.api.openai.asks import chat_asks

    kind = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": "b" * wire.MAX_SCHEMA_BYTES}}}
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "response_format": kind}
    read, _ = wire.read(msgspec.json.encode(body), wire.Chat)
    with pytest.raises(Refusal, match="schema is over"):
        chat_asks(read, SimpleNamespace(name="m", context_tokens=100), None, 0)
