"""A plan is stages one after the other: steps side by side, loops that end, budgets that hold. Read from the state."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.workspace.runs.core import Outside, Perform, Say, Want, next_acts, runs
from agents.workspace.runs.plan import MAX_BESIDE, BadRun, Loop, Plan, Step, read_plan, started, value_of
from protocols.workspaces.entries import Commit, Put
from storage.cid import RAW, Cid

CARD = Cid.of(b"card", RAW)


def step(name, do="echo", **more):
    return {"name": name, "do": do, **more}


def plan(*steps, **more):
    return read_plan({"title": "x", "steps": list(steps), **more})


class Solo:
    """One member alone, who performs what is due as the runner would, with outputs that `says` gives."""

    def __init__(self, village, wish, says=lambda act: act.input, made=None):
        self.ann = village().ann
        self.ann.say(Put(key="runs/x", value=value_of(wish)))
        self.says, self.made = says, made
        self.performed = []
        self.unix_s = 0.0

    @property
    def run(self):
        return runs(self.ann.space)[0]

    def acts(self, **outside):
        return list(next_acts(self.ann.space, self.ann.peer, self.run, Outside(unix_s=self.unix_s, **outside)))

    def advance(self):
        """What is due, done; was anything?"""
        acts = self.acts()
        for act in acts[:1]:
            match act:
                case Want(claim):
                    self.ann.say(claim)
                case Say(commit):
                    self.ann.say(commit)
                case Perform():
                    self.ann.say(act.begin)
                    self.performed.append(act.plan.name)
                    output = {"value": self.says(act), "key": act.key} | ({"made": self.made} if self.made else {})
                    self.ann.say(Commit(claim=act.claim.entry.cid, step=act.step, output=output))
        return bool(acts)

    def finish(self):
        for _ in range(500):
            if not self.advance():
                return self.run
        raise AssertionError("it never ends")


def test_steps_side_by_side_all_see_what_was_before_them_and_the_next_sees_them_all(village):
    wish = plan(
        step("a", input="x"),
        step("b", input="b of {previous}"),
        step("c", input="c of {previous}", beside=True),
        step("d", input="{b}+{c}+{previous}"),
    )
    solo = Solo(village, wish)
    run = solo.finish()
    assert run.state == "done" and solo.performed == ["a", "b", "c", "d"]
    assert run.steps[-1].output == "b of x+c of x+b:\nb of x\n\nc:\nc of x"


def test_each_step_of_a_stage_is_a_task_of_its_own_and_due_at_once(village):
    solo = Solo(village, plan(step("a"), step("b", beside=True)))
    claims = [act.claim.task for act in solo.acts()]
    assert claims == ["runs/x", "runs/x/beside/1"]
    for act in solo.acts():
        solo.ann.say(act.claim)
    assert [act.view.name for act in solo.acts()] == ["a", "b"]
    assert [act.view.name for act in solo.acts(busy={("runs/x", 0)})] == ["b"]


@given(st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_a_loop_goes_round_until_it_is_told_or_its_times_are_over(village, max_times, good_at, has_end):
    wish = plan(
        step("write", input="draft"),
        step("judge", loop={"to": "write", "until": "good", "max_times": max_times}),
        *([step("end", input="{judge}")] if has_end else []),
    )
    times = iter(range(1, 100))
    solo = Solo(
        village, wish, lambda act: ("GOOD" if next(times) >= good_at else "bad") if act.plan.name == "judge" else ""
    )
    run = solo.finish()
    n = min(max_times, good_at)
    assert run.state == "done"
    assert solo.performed == ["write", "judge"] * n + ["end"] * has_end
    assert len({view.number for view in run.steps}) == len(run.steps) == 2 * n + has_end


def test_a_budget_of_steps_and_one_of_tokens_end_a_run_where_everybody_sees_it(village):
    loop = {"to": "a", "until": "never", "max_times": 100}
    run = Solo(village, plan(step("a", loop=loop), max_steps=3)).finish()
    assert (run.state, run.n_done) == ("failed", 3) and "3 steps" in run.why
    made = {"usage": {"n_prompt_tokens": 30, "n_tokens": 12}}
    run = Solo(village, plan(step("a", loop=loop), max_tokens=100), made=made).finish()
    assert (run.state, run.n_done, run.n_tokens) == ("failed", 3, 126) and "100 tokens" in run.why
    lies = {"usage": {"n_prompt_tokens": -5, "n_tokens": True}}
    assert Solo(village, plan(step("a"), max_tokens=9), made=lies).finish().n_tokens == 0


def test_a_run_whose_time_is_over_fails_even_while_it_waits(village):
    wish = started(plan(step("a"), step("gate", do="approval"), max_wall_s=60), 1000.0)
    assert wish.deadline_unix_s == 1061
    solo = Solo(village, wish)
    assert solo.finish().state == "waiting" and "gate waits for approval" in solo.run.why
    solo.unix_s = 1061.0
    assert solo.finish().state == "failed" and "time of the run is over" in solo.run.why


def test_a_step_waits_for_an_agent_and_goes_to_whoever_hosts_one(village):
    ann = village("bob")
    ann.ann.say(Put(key="runs/x", value=value_of(plan(step("a", input="x"), step("b", role="writer")))))
    ann.meet()

    def settle():
        for _ in range(12):
            for member in (ann.ann, ann.bob):
                run = runs(member.space)[0]
                for act in next_acts(member.space, member.peer, run, Outside()):
                    if isinstance(act, Want):
                        member.say(act.claim)
                    elif isinstance(act, Perform):
                        member.say(act.begin)
                        member.say(
                            Commit(claim=act.claim.entry.cid, step=act.step, output={"value": 1, "key": act.key})
                        )
                    break
                for node in member.space.unsupported(member.peer):
                    from protocols.workspaces.entries import Accept, Claim, Endorse

                    cid = node.entry.cid
                    member.say(Endorse(claim=cid) if isinstance(node.says, Claim) else Accept(commit=cid))
                ann.meet()

    settle()
    assert runs(ann.ann.space)[0].state == "waiting" and "role writer" in runs(ann.ann.space)[0].why
    ann.bob.say(Put(key="agents/pen", value={"role": "writer"}, link=CARD))
    ann.meet()
    settle()
    run = runs(ann.ann.space)[0]
    assert run.state == "done" and run.steps[1].by == ann.bob.peer


@pytest.mark.parametrize(
    "wish",
    [
        {"steps": [step("a", beside=True)]},
        {"steps": [step("a"), step("a")]},
        {"steps": [step("previous")]},
        {"steps": [step("a", agent="x", role="y")]},
        {"steps": [step("a", loop={"to": "b", "until": "x"})]},
        {"steps": [step("a", loop={"to": "b", "until": "x"}), step("b")]},
        {"steps": [step("a"), step("b", beside=True), step("c", loop={"to": "b", "until": "x"})]},
        {"steps": [step("a", loop={"to": "a", "until": ""})]},
        {"steps": [step("a", loop={"to": "a", "until": "x", "max_times": 101})]},
        {"steps": [step("a"), *(step(f"b{n}", beside=True) for n in range(MAX_BESIDE))]},
        {"steps": [step("a", loop={"to": "a", "until": "x"}), step("b", beside=True, loop={"to": "a", "until": "x"})]},
        {"steps": []},
        {"steps": [step("a", timeout_s=0)]},
        {"steps": [step("a")], "max_steps": -1},
    ],
)
def test_what_is_no_plan_is_refused(wish):
    with pytest.raises(BadRun):
        read_plan({"title": "x", **wish})


def test_a_plan_says_the_same_after_it_was_written_down():
    wish = Plan(title="x", steps=(Step(name="a", do="b", loop=Loop(to="a", until="x")),), max_steps=3)
    assert read_plan(value_of(wish)) == wish
