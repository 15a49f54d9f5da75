"""With torch: the worker aggregates on its device, here the processor, and every result is that of numpy."""

import json
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio

from agents.engine.aggregation import Aggregate, Aggregated, FlatUpdate
from agents.engine.client import open_engine
from agents.errors import EngineFailed
from agents.federation.node.device import Device
from agents.federation.node.offload import Offloaded
from tests.agents.aggregation.examples import N_PARAMS, RECIPES, digest, examples

pytestmark = pytest.mark.engine
VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "aggregation.json").read_text())


async def test_every_recipe_has_its_digest_by_way_of_the_worker(tmp_path):
    async with open_engine(threads=1, device="cpu") as trainer:
        device = Device(trainer, lambda: True, 0)
        for name, recipe in RECIPES.items():
            aggregating = Offloaded(device, tmp_path)
            found = await trio.to_thread.run_sync(
                partial(digest, examples(N_PARAMS), recipe, aggregating=aggregating)
            )  # fmt: skip
            assert found == VECTORS[name], name
        assert device.is_for(0), "it did all of them itself"


def request_of(folder: Path) -> Aggregate:
    update = folder / "update"
    np.ones(4, np.float32).tofile(update)
    one = {"path": str(update), "cid": b"1", "peer": "p", "weight": 1.0, "n_steps": 1, "staleness": 0}
    return Aggregate(n_params=4, updates=(FlatUpdate(**one),), rule={"rule": "fedavg"}, out=str(folder / "out"))


def test_a_device_that_rounds_otherwise_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    from agents.engine.worker import aggregation

    there = aggregation.place_on

    def flushing(device, block, is_cancelled=lambda: False):
        place = there(device, block, is_cancelled)
        return place._replace(take=lambda block: place.take(np.where(np.abs(block) < 1e-37, np.float32(0.0), block)))

    assert isinstance(aggregation.aggregate_on_device(request_of(tmp_path), lambda: False), Aggregated)
    (tmp_path / "out").unlink()
    monkeypatch.setattr(aggregation, "place_on", flushing)
    with pytest.raises(EngineFailed, match="rounds otherwise"):
        aggregation.aggregate_on_device(request_of(tmp_path), lambda: False)
    assert not (tmp_path / "out").exists()


def test_a_rule_that_makes_nothing_of_updates_says_why_and_that_is_an_answer(tmp_path):
    from agents.engine.worker.aggregation import aggregate_on_device

    request = msgspec.structs.replace(request_of(tmp_path), rule={"rule": "krum", "n_bad": 1})
    assert "Krum bears 1 bad updates" in aggregate_on_device(request, lambda: False).refused


def test_an_aggregation_that_nobody_waits_for_ends_at_the_next_block(tmp_path):
    from agents.engine.worker.aggregation import aggregate_on_device

    with pytest.raises(EngineFailed, match="cancelled"):
        aggregate_on_device(request_of(tmp_path), lambda: True)
