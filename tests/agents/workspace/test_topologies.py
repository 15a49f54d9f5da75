"""Ready-made plans: who works beside and after whom, and what each is told."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.workspace.runs.plan import BadRun, filled, read_plan
from agents.workspace.runs.topologies import MAX_DEPTH, TOPOLOGIES, Tree, Wish, plan_for, read_tree, toml_of

AGENTS = ("ann", "bob", "role:cook")
WISH = Wish(
    task='Do "it" \\ with\n{braces} and \x7f',
    agents=AGENTS,
    lead="ann",
    items=("x", "y", "z", "w"),
    tree="a=ann+bob; b=cleo",
)


def wish_for(name):
    two = WISH._replace(agents=AGENTS[:2])
    return {"request": two, "feedback": two, "hierarchy": WISH._replace(tree="ann(bob(dan, role:cook), cleo)")}.get(
        name, WISH
    )


def stages(plan):
    found, first = [], 0
    while first < len(plan.steps):
        stage = plan.stage(first)
        found.append([plan.steps[place] for place in stage])
        first = stage.stop
    return found


def who(plan):
    return [[step.agent or f"role:{step.role}" for step in stage] for stage in stages(plan)]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("pipeline", [["ann"], ["bob"], ["role:cook"]]),
        ("broadcast", [["ann", "bob", "role:cook"]]),
        ("request", [["ann"], ["bob"], ["ann"]]),
        ("feedback", [["ann"], ["bob"]]),
        ("mapreduce", [["ann", "bob", "role:cook", "ann"], ["ann"]]),
        ("mesh", [list(AGENTS), list(AGENTS), ["ann"]]),
        ("teams", [["ann", "cleo"], ["bob"], ["ann"]]),
        ("hierarchy", [["ann"], ["bob", "cleo"], ["dan", "role:cook"], ["bob"], ["ann"]]),
    ],
)
def test_each_topology_has_its_order(name, order):
    assert who(plan_for(name, wish_for(name))) == order


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_output_that_a_prompt_names_is_there_before(name):
    plan = plan_for(name, wish_for(name))
    known = {step.name for step in plan.steps}
    before = set()
    for stage in stages(plan):
        for step in stage:
            text = step.input["prompt"].replace("{braces}", "")
            named = {one for one in known | {"previous"} if "{" + one + "}" in text}
            if name != "feedback":
                assert named <= before, (step.name, named)
            assert "{" not in filled(text, dict.fromkeys(known | {"previous"}, ""))
        before |= {step.name for step in stage} | {"previous"}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_plan_as_toml_is_the_same_plan(name):
    plan = plan_for(name, wish_for(name))
    assert read_plan(tomllib.loads(toml_of(plan))) == plan


@given(st.text(min_size=1, max_size=200))
def test_any_task_survives_toml(task):
    plan = plan_for("pipeline", Wish(task=task, agents=("ann",)))
    assert read_plan(tomllib.loads(toml_of(plan))) == plan


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        ("ring", WISH),
        ("pipeline", Wish(task="")),
        ("pipeline", Wish(task="x")),
        ("pipeline", Wish(task="x", agents=("a b",))),
        ("pipeline", Wish(task="x", agents=("role:",))),
        ("request", WISH),
        ("feedback", WISH._replace(agents=AGENTS[:2], rounds=0)),
        ("mapreduce", WISH._replace(lead="")),
        ("mapreduce", WISH._replace(items=())),
        ("mesh", Wish(task="x", agents=("ann",))),
        ("teams", WISH._replace(tree="")),
        ("teams", WISH._replace(tree="a=")),
        ("teams", WISH._replace(tree="a=x; a=y")),
        ("hierarchy", WISH._replace(tree="")),
        ("hierarchy", WISH._replace(tree="a b")),
        ("hierarchy", WISH._replace(tree="a(b")),
        ("hierarchy", WISH._replace(tree="a()")),
        ("hierarchy", WISH._replace(tree="a)")),
        ("hierarchy", WISH._replace(tree="a(" * (MAX_DEPTH + 2))),
    ],
)
def test_what_cannot_be_planned_is_refused(name, wish):
    with pytest.raises(BadRun):
        plan_for(name, wish)


def test_a_tree_is_read_as_it_is_written():
    assert read_tree("a(b(c,d) , e)") == Tree("a", (Tree("b", (Tree("c"), Tree("d"))), Tree("e")))


def test_what_stands_in_an_output_is_no_place_for_another():
    assert filled("{a} {b} {c}", {"a": "{b}", "b": "secret"}) == "{b} secret {c}"
    assert filled({"x": ["{a}", 1]}, {"a": {"y": 2}}) == {"x": ['{"y":2}', 1]}
