"""`covey fl join` where a plan asks what a node has: measured or said, and one line where it is too little."""

from pathlib import Path

import numpy as np
import pytest

from daemon.cli.fl_forms import FORMS
from protocols.entry import make_entry
from protocols.rounds import Join, content_of, scope_of
from storage.keys import Identity

PLAN = (
    'title = "strong"\nmin_participants = 1\n{more}\n[task]\ntask = "softmax"\nn_features = 4\nn_classes = 3\n'
    "held_out = 0.1\n{tables}"
)


@pytest.fixture
def data(tmp_path: Path) -> str:
    noise = np.random.default_rng(1)
    np.savez(tmp_path / "data.npz", x=noise.normal(size=(30, 4)), y=noise.integers(0, 3, 30))
    return str(tmp_path / "data.npz")


async def planned(node_here, folder: Path, tables: str, more: str = ""):
    (folder / "plan.toml").write_text(PLAN.format(tables=tables, more=more))
    return await node_here.post("fl/plan", file=str(folder / "plan.toml"))


async def test_who_has_too_little_is_told_what_in_one_line_and_may_follow(node_here, tmp_path, data):
    made = (await planned(node_here, tmp_path, '[needs]\nn_samples = 28\ndevice = "cuda"\n')).json
    assert any("their word" in one or "their" in one for one in made["undecidable"])
    experiment = made["experiment"]
    answer = await node_here.post("fl/join", experiment=experiment, data=data)
    error = answer.json["error"]
    assert answer.status == 403 and error["code"] == "unmet_needs" and "\n" not in error["text"]
    assert "n_samples of 28 or more, and 27 is said; device cuda, and" in error["text"]
    followed = (await node_here.post("fl/join", experiment=experiment)).json
    assert not followed["is_training"] and followed["says"] == ""
    (row,) = (await node_here.post("fl/status")).json
    assert row["n_joined"] == 0
    joined = (
        await node_here.post("fl/join", experiment=experiment, data=data, has=["n_samples=1000", "device=cuda"])
    ).json
    assert joined["is_training"] and joined["says"] == "device cuda, n_samples 1,000"


async def test_what_the_plan_does_not_ask_for_is_not_told_and_another_claim_joins_again(node_here, tmp_path, data):
    made = (await planned(node_here, tmp_path, "[needs]\nmemory_bytes = 1000\n")).json["experiment"]
    joined = (await node_here.post("fl/join", experiment=made, data=data)).json
    assert joined["is_training"] and joined["says"].startswith("memory_bytes ") and "n_samples" not in joined["says"]
    (one,) = node_here.node.rounds.all()
    n_events = one.book.n_events
    await node_here.post("fl/join", experiment=made, data=data)
    assert one.book.n_events == n_events
    again = (await node_here.post("fl/join", experiment=made, data=data, has=["memory_bytes=2000"])).json
    assert again["says"] == "memory_bytes 2,000" and one.book.n_events == n_events + 1


async def test_what_would_count_for_nothing_is_refused_and_not_passed_over(node_here, tmp_path, data):
    made = (await planned(node_here, tmp_path, "[needs]\nmemory_bytes = 1000\n")).json["experiment"]
    for changes, says in (
        ({"has": ["n_samples=9"], "data": data}, "does not ask for n_samples"),
        ({"has": ["memory_bytes=2000"]}, "say --data too"),
        ({"rank": 2}, "say --data too"),
    ):
        error = (await node_here.post("fl/join", experiment=made, **changes)).json["error"]
        assert error["code"] == "unfit" and says in error["text"]


async def test_who_has_too_few_examples_for_the_budget_of_one_round_is_told_before_it_trains(node_here, tmp_path, data):
    hidden = '[privacy]\nnoise = "examples"\nbound = 1.0\nmultiplier = 1.0\nbudget = { epsilon = 2.0, delta = 1e-5 }\n'
    experiment = (await planned(node_here, tmp_path, hidden)).json["experiment"]
    error = (await node_here.post("fl/join", experiment=experiment, data=data)).json["error"]
    assert error["code"] == "bad_task" and "of each of 27 examples, and the plan's budget is 2 at" in error["text"]
    assert not (await node_here.post("fl/join", experiment=experiment)).json["is_training"]
    many = np.random.default_rng(2).normal(size=(100_000, 4))
    np.savez(tmp_path / "many.npz", x=many, y=np.arange(100_000) % 3)
    joined = (await node_here.post("fl/join", experiment=experiment, data=str(tmp_path / "many.npz"))).json
    assert joined["is_training"] and joined["limits"] == []
    few = (await planned(node_here, tmp_path, hidden, "rounds = 3000")).json["experiment"]
    told = (await node_here.post("fl/join", experiment=few, data=str(tmp_path / "many.npz"))).json
    (note,) = told["limits"]
    assert list(FORMS["fl/join"](told))[-1] == f"note: {note}"
    assert "of its 3000 rounds on 90,000 examples: then this node leaves" in note


@pytest.mark.parametrize("has", ["luck=1", "n_samples", "n_samples=many", "n_samples=-1", "device=A B"])
async def test_what_no_node_can_have_is_refused(node_here, tmp_path, data, has):
    made = (await planned(node_here, tmp_path, "[needs]\nn_samples = 1\n")).json["experiment"]
    assert (await node_here.post("fl/join", experiment=made, data=data, has=[has])).json["error"]["code"] == "unfit"


@pytest.mark.parametrize(
    ("tables", "more", "says"),
    [
        ('[chances]\nby = "n_samples"\nmost = 9\n', "", "nobody is drawn"),
        ('[chances]\nby = "luck"\nmost = 9\n', "selected = 1", "luck"),
        ("[needs]\nluck = 9\n", "", "luck"),
        ("", "needs = 7", "needs is a table"),
    ],
)
async def test_a_plan_that_weighs_or_needs_what_it_cannot_is_refused(node_here, tmp_path, tables, more, says):
    error = (await planned(node_here, tmp_path, tables, more)).json["error"]
    assert error["code"] == "bad_plan" and says in error["text"]


async def test_who_would_train_in_what_is_over_or_cancelled_is_told_so_and_follows(node_here, tmp_path, data):
    experiment = (await planned(node_here, tmp_path, "")).json["experiment"]
    assert (await node_here.post("fl/join", experiment=experiment, data=data)).status == 200
    assert (await node_here.post("fl/cancel", experiment=experiment, reason="wrong data")).status == 200
    (one,) = node_here.node.rounds.all()
    n_events = one.book.n_events
    error = (await node_here.post("fl/join", experiment=experiment, data=data, rank=0)).json["error"]
    assert error["code"] == "unfit" and "nobody trains in it any more (cancelled: wrong data)" in error["text"]
    assert (await node_here.post("fl/join", experiment=experiment)).status == 200
    error = (await node_here.post("fl/start", experiment=experiment)).json["error"]
    assert error["code"] == "unfit" and "it is cancelled: wrong data" in error["text"]
    left = (await node_here.post("fl/leave", experiment=experiment)).json["text"]
    assert left == "nobody trains in it any more: it is cancelled: wrong data"
    gone = (await node_here.post("fl/result", experiment=experiment)).json["error"]["text"]
    assert gone.startswith("round 1 has no result: ")
    assert one.book.n_events == n_events


async def test_a_start_says_who_is_in_and_who_is_not_and_an_experiment_here_has_a_short_name(node_here, tmp_path, data):
    other = Identity(b"o" * 32).peer_id
    experiment = (await planned(node_here, tmp_path, "", f'members = ["{other}"]')).json["experiment"]
    assert (await node_here.post("fl/join", experiment=experiment[:20], data=data)).json["experiment"] == experiment
    said = (await node_here.post("fl/start", experiment=experiment)).json["text"]
    assert said.startswith(
        f"started with 1 participants: me. Without …{str(other)[-8:]}: who joins now trains in a later round."
    )
    assert (await node_here.post("fl/start", experiment=experiment)).json["text"].startswith("it has started already: ")


async def test_who_is_not_at_the_start_without_a_coordinator_is_told_that_it_is_too_late(node_here, tmp_path, data):
    other = Identity(b"o" * 32)
    more = f'gossip = "push_sum"\nmembers = ["{other.peer_id}"]'
    experiment = (await planned(node_here, tmp_path, "", more)).json["experiment"]
    (one,) = node_here.node.rounds.all()
    join = make_entry(other, Join.kind, scope_of(one.cid), 0, [], content_of(Join()))
    await one._hear([join])
    said = (await node_here.post("fl/start", experiment=experiment)).json["text"]
    assert "Without me: nobody comes in later." in said
    error = (await node_here.post("fl/join", experiment=experiment, data=data)).json["error"]
    assert error["code"] == "unfit" and "it began without this node" in error["text"]
