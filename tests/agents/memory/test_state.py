"""An agent's state is the same wherever it is made, has nothing of its host in it, and hostile ones are refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.memory.items import Item, episodes, key_of, knowledge
from agents.memory.state import (
    MAX_DONE,
    MAX_STATE_BYTES,
    BadState,
    State,
    at_home,
    kept_of,
    missing_from,
    portable,
    read_root,
    state_of,
)
from agents.roster.declaration import BadAgent, Declaration, Model, Policy, Rule, read_declaration, written
from protocols.workspaces.entries import Put
from storage.cid import RAW, Cid
from storage.codecs import dag_cbor
from tests.agents.memory.test_items import ADAPTER, fact, told

BEE = read_declaration(b"""
name = "bee"
role = "maker"
system = "You \\"make\\" honey\\u007f."
tools = ["http-get"]
[model]
kind = "openai"
url = "http://127.0.0.1:9/v1"
token_env = "SECRET_TOKEN"
rules = [{has = "x", say = "y"}]
[policy]
hosts = ["example.org"]
[memory]
facts = 3
is_shared = true
""")


def remembering(member):
    told(member, fact("Bees make honey"))
    told(member, Item(kind="skill", text="poems", adapter=ADAPTER))
    told(member, Item(kind="episode", text="did it", source=ADAPTER))
    told(member, fact("All know this"), None)
    return state_of(kept_of(member.space, BEE), BEE)


def test_an_agent_that_comes_to_life_elsewhere_has_the_same_state_again(village):
    state = remembering(village().ann)
    blocks = state.blocks()
    declared, cids = read_root(blocks[0].data)
    assert declared == portable(BEE) and [item.cid for item in state.items] == list(cids)
    other = village().ann
    for key, item in missing_from(kept_of(other.space, declared, MAX_DONE), declared, state.items):
        other.say(Put(key=key, value=msgspec.to_builtins(item)))
    assert missing_from(kept_of(other.space, declared, MAX_DONE), declared, state.items) == []
    local = at_home(declared, b'[policy]\nhosts = ["example.com"]', "x")
    assert state_of(kept_of(other.space, local), local).blocks() == blocks
    assert knowledge(other.space, "bee", is_shared=False)[-1] == fact("All know this"), "what it shared is its own"
    assert [item.text for item in episodes(other.space, "bee", 9)] == ["did it"]


def test_a_state_tells_nothing_of_its_host(village):
    whole = b"".join(block.data for block in remembering(village().ann).blocks())
    assert b"SECRET" not in whole and b"127.0.0.1" not in whole and b"example.org" not in whole


def test_a_new_host_says_what_tools_may_reach_and_where_the_model_is():
    local = b'[policy]\nfolder = "/srv"\n[model]\nkind = "scripted"'
    found = at_home(portable(BEE), local, "x")
    assert (found.policy.folder, found.model.kind, found.system) == ("/srv", "scripted", BEE.system)
    assert at_home(portable(BEE), None, "x") == portable(BEE)
    for text in (b'name = "wasp"', b"\xff", b"[policy", b"system = 1"):
        with pytest.raises(BadAgent):
            at_home(portable(BEE), text, "x")


FIELDS = msgspec.json.decode(msgspec.json.encode(portable(BEE)))
ROOT = {"format": 1, "kind": "agent-state", "agent": FIELDS, "items": []}


@pytest.mark.parametrize(
    "root",
    [
        None,
        [],
        {},
        {**ROOT, "format": 2},
        {**ROOT, "kind": "adapter"},
        {**ROOT, "more": 1},
        {**ROOT, "agent": {}},
        {**ROOT, "agent": {**FIELDS, "name": "../x"}},
        {**ROOT, "agent": {**FIELDS, "sudo": True}},
        {**ROOT, "agent": {**FIELDS, "policy": {"folder": "/", "may_write": True}}},
        {**ROOT, "agent": {**FIELDS, "model": {"kind": "openai", "url": "http://evil"}}},
        {**ROOT, "agent": {**FIELDS, "model": {"token_env": "HOME"}}},
        {**ROOT, "items": ["x"]},
        {**ROOT, "items": [Cid.of(b"x", RAW)]},
        {**ROOT, "items": [fact("x").cid] * 3000},
        {**ROOT, "agent": {**FIELDS, "system": "x" * MAX_STATE_BYTES}},
    ],
)
def test_what_is_no_state_is_refused(root):
    with pytest.raises(BadState):
        read_root(dag_cbor.encode(root))


@pytest.mark.parametrize("data", [b"", b"\xff", dag_cbor.encode(ROOT)[:-1], dag_cbor.encode(ROOT) + b"\0"])
def test_bytes_that_are_no_block_are_no_state(data):
    with pytest.raises(BadState):
        read_root(data)


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)


@given(
    system=TEXT,
    rules=st.lists(st.builds(Rule, has=TEXT, say=TEXT), max_size=3),
    temperature=st.floats(0, 10),
    hosts=st.lists(TEXT.filter(bool), max_size=3),
    memory=st.one_of(st.integers(0, 64), st.just(BEE.memory)),
)
def test_a_declaration_that_is_written_is_read_again(system, rules, temperature, hosts, memory):
    model = Model(kind="scripted", rules=tuple(rules), temperature=temperature)
    declared = Declaration(name="x", system=system, model=model, policy=Policy(hosts=tuple(hosts)), memory=memory)
    assert read_declaration(written(declared)) == declared


def test_the_largest_state_fits_its_bound():
    most = State(portable(BEE), tuple(fact(str(number)) for number in range(2112)))
    assert len(read_root(most.blocks()[0].data)[1]) == 2112
    assert key_of(fact("x"), "bee") != key_of(fact("x"), None)


def test_the_bytes_of_a_state_are_those_of_its_first_format():
    """Who kept a state under its CID finds the same agent by it, whatever rights policies have learnt since."""
    [root] = State(portable(BEE), ()).blocks()
    policy = dag_cbor.decode(root.data)["agent"]["policy"]
    assert sorted(policy) == [
        "asks", "folder", "hosts", "max_calls", "may_reach_private", "may_run_python", "may_train", "may_write",
        "publishes_to", "servers", "token_env",
    ]  # fmt: skip
