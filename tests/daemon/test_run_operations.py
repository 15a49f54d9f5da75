"""`covey run` on one node: a plan is performed step by step, waits for approval, and gives the same again."""

from contextlib import aclosing

import pytest
import trio

from agents.workspace.runs.plan import BadRun, filled
from daemon.api.operations.run import One
from daemon.runs import watch

PLAN = """
title = "two steps"
[[steps]]
name = "ask"
do = "scripted"
input = {prompt = "What is a flock?", answers = {"What is a flock?" = "many birds"}}
[[steps]]
name = "sum-up"
do = "scripted"
input = {prompt = "Sum up: {ask}"}
"""
GATE = '[[steps]]\nname = "gate"\ndo = "approval"\n'


@pytest.fixture
async def run(node_here, tmp_path):
    await node_here.post("ws/create", title="village")

    async def ask(verb, /, **params):
        answer = await node_here.post(f"run/{verb}", **{"workspace": "village"} | params)
        return answer.json if answer.kind == "application/json" else answer.lines

    async def start(text, **params):
        (tmp_path / "plan.toml").write_text(text)
        return await ask("start", file=str(tmp_path / "plan.toml"), **params)

    ask.start = start
    return ask


async def test_a_plan_is_performed_and_gives_the_same_when_it_is_replayed(run):
    started = await run.start(PLAN)
    assert started["run"] == "two-steps" and started["n_steps"] == 2
    with trio.fail_after(20):
        while (row := (await run("ls"))[0])["state"] != "done":
            await trio.sleep(0.05)
    assert [step["output"] for step in row["steps"]] == ["many birds", "[4 words] Sum up: many birds"]
    assert [step["n_attempts"] for step in row["steps"]] == [1, 1] and row["n_retried"] == 0
    replayed = await run("replay", run="two-steps")
    assert [(step["name"], step["is_same"]) for step in replayed] == [("ask", True), ("sum-up", True)]
    assert (await run.start(PLAN))["error"]["code"] == "unfit"


async def test_a_run_that_another_plan_gives_otherwise_is_replayed_to_an_error(run, tmp_path):
    await run.start(PLAN)
    with trio.fail_after(20):
        while (await run("ls"))[0]["state"] != "done":
            await trio.sleep(0.05)
    (tmp_path / "other.toml").write_text(PLAN.replace("many birds", "a crowd"))
    *replayed, last = await run("replay", run="two-steps", plan=str(tmp_path / "other.toml"))
    assert [(step["name"], step["is_same"]) for step in replayed] == [("ask", False)]
    assert last["error"]["code"] == "differs" and "ask" in last["error"]["text"]


async def test_a_run_waits_for_approval_and_can_be_cancelled(run):
    await run.start(PLAN + GATE, name="gated")
    await run.start(PLAN + GATE, name="stopped")
    with trio.fail_after(20):
        while {row["state"] for row in await run("ls")} != {"waiting"}:
            await trio.sleep(0.05)
        await run("approve", run="gated", step="gate")
        await run("cancel", run="stopped")
        while (rows := {row["run"]: row["state"] for row in await run("ls")}) != {
            "gated": "done",
            "stopped": "cancelled",
        }:
            await trio.sleep(0.05)
    assert rows["gated"] == "done"
    assert "over already" in (await run("cancel", run="gated"))["text"]
    assert (await run("approve", run="gated", step="nothing"))["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "text", ["#" * (61 << 10), "title = ", 'title = "x"', PLAN + PLAN.replace('title = "two steps"', ""), "a = 1"]
)
async def test_what_is_no_plan_is_refused(run, text):
    assert (await run.start(text))["error"]["code"] == "bad_run"
    assert await run("ls") == []


@pytest.mark.parametrize("name", ["gated/cancel", "gated/approve/gate", "no name", "n" * 65])
async def test_a_name_that_no_run_can_have_starts_none_and_touches_none(run, name):
    await run.start(PLAN + GATE, name="gated")
    assert (await run.start(PLAN, name=name))["error"]["code"] in ("unfit", "bad_request")
    assert (await run.start(PLAN.replace("two steps", "鳥")))["error"]["code"] == "unfit"
    assert [(row["run"], row["state"] == "cancelled") for row in await run("ls")] == [("gated", False)]


async def test_an_effect_that_is_not_there_is_tried_and_given_up(run):
    await run.start('title = "x"\n[[steps]]\nname = "a"\ndo = "magic"\nmax_tries = 2\nbackoff_s = 0.0\n')
    with trio.fail_after(20):
        while (row := (await run("ls"))[0])["state"] != "failed":
            await trio.sleep(0.05)
    assert row["steps"][0]["n_attempts"] == 2 and row["steps"][0]["is_failed"] and row["n_retried"] == 1


async def test_what_happens_to_a_run_while_a_row_is_on_its_way_out_is_shown_next(run, node_here):
    await run.start('title = "x"\n' + GATE)
    async with aclosing(watch(node_here.node, One(workspace="village", run="x"))) as rows:
        with trio.fail_after(20):
            assert (await anext(rows)).state == "waiting"
            await run("cancel", run="x")
            assert (await anext(rows)).state == "cancelled"


async def test_outputs_that_outgrow_an_entry_end_their_run_and_nothing_else(run, node_here):
    step = '[[steps]]\nname = "s{0}"\ndo = "echo"\nmax_tries = 1\ninput = "{1}"\n'
    grows = step.format(0, "x" * 1000) + "".join(step.format(n, "{previous}" * 4) for n in range(1, 9))
    explodes = step.format(0, "x" * 50_000) + step.format(1, "{s0}" * 1000)
    with trio.fail_after(20):
        for name, text in {"grows": grows, "explodes": explodes}.items():
            await run.start(f'title = "x"\n{text}', name=name)
        while {row["run"]: row["state"] for row in await run("ls")} != {"grows": "failed", "explodes": "failed"}:
            await trio.sleep(0.05)
        await run.start(PLAN)
        while (row := (await run("ls"))[-1])["state"] != "done":
            await trio.sleep(0.05)
    assert row["run"] == "two-steps"
    kinds = {event["kind"] for event in (await node_here.post("events/read")).lines}
    assert "run_step_failed" in kinds and "service_restarts" not in kinds


def test_what_stands_in_an_output_is_not_looked_into_again():
    outputs = {"a": "{b}", "b": {"n": [1, None]}, "previous": "é"}
    assert filled(["{a}{b}", {"k": "{previous} {c} {}"}, 5], outputs) == ['{b}{"n":[1,null]}', {"k": "é {c} {}"}, 5]
    with pytest.raises(BadRun, match="over"):
        filled("{a}" * 3000, {"a": "x" * 1000})
