"""`covey ws` on one node: what each operation says, and what it refuses."""

import time
from contextlib import aclosing

import pytest
import trio

from agents.workspace.archive import unpack
from agents.workspace.pen import begin, write
from agents.workspace.space import Space
from daemon import wall
from daemon.api.operations.ws import Log
from daemon.cli import ws_forms
from daemon.workspaces import find, log_of
from protocols.workspaces.entries import MAX_GRANTS, Grant, Join, Root
from storage import car
from storage.blockstore import MadeBlock
from storage.cid import RAW, Cid
from storage.keys import Identity
from storage.memory import MemoryBlockstore

OTHER = Identity(b"o" * 32)
UNKNOWN = "bafyreibdjatinztwkiymenotoazucsecl7tywhpxt3doifg7zo4ibmzo7y"


@pytest.fixture
async def ws(node_here):
    """A workspace of this node's: `ask(verb, **params)` gives the answer's JSON."""
    made = (await node_here.post("ws/create", title="village")).json

    async def ask(verb, /, **params):
        answer = await node_here.post(f"ws/{verb}", **{"workspace": made["workspace"]} | params)
        return answer.json if answer.kind == "application/json" else answer.lines

    ask.cid, ask.node = made["workspace"], node_here.node
    return ask


async def test_what_is_said_and_put_stands_in_the_log_and_has_its_effect(ws):
    said = await ws("say", text="hello")
    assert said["height"] == 1 and said["code"] == ""
    await ws("put", key="docs/a", value="text")
    await ws("put", key="docs/b", value='{"n": [1, 2.5, null]}', typed=True)
    await ws("drop", key="docs/a")
    assert [(row["key"], row["value"]) for row in await ws("get")] == [("docs/b", {"n": [1, 2.5, None]})]
    log = await ws("log", workspace="village")
    assert [row["kind"] for row in log] == ["say", "put", "put", "drop"]
    assert log[0]["content"] == {"key": "talk", "text": "hello"} and log[0]["name"] == "me"
    assert [row["kind"] for row in await ws("log", last=1)] == ["drop"]
    assert [row["kind"] for row in await ws("log", key="talk")] == ["say"]
    (row,) = await ws("members")
    assert row["is_owner"] and row["n_entries"] == 4


async def test_what_is_said_in_a_private_workspace_is_sealed_on_the_disk_and_read_here(node_here):
    made = (await node_here.post("ws/create", title="sealed", private=True)).json
    assert made["is_private"] and made["n_entries"] == 1
    which = {"workspace": made["workspace"]}
    await node_here.post("ws/say", text="behind the mill", **which)
    await node_here.post("ws/put", key="a", value="under the stone", **which)
    invited = (await node_here.post("ws/invite", peer=str(OTHER.peer_id), **which)).json
    assert invited["peer"] == str(OTHER.peer_id)
    late = Identity(b"l" * 32)
    await node_here.post("ws/invite", peer=str(late.peer_id), past=True, **which)
    log = (await node_here.post("ws/log", **which)).lines
    assert [row["kind"] for row in log] == ["rekey", "say", "put", "grant", "rekey", "grant", "give"]
    assert not any(row["code"] for row in log)
    assert log[1]["content"] == {"key": "talk", "text": "behind the mill"}
    assert set(log[4]["content"]["members"]) == {str(OTHER.peer_id), str(node_here.node.identity.peer_id)}
    assert log[6]["content"]["audience"] == str(late.peer_id) and len(log[6]["content"]["keys"]) == 2
    (row,) = (await node_here.post("ws/get", **which)).json
    assert row["value"] == "under the stone" and not row["is_withheld"]
    journal = (node_here.node.home.workspaces / made["workspace"]).read_bytes()
    assert b"behind the mill" not in journal and b"under the stone" not in journal
    await node_here.post("ws/revoke", peer=str(OTHER.peer_id), **which)
    last = (await node_here.post("ws/log", last=1, **which)).lines[0]
    assert last["kind"] == "rekey" and str(OTHER.peer_id) not in last["content"]["members"]


async def test_the_past_is_for_private_workspaces_alone(ws):
    assert (await ws("invite", peer=str(OTHER.peer_id), past=True))["error"]["code"] == "unfit"


@pytest.mark.parametrize(
    ("verb", "params", "code"),
    [
        ("say", {"text": "x", "key": "not a key"}, "malformed"),
        ("say", {"text": "x", "to": "nobody"}, "not_found"),
        ("put", {"key": "a", "value": "{", "typed": True}, "malformed"),
        ("put", {"key": "a", "value": "NaN", "typed": True}, "malformed"),
        ("put", {"key": "a", "value": str(1 << 64), "typed": True}, "malformed"),
        ("put", {"key": "a", "value": "[" * 5000, "typed": True}, "malformed"),
        ("put", {"key": "a", "value": "x", "link": "no cid"}, "invalid_cid"),
        ("get", {"key": "a"}, "no_such_key"),
        ("invite", {"peer": "nobody"}, "not_found"),
        ("invite", {"peer": str(OTHER.peer_id), "keys": ["a b"]}, "malformed"),
        ("revoke", {"peer": str(OTHER.peer_id)}, "not_granted"),
        ("leave", {}, "unfit"),
        ("propose", {"text": "?", "options": ["one"]}, "malformed"),
        ("vote", {"proposal": "nothing"}, "not_found"),
        ("say", {"workspace": "nowhere", "text": "x"}, "unknown_workspace"),
        ("say", {"workspace": UNKNOWN, "text": "x"}, "unknown_workspace"),
        ("join", {"workspace": UNKNOWN}, "unknown_workspace"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_with_a_code_and_signs_nothing(ws, verb, params, code):
    assert (await ws(verb, **params))["error"]["code"] == code
    assert await ws("log") == []


@pytest.mark.parametrize(
    ("verb", "params"),
    [
        ("invite", {"peer": str(OTHER.peer_id), "keys": ["a b"]}),
        ("invite", {"peer": str(OTHER.peer_id), "keys": ["a*b"]}),
        ("say", {"text": "x", "key": "a b"}),
        ("put", {"key": "a*", "value": "x"}),
    ],
)
async def test_what_is_no_key_is_said_in_words(ws, verb, params):
    error = (await ws(verb, **params))["error"]
    assert error["code"] == "malformed" and "A-Z a-z 0-9" in error["text"]
    assert not any(word in error["text"] for word in ("regex", "(?", "$"))


async def test_a_grant_is_signed_and_ended(ws):
    peer = str(OTHER.peer_id)
    invited = await ws("invite", peer=peer, can=["write"], keys=["docs/*"], weight=0, days=1)
    assert invited["join"].startswith(f"covey ws join {ws.cid} --from ")
    rows = {row["peer"]: row for row in await ws("members")}
    assert rows[peer]["can"] == ["write"] and rows[peer]["keys"] == ["docs/*"] and not rows[peer]["has_joined"]
    (grant,) = rows[peer]["grants"]
    assert grant["grant"] == invited["grant"] and 86000 < grant["until_unix_s"] - wall.unix_s() <= 86400
    assert time.strftime("%Y-%m-%d", time.localtime(grant["until_unix_s"])) in "\n".join(ws_forms.members([rows[peer]]))
    for key, can in (("docs/a", ["read", "write"]), ("budget/a", ["read"])):
        there = {row["peer"]: row for row in await ws("members", key=key)}
        assert there[peer]["can"] == can and there[str(ws.node.identity.peer_id)]["weight"] == 1
    assert "revoked" in (await ws("revoke", peer=peer, reason="done"))["text"]
    assert [row["peer"] for row in await ws("members")] == [str(ws.node.identity.peer_id)]


async def test_a_proposal_is_voted_on_and_closed_once(ws):
    made = await ws("propose", text="lunch?", options=["pizza", "pasta"])
    assert made["is_open"] and made["n_voters"] == 1 and made["key"] == "decisions"
    assert (await ws("vote", proposal=made["id"], ranking=["soup"]))["error"]["code"] == "unfit"
    assert (await ws("vote", proposal=made["id"][-8:], ranking=["pasta"]))["tally"] == [0, 1]
    closed = await ws("close", proposal=made["id"])
    assert closed == await ws("close", proposal=made["id"]) and closed["chosen"] == "pasta"
    assert await ws("decisions") == [closed]


async def test_a_vote_that_could_not_count_is_refused_and_takes_none_back(ws):
    made = await ws("propose", text="lunch?", options=["pizza", "pasta"])
    await ws("vote", proposal=made["id"], ranking=["pasta"])
    refused = await ws("vote", proposal=made["id"], veto=True)
    assert refused["error"]["code"] == "unfit" and "majority" in refused["error"]["text"]
    assert (await ws("close", proposal=made["id"]))["chosen"] == "pasta"
    refused = await ws("vote", proposal=made["id"], ranking=["pizza"])
    assert refused["error"]["code"] == "unfit" and "closed" in refused["error"]["text"]
    vetoed = await ws("propose", text="dinner?", rule="veto")
    await ws("vote", proposal=vetoed["id"], veto=True)
    assert (await ws("close", proposal=vetoed["id"]))["why"] == "vetoed"


async def test_a_workspace_goes_to_a_car_that_gives_the_same_state(ws, tmp_path):
    block = MadeBlock.of(b"content", RAW)
    ws.node.store.put_many([block])
    link = block.cid
    await ws("put", key="a", value="x", link=str(link))
    out = tmp_path / "village.car"
    exported = (await ws("export", out=str(out)))[-1]
    assert exported["n_entries"] == 1 and exported["n_missing"] == 0
    store = MemoryBlockstore()
    with out.open("rb", buffering=0) as file:
        found = car.import_car(store, file, file_bytes=out.stat().st_size, needs_whole_roots=False, scratch=tmp_path)
    space = unpack(store, found.roots[0].cid)
    assert str(space.state()) == exported["state"] and space.history.workspace == Cid.parse(ws.cid)
    assert store.has(link)
    assert (await ws("export", out=str(out)))["error"]["code"] == "target_exists"


async def test_what_is_said_while_a_row_is_on_its_way_out_follows_it(ws):
    await ws("say", text="one")
    async with aclosing(log_of(ws.node, Log(workspace=ws.cid, follow=True))) as rows:
        with trio.fail_after(20):
            assert (await anext(rows)).content["text"] == "one"
            await ws("say", text="two")
            await ws("say", text="three")
            assert [(await anext(rows)).content["text"] for _ in range(2)] == ["two", "three"]


async def test_all_grants_of_a_peer_end_however_many_there_are(ws):
    peer = str(OTHER.peer_id)
    one = find(ws.node, ws.cid)
    for n in range(MAX_GRANTS + 2):
        await one.say(Grant(audience=OTHER.peer_id, can=("write",), keys=(f"k{n}",), weight=0))
    assert (await ws("revoke", peer=peer))["text"].endswith("from now on has no effect")
    assert [row["peer"] for row in await ws("members")] == [str(ws.node.identity.peer_id)]
    assert (await ws("revoke", peer=peer))["error"]["code"] == "not_granted"


async def test_who_leaves_gives_back_all_its_grants(ws, node_here):
    theirs, me = Space(begin(OTHER, Root(title="theirs", created_unix_s=1))), node_here.node.identity.peer_id
    for n in range(MAX_GRANTS + 2):
        theirs.add(write(OTHER, theirs, Grant(audience=me, can=("write",), keys=(f"k{n}",), weight=0)))
    one = await node_here.node.workspaces._follow(theirs.history.root_entry, [])
    await one.take([placed.entry for placed in theirs.history])
    await one.say(Join(), link_to=theirs.history.order[0].entry.cid)
    assert "left" in (await ws("leave", workspace="theirs"))["text"]
    assert one.space.live_grants() == []
    assert "no member" in (await ws("leave", workspace="theirs"))["text"]
