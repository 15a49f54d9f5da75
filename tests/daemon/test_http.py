"""The HTTP face of the control API over a real Unix socket."""

import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import trio
from msgspec import Meta

from agents.errors import Untrusted
from daemon.api import http as face
from daemon.api.operation import Done, Nothing, Operation, Params, Result


class Shout(Params, frozen=True):
    text: Annotated[str, Meta(max_length=20)]


class Loud(Result, frozen=True):
    text: str


async def shout(_node: Any, params: Shout) -> Loud:
    return Loud(text=params.text.upper())


async def count(_node: Any, _params: Nothing) -> AsyncIterator[Loud]:
    for number in range(3):
        yield Loud(text=str(number))


async def count_then_fail(node: Any, params: Nothing) -> AsyncIterator[Loud]:
    async for item in count(node, params):
        yield item
    raise Untrusted("no trust in 12D3")


async def nothing(_node: Any, _params: Nothing) -> AsyncIterator[Loud]:
    return
    yield


async def refuse(_node: Any, _params: Nothing) -> Done:
    raise Untrusted("no trust in 12D3")


async def crash(_node: Any, _params: Nothing) -> Done:
    raise ZeroDivisionError("a secret")


async def crash_in_a_nursery(_node: Any, _params: Nothing) -> Done:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse, None, Nothing())
    return Done(text="never")


async def content(_node: Any, _params: Nothing) -> AsyncIterator[bytes]:
    yield b"\x00\xff"
    yield b"more"


async def content_breaks(_node: Any, _params: Nothing) -> AsyncIterator[bytes]:
    yield b"half"
    raise Untrusted("in the middle")


async def wait(node: Any, _params: Nothing) -> AsyncIterator[Loud]:
    node.waits.set()
    try:
        yield Loud(text="waiting")
        await trio.sleep_forever()
    finally:
        node.gone.set()


async def wait_silently(node: Any, _params: Nothing) -> Done:
    node.waits.set()
    try:
        await trio.sleep_forever()
    finally:
        node.gone.set()
    return Done(text="never")


def operation(verb: str, handler: Any, result: Any = Loud, *, params: Any = Nothing, is_stream: bool = False) -> Any:
    return Operation(
        noun="t", verb=verb, summary="Test.", params=params, result=result, handler=handler, is_stream=is_stream
    )


OPERATIONS = (
    operation("shout", shout, params=Shout),
    operation("count", count, is_stream=True),
    operation("count_then_fail", count_then_fail, is_stream=True),
    operation("nothing", nothing, is_stream=True),
    operation("refuse", refuse, Done),
    operation("crash", crash, Done),
    operation("crash_in_a_nursery", crash_in_a_nursery, Done),
    operation("content", content, bytes, is_stream=True),
    operation("content_breaks", content_breaks, bytes, is_stream=True),
    operation("wait", wait, is_stream=True),
    operation("wait_silently", wait_silently, Done),
)


@pytest.fixture
async def served(home, ask, monkeypatch):
    table = {one.name: one for one in OPERATIONS}
    monkeypatch.setattr(face, "operations", lambda: table)
    node = SimpleNamespace(waits=trio.Event(), gone=trio.Event(), noted=[])
    node.events = SimpleNamespace(note=lambda kind, fields: node.noted.append((kind, fields)))
    async with face.control_served(node, home):
        yield SimpleNamespace(node=node, post=lambda *args, **kw: trio.to_thread.run_sync(partial(ask, *args, **kw)))


async def test_the_socket_is_for_its_owner_alone(served, home):
    assert stat.S_IMODE(home.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.socket.parent.stat().st_mode) == 0o700


async def test_a_result_is_json(served):
    answer = await served.post("/v1/t/shout", {"text": "hey"})
    assert (answer.status, answer.kind, answer.json) == (200, "application/json", {"text": "HEY"})


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"text": 1}', b'{"text": "a", "more": 1}', b'{"text": "' + b"a" * 21 + b'"}', b"\xff"]
)
async def test_parameters_that_do_not_fit_are_refused(served, body):
    answer = await served.post("/v1/t/shout", body)
    assert answer.status == 400
    assert answer.json["error"]["code"] == "bad_request"


async def test_a_request_over_the_limit_is_refused(served, monkeypatch):
    monkeypatch.setattr(face, "MAX_REQUEST_BYTES", 100)
    answer = await served.post("/v1/t/shout", {"text": "a" * 200})
    assert answer.status == 400
    assert "over 100 bytes" in answer.json["error"]["text"]


async def test_deeply_nested_json_is_refused(served):
    answer = await served.post("/v1/t/shout", b'{"text":' + b"[" * 100_000)
    assert answer.json["error"]["code"] == "bad_request"


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/t/none"), ("POST", "/"), ("GET", "/nowhere")])
async def test_what_is_unknown_is_404_as_json(served, method, path):
    answer = await served.post(path, method=method)
    assert (answer.status, answer.json["error"]["code"]) == (404, "unknown_operation")


async def test_only_post_is_allowed(served):
    assert (await served.post("/v1/t/shout", method="GET")).status == 405


async def test_a_stream_is_ndjson_or_server_sent_events(served):
    assert (await served.post("/v1/t/count")).lines == [{"text": "0"}, {"text": "1"}, {"text": "2"}]
    answer = await served.post("/v1/t/count", Accept="text/event-stream")
    assert answer.kind == "text/event-stream; charset=utf-8" or answer.kind == "text/event-stream"
    assert answer.body.startswith(b'data: {"text":"0"}\n\ndata: ')


async def test_an_empty_stream_is_empty(served):
    answer = await served.post("/v1/t/nothing")
    assert (answer.status, answer.body) == (200, b"")


async def test_an_error_has_status_code_text_and_hint(served):
    answer = await served.post("/v1/t/refuse")
    assert answer.status == 403
    assert answer.json["error"]["code"] == "untrusted"
    assert answer.json["error"]["text"] == "no trust in 12D3"
    assert "covey peer trust" in answer.json["error"]["hint"]


async def test_an_error_from_a_nursery_is_told_like_any_other(served):
    assert (await served.post("/v1/t/crash_in_a_nursery")).json["error"]["code"] == "untrusted"


async def test_an_error_in_mid_stream_is_the_last_line(served):
    assert (await served.post("/v1/t/count_then_fail")).lines[-1]["error"]["code"] == "untrusted"
    answer = await served.post("/v1/t/count_then_fail", Accept="text/event-stream")
    assert b"event: error\ndata: " in answer.body


async def test_a_bug_is_told_without_its_text(served):
    answer = await served.post("/v1/t/crash")
    assert answer.status == 500
    assert "secret" not in answer.body.decode()


async def test_content_comes_as_it_is(served):
    answer = await served.post("/v1/t/content")
    assert (answer.kind, answer.body) == ("application/octet-stream", b"\x00\xffmore")


async def test_content_that_breaks_off_does_not_look_complete(served):
    import http.client

    with pytest.raises((http.client.HTTPException, ConnectionError)):
        await served.post("/v1/t/content_breaks")
    [(kind, fields)] = served.node.noted
    assert kind == "answer_cut_short" and fields["text"] == "in the middle"


async def test_what_broke_off_can_be_told_from_other_answers(served, home):
    stream = await trio.open_unix_socket(str(home.socket))
    await stream.send_all(b"POST /v1/t/content_breaks HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    said = b""
    async with stream:
        with suppress(trio.BrokenResourceError):
            while part := await stream.receive_some():
                said += part
    [(_, fields)] = served.node.noted
    assert f"\r\ncovey-answer: {fields['answer']}\r\n" in said.decode().lower()


@pytest.mark.parametrize("verb", ["wait", "wait_silently"])
async def test_a_client_that_goes_away_cancels_the_operation(served, home, verb):
    stream = await trio.open_unix_socket(str(home.socket))
    await stream.send_all(f"POST /v1/t/{verb} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    with trio.fail_after(20):
        await served.node.waits.wait()
        assert not served.node.gone.is_set()
        await stream.aclose()
        await served.node.gone.wait()


async def test_the_server_stops_soon_although_a_stream_is_open(home, monkeypatch):
    monkeypatch.setattr(face, "operations", lambda: {one.name: one for one in OPERATIONS})
    node = SimpleNamespace(waits=trio.Event(), gone=trio.Event())
    with trio.fail_after(20):
        async with face.control_served(node, home):
            stream = await trio.open_unix_socket(str(home.socket))
            await stream.send_all(b"POST /v1/t/wait HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await node.waits.wait()
        assert node.gone.is_set()
        assert not home.socket.exists()
        await stream.aclose()


async def test_garbage_on_the_socket_does_no_harm(served, home):
    for garbage in (b"\x00" * 5000, b"GET\r\n\r\n", b"POST /v1/t/shout HTTP/1.1\r\n" + b"X: y\r\n" * 20_000):
        stream = await trio.open_unix_socket(str(home.socket))
        with suppress(trio.BrokenResourceError):
            await stream.send_all(garbage)
        await stream.aclose()
    assert (await served.post("/v1/t/shout", {"text": "a"})).json == {"text": "A"}


async def test_a_stale_socket_is_replaced(home):
    face.control_socket(home).close()
    assert home.socket.exists()
    face.control_socket(home).close()
