"""`covey fl forget`: what is done with makes room for another, and what others count on stays."""

import trio

from agents.federation.node import service
from daemon.cli.fl_forms import forgotten
from tests.daemon.test_fl_operations import OTHER, SETTINGS, data, over, planned

__all__ = ["data"]


async def test_what_is_over_is_let_go_of_and_what_went_is_told(node_here, data, monkeypatch):
    monkeypatch.setattr(service, "MAX_EXPERIMENTS", 1)
    experiment = await planned(node_here)
    await node_here.post("fl/join", experiment=experiment, data=data)
    await node_here.post("fl/start", experiment=experiment)
    await over(node_here, experiment)
    error = (await node_here.post("fl/plan", title="more", rounds=1, **SETTINGS)).json["error"]
    assert error["code"] == "too_many_experiments" and "covey fl forget EXPERIMENT" in error["text"]
    gone = (await node_here.post("fl/forget", experiment=experiment[-9:])).json
    assert (gone["experiment"], gone["title"]) == (experiment, "alone") and gone["n_bytes"] > 100
    lines = list(forgotten(gone))
    assert lines[0] == "forgotten: alone" and "covey repo gc frees" in lines[-1]
    assert (await node_here.post("fl/status")).json == []
    again = (await node_here.post("fl/forget", experiment=experiment)).json["error"]
    assert again["code"] == "unknown_experiment" and "covey fl join" in again["text"]
    assert (await node_here.post("fl/plan", title="more", rounds=1, **SETTINGS)).status == 200
    assert "experiment_forgotten" in {event.kind for event in node_here.node.catalog.events.since()}


async def test_one_that_others_count_on_is_not_let_go_of(node_here, data):
    experiment = await planned(node_here, members=[OTHER])
    error = (await node_here.post("fl/forget", experiment=experiment)).json["error"]
    assert error["code"] == "unfit" and f"covey fl cancel {experiment}" in error["text"]
    await node_here.post("fl/cancel", experiment=experiment)
    assert (await node_here.post("fl/forget", experiment=experiment)).status == 200


async def test_a_watch_ends_where_the_experiment_is_let_go_of(node_here):
    experiment = await planned(node_here)
    one = node_here.node.rounds.all()[0]
    lines = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def watch():
                lines.extend((await node_here.post("fl/watch", experiment=experiment)).lines)

            nursery.start_soon(watch)
            await trio.sleep(0.1)
            await node_here.node.rounds.forget(one.cid)
    assert lines[-1]["error"]["code"] == "unknown_experiment"
