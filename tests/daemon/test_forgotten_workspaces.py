"""A workspace that a node follows no more is put aside, makes room for another, and comes back as it was."""

import pytest

from agents.workspace import service


@pytest.fixture
async def ws(node_here):
    async def ws(verb, **params):
        answer = await node_here.post(f"ws/{verb}", **params)
        return answer.json if answer.kind == "application/json" else answer.lines

    ws.node, ws.post = node_here.node, node_here.post
    ws.cid = (await ws("create", title="village"))["workspace"]
    return ws


async def test_what_was_put_aside_comes_back_and_goes_on_where_it_was(ws):
    await ws("say", workspace="village", text="one")
    before = await ws("log", workspace="village")
    assert "covey ws join" in (await ws("forget", workspace="village"))["text"]
    assert await ws("ls") == []
    assert (await ws("say", workspace=ws.cid, text="x"))["error"]["code"] == "unknown_workspace"
    assert (await ws("join", workspace=ws.cid))["n_entries"] == 1
    assert await ws("log", workspace="village") == before
    await ws("say", workspace="village", text="two")
    assert [entry["sequence"] for entry in await ws("log", workspace="village")] == [0, 1]
    await ws("forget", workspace="village")
    assert (await ws("join", workspace=ws.cid))["n_entries"] == 2


async def test_it_makes_room_for_another(ws, monkeypatch):
    monkeypatch.setattr(service, "MAX_WORKSPACES", 1)
    refused = (await ws("create", title="town"))["error"]
    assert refused["code"] == "too_many_workspaces" and "covey ws forget" in refused["hint"]
    await ws("forget", workspace="village")
    await ws("create", title="town")
    assert (await ws("join", workspace=ws.cid))["error"]["code"] == "too_many_workspaces"


async def test_one_where_this_node_hosts_agents_is_not_forgotten(ws, tmp_path):
    (tmp_path / "a.toml").write_text('name = "a"\nmodel = { kind = "scripted" }\n')
    await ws.post("agent/add", workspace="village", file=str(tmp_path / "a.toml"))
    assert (await ws("forget", workspace="village"))["error"]["code"] == "unfit"
    await ws.post("agent/rm", workspace="village", name="a")
    assert "put aside" in (await ws("forget", workspace="village"))["text"]
    assert (await ws("forget", workspace="village"))["error"]["code"] == "unknown_workspace"
