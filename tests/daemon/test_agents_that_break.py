"""What an agent's work ends in is its step's failure: no plan, no setting and no bug takes the workspaces with it."""

import pytest
import trio

from protocols.workspaces.entries import Put
from storage.errors import StoreFull

LIMIT_S = 20
AGENTS = {
    "tokenless": """
name = "tokenless"
model = { kind = "openai", url = "http://127.0.0.1:9/v1", token_env = "COVEY_NO_SUCH_TOKEN" }
""",
    "finder": """
name = "finder"
tools = ["file-search", "content-put"]
model = { kind = "scripted" }
policy = { folder = "/tmp" }
""",
}


@pytest.fixture
async def one(node_here, tmp_path):
    await node_here.post("ws/create", title="village")
    for name, text in AGENTS.items():
        (tmp_path / name).write_text(text)
        assert (await node_here.post("agent/add", workspace="village", file=str(tmp_path / name))).status == 200
    return node_here.node.workspaces.all()[0]


async def run_of(node_here, one, name, **step):
    """How a run of one step ends."""
    plan = {"title": name, "steps": [{"name": "step", "max_tries": 1, **step}]}
    await one.say(Put(key=f"runs/{name}", value=plan))
    with trio.fail_after(LIMIT_S):
        while True:
            rows = (await node_here.post("run/ls", workspace="village")).json
            row = next(row for row in rows if row["run"] == name)
            if row["state"] != "running":
                return row
            await trio.sleep(0.05)


async def kinds_of(node_here):
    return [line["kind"] for line in (await node_here.post("events/read")).lines]


async def test_a_model_whose_token_is_missing_fails_its_step_and_nothing_else(node_here, one):
    row = await run_of(node_here, one, "ask", do="model", agent="tokenless", input={"prompt": "?"})
    assert row["state"] == "failed"
    kinds = await kinds_of(node_here)
    assert "run_step_failed" in kinds and not {"service_ended", "service_restarts"} & set(kinds)


async def test_so_does_a_plan_with_a_link_where_a_tool_takes_a_text(node_here, one):
    link = one.space.history.root_entry.cid
    row = await run_of(node_here, one, "look", do="file-search", agent="finder", input={"query": link})
    assert row["state"] == "failed"
    assert not {"service_ended", "service_restarts"} & set(await kinds_of(node_here))


async def test_and_a_store_that_is_full(node_here, one, monkeypatch):
    def is_full(*_):
        raise StoreFull("the store is full")

    monkeypatch.setattr(node_here.node.store, "put_many", is_full)
    row = await run_of(node_here, one, "keep", do="content-put", agent="finder", input={"text": "x"})
    assert row["state"] == "failed"
    assert not {"service_ended", "service_restarts"} & set(await kinds_of(node_here))
