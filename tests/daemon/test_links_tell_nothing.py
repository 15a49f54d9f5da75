"""A link that a member writes is no right to what this node keeps for itself."""

import hashlib

import pytest
import trio

from agents.workspace.pen import write
from agents.workspace.space import Space
from protocols.workspaces.entries import Join, Put
from storage.blockstore import MadeBlock, Visibility
from storage.cid import RAW
from storage.keys import Identity

BOB = Identity(hashlib.sha256(b"bob").digest())
DIARY = MadeBlock.of(b"dear diary", RAW)
READER = """
name = "reader"
tools = ["content-get", "content-put"]
model = { kind = "scripted" }
"""
LIMIT_S = 20


class Village:
    """A node's workspace, of which `BOB` is a member."""

    def __init__(self, node_here, folder):
        self.post, self.node, self.folder = node_here.post, node_here.node, folder
        self.one = self.node.workspaces.all()[0]

    async def bob_says(self, *said, link_to=None):
        """Bob signs entries, and they come in."""
        history = self.one.space.history
        space = Space.of(history.root_entry, [node.entry for node in history.blocks()])
        for says in said:
            entry = write(BOB, space, says, link_to=link_to)
            space.add(entry)
            await self.one.take([entry])

    async def step(self, name, do, given):
        """What a step of the agent's comes to."""
        step = {"name": "a", "do": do, "agent": "reader", "input": given, "max_tries": 1}
        await self.bob_says(Put(key=f"runs/{name}", value={"title": name, "steps": [step]}))
        with trio.fail_after(LIMIT_S):
            while True:
                rows = (await self.post("run/ls", workspace="village")).json
                row = next(row for row in rows if row["run"] == name)
                if row["state"] != "running":
                    return row["state"], row["steps"][0]["output"]
                await trio.sleep(0.05)

    async def car(self, name):
        """What an export writes."""
        await self.post("ws/export", workspace="village", out=str(self.folder / name))
        return (self.folder / name).read_bytes()


@pytest.fixture
async def village(node_here, tmp_path):
    await node_here.post("ws/create", title="village")
    (tmp_path / "reader.toml").write_text(READER)
    await node_here.post("agent/add", workspace="village", file=str(tmp_path / "reader.toml"))
    made = Village(node_here, tmp_path)
    grant = (await node_here.post("ws/invite", workspace="village", peer=str(BOB.peer_id), weight=0)).json["grant"]
    link = next(node.entry.cid for node in made.one.space.history if str(node.entry.cid) == grant)
    await made.bob_says(Join(), link_to=link)
    await trio.to_thread.run_sync(made.node.store.put_many, [DIARY])
    return made


async def test_what_is_private_is_told_to_nobody_who_links_to_it(village):
    await village.bob_says(Put(key="x", link=DIARY.cid))
    state, _ = await village.step("steal", "content-get", {"cid": str(DIARY.cid)})
    assert state == "failed"
    assert b"dear diary" not in await village.car("a.car")


async def test_what_the_user_links_to_or_shows_to_who_does_is_told(village):
    await village.bob_says(Put(key="x", link=DIARY.cid))
    await trio.to_thread.run_sync(village.node.roots.publish, DIARY.cid, Visibility.MEMBERS, [BOB.peer_id])
    assert await village.step("shown", "content-get", {"cid": str(DIARY.cid)}) == ("done", "dear diary")
    assert b"dear diary" in await village.car("a.car")
    await trio.to_thread.run_sync(village.node.roots.publish, DIARY.cid, Visibility.PRIVATE)
    await village.post("ws/put", workspace="village", key="y", value="mine", link=str(DIARY.cid))
    assert await village.step("mine", "content-get", {"cid": str(DIARY.cid)}) == ("done", "dear diary")
    assert b"dear diary" in await village.car("b.car")


async def test_what_an_agent_put_there_it_gets_again(village):
    state, put = await village.step("put", "content-put", {"text": "a finding"})
    assert state == "done"
    cid = str(MadeBlock.of(b"a finding", RAW).cid)
    assert put == {"cid": cid}
    assert await village.step("get", "content-get", {"cid": cid}) == ("done", "a finding")
