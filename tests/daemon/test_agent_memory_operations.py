"""`covey agent remember`, `recall`, `forget` and `state` on one node; what an agent is told, and its replay."""

import pytest

from storage.cid import Cid

BEE = """
name = "bee"
role = "maker"
version = "7"
capabilities = ["honey"]
system = "You make honey."
model = { kind = "scripted", style = "lead", rules = [{ has = "sweet", say = "It is sweet." }] }
memory = { facts = 2, episodes = 2, working = 2, is_shared = true, search = "words" }
"""
PLAN = """
title = "look"
[[steps]]
name = "first"
do = "model"
agent = "bee"
input = {prompt = "One. Two. Three."}
[[steps]]
name = "then"
do = "model"
agent = "bee"
input = {prompt = "How is honey?"}
"""
ADAPTER = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


@pytest.fixture
async def ask(in_village):
    await in_village.post("ws/create", title="other")
    return in_village


async def run(ask):
    (ask.folder / "plan.toml").write_text(PLAN)
    await ask("run/start", file=str(ask.folder / "plan.toml"))
    async for _ in ended(ask):
        pass
    return [entry["content"]["output"]["made"] for entry in await ask("ws/log") if entry["kind"] == "commit"]


async def ended(ask):
    import trio

    with trio.fail_after(20):
        while (await ask("run/ls"))[0]["state"] != "done":
            await trio.sleep(0.05)
            yield


async def test_what_an_agent_remembers_is_told_its_model_recorded_and_replayed(ask):
    await ask.add(BEE)
    honey = await ask("agent/remember", name="bee", text="Honey is sweet.")
    await ask("agent/remember", name="bee", text="Two cows moo.", shared=True)
    first, then = await run(ask)
    assert "memory" in first and "Two cows moo." in first["prompt"][0]["content"]
    assert then["memory"]["facts"] == [honey["cid"]] and then["memory"]["by"] == "words"
    assert len(then["memory"]["episodes"]) == len(then["memory"]["working"]) == 1
    assert "- first: One. Two." in then["prompt"][0]["content"]
    commit = (await ask("run/ls"))[0]["steps"][1]["commit"]
    shown = (await ask.post("provenance/show", cid=commit, is_verify=True)).json
    assert "from memory Honey is sweet.\n      by node" in shown["text"] and all(
        check["is_ok"] for check in shown["checks"]
    )
    assert any("what it remembered" in check["text"] for check in shown["checks"])
    told = (await ask.post("provenance/show", cid=honey["cid"])).json
    assert told["text"].startswith("value memory/agents/bee/")
    assert "forgotten" in (await ask("agent/forget", name="bee", cid=honey["cid"]))["text"]
    await ask("agent/remember", name="bee", text="Honey is old.")
    assert [one["is_same"] for one in await ask("run/replay", run="look")] == [True, True]
    await ask.add(BEE.replace("You make honey", "You make wax"))
    *_, other, error = await ask("run/replay", run="look")
    assert other["why"] == "bee is told otherwise now" and error["error"]["code"] == "differs"


async def test_memory_is_recalled_listed_and_forgotten(ask):
    await ask.add(BEE)
    first = await ask("agent/remember", name="bee", text="Honey is sweet.")
    assert await ask("agent/remember", name="bee", text="Honey is sweet.") == first
    skill = await ask("agent/remember", name="bee", text="Writes poems.", adapter=ADAPTER)
    assert (skill["kind"], skill["adapter"]) == ("skill", ADAPTER)
    await ask("agent/remember", name="bee", text="Cows moo.", shared=True)
    listed = await ask("agent/recall", name="bee")
    assert [(row["text"], row["is_shared"]) for row in listed] == [
        ("Honey is sweet.", False), ("Writes poems.", False), ("Cows moo.", True),
    ]  # fmt: skip
    found = await ask("agent/recall", name="bee", question="what about honey")
    assert [row["cid"] for row in found] == [first["cid"]] and found[0]["by"] == "words" and found[0]["score"] > 0
    await ask("agent/forget", name="bee", cid=first["cid"])
    assert await ask("agent/recall", name="bee", question="what about honey") == []
    assert (await ask("agent/forget", name="bee", cid=first["cid"]))["error"]["code"] == "unknown_memory"
    assert (await ask("agent/remember", name="nobody", text="x"))["error"]["code"] == "unknown_agent"
    assert (await ask("agent/recall", name="nobody"))["error"]["code"] == "unknown_agent"
    assert (await ask("agent/remember", name="bee", text="x", adapter="y"))["error"]["code"] == "invalid_cid"


async def test_an_agent_thinks_with_the_adapter_that_it_learnt_last(ask):
    model = 'model = { kind = "scripted", adapter = "learnt", style = "lead"'
    await ask.add(BEE.replace('model = { kind = "scripted", style = "lead"', model))
    skill = await ask("agent/remember", name="bee", text="Writes poems.", adapter=ADAPTER)
    _, then = await run(ask)
    assert then["memory"]["skill"] == skill["cid"]
    assert [one["is_same"] for one in await ask("run/replay", run="look")] == [True, True]


async def test_an_agent_comes_to_life_from_its_state_in_another_workspace(ask):
    added = await ask.add(BEE)
    await ask("agent/remember", name="bee", text="Honey is sweet.")
    await ask("agent/remember", name="bee", text="Cows moo.", shared=True)
    await run(ask)
    state = await ask("agent/state", name="bee")
    assert state == await ask("agent/state", name="bee") and state["n_items"] == 4
    again = await ask("agent/add", workspace="other", state=state["state"])
    same = ("name", "role", "description", "capabilities", "tools", "model", "host")
    assert {name: again[name] for name in same} == {name: added[name] for name in same}
    cards = [(await ask("agent/card", workspace=name, name="bee"))["card"] for name in ("village", "other")]
    assert [cards[0].pop("supportedInterfaces"), cards[1].pop("supportedInterfaces")] and cards[0] == cards[1]
    for question in (None, "how is honey, and how are cows?"):
        rows = [
            [
                row | {"is_shared": None}
                for row in await ask("agent/recall", workspace=name, name="bee", question=question)
            ]
            for name in ("village", "other")
        ]
        assert rows[0] == rows[1] and rows[0]
    assert (await ask("agent/state", workspace="other", name="bee"))["state"] == state["state"]


async def test_what_is_no_state_brings_no_agent(ask):
    await ask.add(BEE)
    fact = await ask("agent/remember", name="bee", text="Honey is sweet.")
    await ask("agent/state", name="bee")
    assert (await ask("agent/add", state=fact["cid"]))["error"]["code"] == "bad_state"
    assert (await ask("agent/add"))["error"]["code"] == "bad_agent"
    assert (await ask("agent/state", name="nobody"))["error"]["code"] == "unknown_agent"
    assert [row["name"] for row in await ask("agent/ls", workspace="village")] == ["bee"]


async def test_a_restored_agent_needs_of_its_new_host_what_only_that_can_say(ask):
    tools = 'tools = ["file-read"]\npolicy = { folder = "/srv" }\n'
    await ask.add(BEE + tools)
    state = (await ask("agent/state", name="bee"))["state"]
    refused = await ask("agent/add", workspace="other", state=state)
    assert refused["error"]["code"] == "bad_agent" and "policy.folder" in str(refused)
    local = f'policy = {{ folder = "{ask.folder}" }}'
    assert (await ask.add(local, workspace="other", state=state))["tools"] == ["file-read"]
    assert (await ask.add(BEE, workspace="other", state=state))["error"]["code"] == "bad_agent"


KEEPER = """
name = "keeper"
tools = ["memory-remember", "memory-recall"]
memory = { search = "words" }
[model]
kind = "scripted"
rules = [
    { has = "returned this", say = "done" },
    { has = "Keep", say = '{"tool": "memory-remember", "input": {"text": "Honey is sweet."}}' },
    { has = "Look", say = '{"tool": "memory-recall", "input": {"query": "honey"}}' },
    { has = "Nothing", say = '{"tool": "memory-remember", "input": {"text": " "}}' },
]
"""


async def test_an_agent_keeps_facts_itself_and_finds_them_again(ask):
    await ask.add(KEEPER)
    for prompt in ("Keep it", "Keep it", "Look", "Nothing"):
        assert (await ask("agent/ask", agent="keeper", prompt=prompt))["answer"] == "done"
    known = [row for row in await ask("agent/recall", name="keeper") if row["kind"] == "fact"]
    assert [row["text"] for row in known] == ["Honey is sweet."]
    made = [entry["content"]["output"]["made"] for entry in await ask("ws/log") if entry["kind"] == "commit"]
    outputs = [one["calls"][0].get("output") for one in made]
    assert outputs == [{"cid": known[0]["cid"]}, {"cid": known[0]["cid"]}, "- Honey is sweet.", None]


@pytest.mark.parametrize(("wish", "level"), [({}, "private"), ({"visibility": "members"}, "members")])
async def test_a_state_out_of_a_private_workspace_is_nobodys_unless_its_host_says_so(ask, wish, level):
    await ask.post("ws/create", title="den", private=True)
    await ask.add(BEE, workspace="den")
    await ask("agent/remember", workspace="den", name="bee", text="Honey is sweet.")
    state = await ask("agent/state", workspace="den", name="bee", **wish)
    assert ask.node.roots.level(Cid.parse(state["state"])).name.lower() == level
