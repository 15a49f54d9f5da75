"""Agents for programs that speak A2A: cards, tasks that are durable runs, streams, and errors by number."""

import json
from types import SimpleNamespace

import httpx
import pytest
import trio

from agents.roster.declaration import Policy
from agents.tools import tools
from agents.tools.tool import Reach, ToolFailed, ToolRefused, use
from daemon.api.a2a.app import _artifact
from daemon.app import open_node
from daemon.config import A2aConfig, Config
from storage.cid import RAW, Cid
from storage.keys import Identity

AGENT = """
name = "summary"
capabilities = ["summarise"]
[model]
kind = "scripted"
style = "lead"
"""
SLOW = 'name = "slow"\nmodel = { kind = "scripted", wait_s = 60.0 }'


@pytest.fixture
async def face(home, lonely, ask, tmp_path):
    config = Config(a2a=A2aConfig(is_enabled=True, port=0))
    async with open_node(home, Identity.generate(), config, print, lonely.opened) as node:

        async def post(name, /, **params):
            return (await trio.to_thread.run_sync(lambda: ask(f"/v1/{name}", params))).json

        await post("ws/create", title="village")
        for number, text in enumerate((AGENT, SLOW)):
            (tmp_path / f"{number}.toml").write_text(text)
            await post("agent/add", workspace="village", file=str(tmp_path / f"{number}.toml"))
        urls = {row["name"]: row["a2a"] for row in await post("agent/ls", workspace="village")}
        headers = {"authorization": f"Bearer {node.openai.token.value()}"}
        async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=20) as client:

            async def call(method, /, agent="summary", **params):
                body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
                reply = (await client.post(urls[agent], json=body)).json()
                assert reply["jsonrpc"] == "2.0" and reply["id"] == 7
                return reply.get("result", reply.get("error"))

            yield SimpleNamespace(client=client, call=call, urls=urls, post=post)


def message(text="One. Two. Three.", name="m1", **more):
    return {"messageId": name, "role": "ROLE_USER", "parts": [{"text": text}], **more}


async def test_a_card_says_where_and_how_an_agent_is_asked(face):
    card = (await face.client.get(f"{face.urls['summary']}/.well-known/agent-card.json")).json()
    assert card["supportedInterfaces"] == [
        {"url": face.urls["summary"], "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
    ]
    assert card["capabilities"]["streaming"] and card["skills"][0]["id"] == "summarise"


async def test_a_message_becomes_a_task_that_is_answered_once_however_often_it_is_sent(face):
    task = (await face.call("SendMessage", message=message()))["task"]
    assert task["status"]["state"] == "TASK_STATE_COMPLETED"
    assert task["artifacts"][0]["parts"] == [{"text": "One. Two.", "mediaType": "text/plain"}]
    assert (await face.call("SendMessage", message=message()))["task"] == task
    assert await face.call("GetTask", id=task["id"]) == task
    assert [row["run"] for row in await face.post("run/ls", workspace="village")] == [task["id"]]
    shown = await face.post("provenance/show", cid=task["artifacts"][0]["artifactId"], is_verify=True)
    assert all(check["is_ok"] for check in shown["checks"])


async def test_another_message_under_the_id_of_one_is_refused(face):
    for name in ("{answer}", "m1"):
        task = (await face.call("SendMessage", message=message("Say {answer} {previous}", name)))["task"]
        assert (await face.call("SendMessage", message=message("Say {answer} {previous}", name)))["task"] == task
        for method in ("SendMessage", "SendStreamingMessage"):
            refused = await face.call(method, message=message("other", name))
            assert refused["code"] == -32602 and "messageId" in refused["message"]
    wish = {"configuration": {"returnImmediately": True}, "agent": "slow"}
    found = []

    async def send(text):
        found.append(await face.call("SendMessage", message=message(text, "both"), **wish))

    async with trio.open_nursery() as nursery:
        for text in ("one", "other"):
            nursery.start_soon(send, text)
    assert sorted(found[0].keys() | found[1].keys()) == ["code", "message", "task"]


async def test_a_stream_tells_the_task_its_artifact_and_its_end(face):
    body = {"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": {"message": message(name="m2")}}
    async with face.client.stream("POST", face.urls["summary"], json=body) as response:
        assert response.headers["content-type"] == "text/event-stream"
        lines = [line async for line in response.aiter_lines() if line]
    events = [json.loads(line.removeprefix("data: "))["result"] for line in lines]
    assert [next(iter(event)) for event in events] == ["task", "artifactUpdate", "statusUpdate"]
    assert events[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"


async def test_a_task_is_cancelled_and_then_over(face):
    wish = {"message": message(name="m3"), "configuration": {"returnImmediately": True}}
    task = (await face.call("SendMessage", agent="slow", **wish))["task"]
    assert task["status"]["state"] == "TASK_STATE_WORKING"
    assert (await face.call("CancelTask", id=task["id"]))["status"]["state"] == "TASK_STATE_CANCELED"
    assert (await face.call("CancelTask", id=task["id"]))["code"] == -32002


async def test_an_agent_here_asks_one_that_speaks_a2a_within_its_policy(face, monkeypatch):
    url = httpx.URL(face.urls["summary"])
    monkeypatch.setenv("THEIR_TOKEN", face.client.headers["authorization"].removeprefix("Bearer "))
    policy = {"hosts": (f"127.0.0.1:{url.port}",), "may_reach_private": True, "token_env": "THEIR_TOKEN"}

    async def ask(where=str(url), prompt="One. Two. Three.", **more):
        reach = Reach(policy=Policy(**policy | more), key="k1")
        return await use(tools()["a2a-ask"], {"url": where, "prompt": prompt}, reach)

    assert await ask() == await ask() == "One. Two."
    assert len(await face.post("run/ls", workspace="village")) == 1
    assert await ask(prompt="Four. Five. Six.") == "Four. Five."  # another question of the same step
    for refused in ({"hosts": ("127.0.0.1",)}, {"may_reach_private": False}, {"token_env": "NO_SUCH"}):
        with pytest.raises(ToolRefused):
            await ask(**refused)
    for wrong, more in ((str(url)[:-7] + "nobody", {}), (str(url), {"token_env": ""})):
        with pytest.raises(ToolFailed, match="status"):
            await ask(wrong, **more)


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("GetTask", {"id": "none"}, -32001),
        ("GetTask", {}, -32602),
        ("CancelTask", {"id": "none"}, -32001),
        ("SubscribeToTask", {"id": "none"}, -32001),
        ("SendMessage", {}, -32602),
        ("SendMessage", {"message": message("")}, -32602),
        ("SendMessage", {"message": message("x" * 16_001)}, -32602),
        ("SendMessage", {"message": message() | {"parts": [{"url": "http://x"}]}}, -32005),
        ("SendMessage", {"message": message(taskId="x")}, -32004),
        ("ListTasks", {}, -32004),
        ("CreateTaskPushNotificationConfig", {}, -32003),
        ("message/send", {}, -32601),
    ],
)
async def test_what_cannot_be_done_has_its_number(face, method, params, code):
    assert (await face.call(method, **params))["code"] == code


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"{", -32700), (b"[]", -32600), (b'{"method": "x"}', -32600), (b'{"jsonrpc": "2.0"}', -32600), (b"\xff", -32700)],
)
async def test_what_is_no_request_is_refused(face, body, code):
    assert (await face.client.post(face.urls["summary"], content=body)).json()["error"]["code"] == code


async def test_nobody_is_answered_without_the_token_or_from_another_site(face):
    url = face.urls["summary"]
    assert (await face.client.post(url, json={}, headers={"authorization": ""})).status_code == 401
    assert (await face.client.post(url, json={}, headers={"origin": "http://evil.example"})).status_code == 403
    assert (await face.client.post(url, json={}, headers={"host": "evil.example"})).status_code == 403
    assert (await face.client.get(f"{url[:-7]}nobody/.well-known/agent-card.json")).status_code == 404
    assert (await face.client.get(url)).status_code >= 400


def test_a_link_in_an_output_is_told_as_its_text():
    cid = Cid.of(b"x", RAW)
    run = SimpleNamespace(name="a2a.x", steps=[SimpleNamespace(output={"found": cid}, commit=None)])
    assert _artifact(run)["parts"][0]["text"] == f'{{"found":"{cid}"}}'
