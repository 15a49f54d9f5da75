"""Where an output comes from is read out of the history, drawn, and checked; what was tampered with is found."""

import json

import pytest

from agents.roster.card import sign_card
from agents.roster.declaration import Declaration
from agents.workspace.audit import audit
from agents.workspace.provenance import dot_of, find, graph_of, prov_of, tree_of
from agents.workspace.runs.core import Outside, Perform, Want, next_acts, runs
from agents.workspace.runs.plan import read_plan, value_of
from agents.workspace.runs.replay import output_cid, replay
from protocols.workspaces.entries import Commit, Put
from storage.cid import RAW, Cid
from storage.memory import MemoryBlockstore

CONTENT = Cid.of(b"content", RAW)
PLAN = {
    "title": "x",
    "steps": [
        {"name": "find", "do": "file-search", "role": "search", "input": {"query": "birds"}},
        {"name": "aside", "do": "echo", "input": "nothing", "beside": True},
        {"name": "sum", "do": "model", "role": "search", "input": {"prompt": 'Sum up "this":\n{find}'}},
    ],
}


def made_for(act, card):
    if act.plan.do == "echo":
        return {}
    made = {"agent": "ann", "role": "search", "card": card, "do": act.plan.do}
    if act.plan.do != "model":
        return {"made": made | {"input": act.input}}
    calls = [{"tool": "content-put", "input": {"text": "x"}, "output": {"cid": str(CONTENT)}}]
    return {
        "made": made
        | {
            "prompt": [{"role": "system", "content": "You"}, {"role": "user", "content": act.input["prompt"]}],
            "model": {"kind": "engine", "name": "smol", "base": "bafybase", "adapter": "bafyadapter"},
            "usage": {"n_prompt_tokens": 3, "n_tokens": 4},
            "calls": calls,
        }
    }


@pytest.fixture
def told(village):
    """A run of one member's; `lie` may change what is committed; `key` and `role` are its agent's."""

    def told(lie=lambda act, output: output, key="agents/ann", role="search"):
        ann = village().ann
        store = MemoryBlockstore()
        card = sign_card(ann.identity, Declaration(name="ann"), ann.space.history.workspace, 1)
        store.put_many(card.blocks)
        ann.say(Put(key=key, value={"role": role}, link=card.cid))
        ann.say(Put(key="agents/other", value={"role": "search"}, link=card.cid))
        ann.say(Put(key="runs/x", value=value_of(read_plan(PLAN))))
        while acts := list(next_acts(ann.space, ann.peer, runs(ann.space)[0], Outside())):
            act = acts[0]
            if isinstance(act, Want):
                ann.say(act.claim)
            elif isinstance(act, Perform):
                ann.say(act.begin)
                output = {"value": f"out of {act.plan.name}", "key": act.key} | made_for(act, card.cid)
                ann.say(Commit(claim=act.claim.entry.cid, step=act.step, output=lie(act, output)))
        return ann.space, store

    return told


def commit_of(space, name):
    return next(view.commit for view in runs(space)[0].steps if view.name == name)


def test_everything_behind_an_output_is_drawn_and_nothing_else(told):
    space, _ = told()
    graph = graph_of(space, commit_of(space, "sum"))
    kinds = sorted(item.what for item in graph.items.values())
    assert kinds == [
        "adapter", "agent", "card", "model", "node", "output", "output", "plan", "prompt", "step", "step", "tool",
    ]  # fmt: skip
    text = "\n".join(tree_of(graph))
    assert "out of find" in text and "out of aside" not in text and "smol bafybase" in text


def test_an_output_is_found_by_its_entry_its_content_and_what_its_tools_stored(told):
    space, _ = told()
    commit = commit_of(space, "sum")
    for cid in (commit.id, commit.entry.cid, output_cid(commit.says.output), CONTENT):
        assert find(space, cid).id == commit.id
    assert find(space, Cid.of(b"other", RAW)) is None


def test_the_graph_is_valid_dot_and_prov_json_whatever_texts_say(told):
    space, _ = told()
    graph = graph_of(space, commit_of(space, "sum"))
    dot = dot_of(graph)
    assert dot.startswith("digraph") and dot.endswith("\n}") and '\\"this\\"' in dot
    prov = json.loads(json.dumps(prov_of(graph)))
    names = {name for kind in ("entity", "activity", "agent") for name in prov[kind]}
    ends = {
        "wasGeneratedBy": ("prov:entity", "prov:activity"),
        "used": ("prov:activity", "prov:entity"),
        "wasAssociatedWith": ("prov:activity", "prov:agent"),
        "actedOnBehalfOf": ("prov:delegate", "prov:responsible"),
        "wasAttributedTo": ("prov:entity", "prov:agent"),
    }
    for relation, (source, target) in ends.items():
        for link in prov[relation].values():
            assert {link[source], link[target]} <= names
    assert all(name.startswith("covey:") for name in names)
    assert prov["agent"].keys() and all(one["prov:type"] == "prov:SoftwareAgent" for one in prov["agent"].values())


def test_what_holds_is_said_to_hold(told):
    space, store = told()
    checks = audit(space, commit_of(space, "sum"), store)
    assert all(check.is_ok for check in checks), checks
    assert {check.what for check in checks} == {"history", "entry", "sum of x", "find of x"}
    without = audit(space, commit_of(space, "sum"), MemoryBlockstore())
    assert [check.is_ok for check in without].count(None) == 2 and not any(check.is_ok is False for check in without)


def lie_of(change):
    def lie(act, output):
        if act.plan.name == "find":
            change(output)
        return output

    return lie


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda output: output.update(key="0" * 32), "idempotency key"),
        (lambda output: output["made"].update(input={"query": "cows"}), "input has changed"),
        (lambda output: output["made"].update(card=CONTENT), None),
        (lambda output: output["made"].update(card="text"), "names no card"),
        (lambda output: output["made"].update(agent="bob"), "signed by"),
        (lambda output: output["made"].update(do="model"), "was done"),
    ],
)
def test_a_record_that_does_not_fit_its_history_is_found(told, change, said):
    space, store = told(lie_of(change))
    checks = audit(space, commit_of(space, "sum"), store)
    wrong = [check for check in checks if check.is_ok is not True]
    assert wrong and (said is None or any(said in check.text for check in wrong))


@pytest.mark.parametrize(
    ("announced", "said"),
    [({"key": "agents/bob"}, "never announced"), ({"role": "writing"}, "the plan gives it to search")],
)
def test_a_step_that_another_agent_did_than_the_plan_names_is_found(told, announced, said):
    space, store = told(**announced)
    wrong = [check for check in audit(space, commit_of(space, "sum"), store) if check.is_ok is False]
    assert len(wrong) == 2 and all(said in check.text for check in wrong)


async def echo(given, _key):
    return "out of aside"


async def test_a_replay_gives_the_same_cids_and_stops_where_a_prompt_has_changed(told):
    space, _ = told()
    run = runs(space)[0]
    assert [(one.name, one.is_same) for one in await replay(run, {"echo": echo})] == [
        ("find", True), ("aside", True), ("sum", True),
    ]  # fmt: skip
    other = json.loads(json.dumps(PLAN))
    other["steps"][0]["input"]["query"] = "cows"
    found = await replay(run, {"echo": echo}, plan=read_plan(other))
    assert [(one.name, one.is_same, one.why) for one in found] == [("find", False, "the input has changed")]
    other = json.loads(json.dumps(PLAN))
    other["steps"][2]["input"]["prompt"] = "Sum: {find}"
    assert (await replay(run, {"echo": echo}, plan=read_plan(other)))[-1].why == "the prompt has changed"
    del other["steps"][1:]
    assert [one.is_same for one in await replay(run, {}, plan=read_plan(other))] == [True, False]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"facts": [str(CONTENT)]}, "cannot be read in the history"),
        ({"facts": "all"}, "none"),
        ({"working": ["{find}"]}, "cannot be read in the history"),
    ],
)
def test_a_memory_that_nobody_was_told_of_is_found_out(told, record, said):
    def lie(act, output):
        return {**output, "made": output["made"] | {"memory": record}} if act.plan.do == "model" else output

    space, store = told(lie)
    found = [check for check in audit(space, runs(space)[0].steps[2].commit, store) if check.is_ok is False]
    assert len(found) == 1 and said in found[0].text


async def test_an_agent_that_is_told_otherwise_now_stops_a_replay(told):
    space, _ = told()
    found = await replay(
        runs(space)[0], {"echo": echo}, told=lambda run, view, given: [{"role": "user", "content": "x"}]
    )
    assert found[-1].why == "ann is told otherwise now"


async def test_asking_again_tells_the_difference_and_goes_on(told):
    space, _ = told()

    async def live(agent, do, given, key):
        return "out of find" if do == "file-search" else "something else"

    found = await replay(runs(space)[0], {"echo": echo}, live=live)
    assert [one.is_same for one in found] == [True, True, False]
    assert found[2].diff[-2:] == ("-out of sum", "+something else")


async def test_a_failed_replay_of_an_effect_is_told(told):
    space, _ = told()
    found = await replay(runs(space)[0], {})
    assert found[-1].name == "aside" and "no effect 'echo'" in found[-1].why


@pytest.mark.parametrize("name", ["find", "aside"])
async def test_a_step_that_failed_gives_the_same_failure_as_long_as_the_plan_has_the_same_step(told, name):
    space, _ = told(lambda act, output: {"failed": "given up"} if act.plan.name == name else output)
    run = runs(space)[0]
    assert run.state == "failed"
    found = await replay(run, {})
    place = 0 if name == "find" else 1
    assert found[place].name == name and found[place].is_same
    other = json.loads(json.dumps(PLAN))
    other["steps"][place]["max_tries"] = 7
    assert (await replay(run, {}, plan=read_plan(other)))[place].why == "the step has changed"
