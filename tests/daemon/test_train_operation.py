"""Training as an operation: what it hands on to the engine, and which events tell how it ended."""

from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from agents.engine import messages
from agents.errors import BadData
from agents.models import Desk
from daemon.api.operations.train import Step, Train, Trained, train
from storage.catalog.models import ModelRow

TINY = ModelRow(name="tiny", fingerprint="f", folder="/m", source="tiny", card={}, added_unix_s=0.0)
TRAINED = messages.Trained(folder="/t/fox", loss_before=2.0, loss_after=1.0, n_tokens=9, train_s=0.1)


class Engine:
    def __init__(self, *said):
        self.said, self.asked = said, None

    async def one(self, request):
        return None

    @asynccontextmanager
    async def call(self, request):
        self.asked = request

        async def replies():
            for item in self.said:
                if isinstance(item, Exception):
                    raise item
                yield item

        yield replies()


def node_with(engine):
    told = []
    return SimpleNamespace(
        engine=engine,
        desk=Desk(engine),
        home=SimpleNamespace(training=Path("/t")),
        config=SimpleNamespace(engine=SimpleNamespace(model="tiny")),
        catalog=SimpleNamespace(models=SimpleNamespace(list=lambda: [TINY])),
        events=SimpleNamespace(note=lambda kind, fields: told.append((kind, fields))),
        told=told,
    )


async def test_steps_and_the_result_are_told_and_noted():
    engine = Engine(messages.TrainStep(step=1, n_steps=1, loss=2.0), TRAINED)
    node = node_with(engine)
    items = [item async for item in train(node, Train(data="/fox.txt", name="fox"))]
    assert [type(item) for item in items] == [Step, Trained]
    assert engine.asked.out == "/t/fox"
    assert [kind for kind, _ in node.told] == ["training_started", "training_finished"]


async def test_a_training_that_fails_says_why_in_an_event_too():
    node = node_with(Engine(BadData("line 3: not JSON")))
    with pytest.raises(BadData, match="line 3"):
        [item async for item in train(node, Train(data="/fox.jsonl", name="fox"))]
    assert node.told[1:] == [("training_failed", {"name": "fox", "code": "bad_data", "text": "line 3: not JSON"})]


async def test_what_the_operation_takes_the_engine_takes():
    engine = Engine(TRAINED)
    greatest = {
        "rank": 512, "alpha": 4096.0, "targets": ("q" * 64,) * 16, "n_steps": 1_000_000, "batch": 1024,
        "context_tokens": 1 << 17, "learning_rate": 1.0, "held_out_frac": 0.5, "seed": (1 << 63) - 1,
    }  # fmt: skip
    params = msgspec.convert({"data": "/fox.txt", "name": "fox"} | greatest, Train)
    assert [item async for item in train(node_with(engine), params)]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(engine.asked), type=messages.Request) == engine.asked
    for name, value in greatest.items():
        if name != "targets":
            with pytest.raises(msgspec.ValidationError):
                msgspec.convert({"data": "/fox.txt", "name": "fox", name: value * 2}, Train)
