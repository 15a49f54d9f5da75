"""What an agent put into a workspace, another member's agent can read; what is private on a node stays there."""

import random

import pytest
import trio

from agents.roster.content import FETCH_S
from agents.roster.crew import Crew
from agents.tools.tool import ToolFailed, ToolRefused
from agents.workspace.duties import revocation
from agents.workspace.service import Workspaces
from protocols.bitswap.shell import in_turn
from protocols.workspaces import sync
from protocols.workspaces.entries import Put
from simulations.scenarios.workspace import Seat, gather
from simulations.world import make_node
from storage.blockstore import MadeBlock, Visibility
from storage.cid import RAW, Cid

LIMIT_S = 60
FINDING = b"a finding"


class Home(Seat):
    """A member that hosts agents."""

    async def start(self, nursery):
        self.node = make_node(self.world, self.name, self.home)
        self.crew = Crew(self.node.ports, self.home / self.name / "agents")
        self.spaces = Workspaces(self.node.ports, self.home / self.name, in_turn, agents=self.crew)
        await nursery.start(self._run)

    @property
    def one(self):
        return self.spaces.all()[0]

    def keep(self, data, level=Visibility.PRIVATE, members=()):
        block = MadeBlock.of(data, RAW)
        self.node.ports.store.put_many([block])
        self.node.ports.roots.publish(block.cid, level, members)
        return block.cid

    def tools(self):
        return self.crew._content

    async def get(self, cid, n_most=8000):
        with trio.fail_after(LIMIT_S):
            return await self.tools().get(self.one, cid, n_most)


@pytest.fixture
async def homes(sim_world, tmp_path, autojump_clock, nursery):
    """The owner, and two members."""
    made = [Home(sim_world, name, tmp_path) for name in ("ann", "bob", "cleo")]
    for home in made:
        await home.start(nursery)
    await gather(made, random.Random(1))
    return made


async def test_what_an_agent_put_there_anothers_agent_reads_and_keeps(homes, autojump_clock):
    ann, bob, cleo = homes
    cid = await ann.tools().put(ann.one, FINDING)
    assert await bob.get(cid) == FINDING
    ann.crash()
    assert await bob.get(cid) == FINDING
    assert await cleo.get(cid) == FINDING  # of who had it from her


async def test_what_a_member_shows_to_a_node_for_other_reasons_is_not_told_to_all_members(homes, autojump_clock):
    ann, bob, cleo = homes
    cid = ann.keep(b"between us", Visibility.MEMBERS, [bob.node.peer])
    await cleo.one.say(Put(key="x", link=cid))
    with pytest.raises(ToolRefused):
        await bob.get(cid)
    await ann.one.say(Put(key="y", link=cid))  # now it is ann's word that it belongs here
    assert await bob.get(cid) == b"between us"


async def test_what_is_private_here_is_asked_for_and_refused_like_what_is_not_here(homes, autojump_clock, monkeypatch):
    ann, bob, _ = homes
    asked, ask = [], sync.ask_content

    async def noted(network, peer, workspace, cid):
        asked.append(cid)
        return await ask(network, peer, workspace, cid)

    monkeypatch.setattr(sync, "ask_content", noted)
    why = []
    for cid in (bob.keep(b"dear diary"), Cid.of(b"not here", RAW)):
        with pytest.raises(ToolRefused) as refused:
            await bob.get(cid)
        why.append(str(refused.value).replace(str(cid), "it"))
    assert why[0] == why[1] and len(asked) == 4
    with pytest.raises(ToolRefused):
        await ann.get(bob.keep(b"dear diary"))


async def test_who_was_removed_is_given_nothing_any_more(homes, autojump_clock):
    ann, bob, cleo = homes
    cid = await ann.tools().put(ann.one, FINDING)
    grants = [node for node in ann.one.space.live_grants() if node.says.audience == bob.node.peer]
    await ann.one.say(revocation(ann.one.space, grants, "over"))
    while cleo.one.space.is_member(bob.node.peer):
        await trio.sleep(1)
    with pytest.raises(ToolRefused):
        await bob.get(cid)


async def test_members_that_lie_or_say_nothing_are_passed_over(homes, autojump_clock, monkeypatch):
    ann, bob, cleo = homes
    cid = await ann.tools().put(ann.one, FINDING)

    async def other_bytes(*_):
        return b"other bytes"

    monkeypatch.setattr(cleo.crew, "content", other_bytes)
    assert await bob.get(cid) == FINDING

    async def nothing(*_):
        await trio.sleep_forever()

    monkeypatch.setattr(ann.crew, "content", nothing)
    began_s = trio.current_time()
    with pytest.raises(ToolRefused):
        await bob.get(await ann.tools().put(ann.one, b"another"))
    assert trio.current_time() - began_s <= FETCH_S
    assert any(event.kind == "peer_misbehaved" for event in bob.node.events)


async def test_what_is_too_long_for_an_agent_is_refused(homes, autojump_clock):
    ann, bob, _ = homes
    cid = await ann.tools().put(ann.one, bytes(9000))
    with pytest.raises(ToolFailed, match="9000 bytes"):
        await bob.get(cid)
    cid = await ann.tools().put(ann.one, bytes(sync.MAX_CONTENT_BYTES + 1))
    with pytest.raises(ToolRefused):
        await bob.get(cid)
