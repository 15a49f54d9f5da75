"""Training as an operation: what it hands on to the trainer, what it survives, and which events tell how it ended."""

import dataclasses
import json
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from agents.adapters.ports import Ports
from agents.engine import messages
from agents.engine.messages import ModelCard
from agents.errors import BackendRefused, BadData, EngineDied, InUse
from agents.federation.node.training import find_base
from agents.federation.tasks import BadTask
from agents.models import BadName
from agents.training import keep, runs
from agents.training.runs import Run, State
from agents.training.settings import Settings
from daemon.api.operation import Nothing
from daemon.api.operations import model as models
from daemon.api.operations import model_export
from daemon.api.operations.train import Checked, Step, Train, Trained, train
from daemon.api.operations.training import Named, Resume, Show, ls, resume, rm, show
from daemon.training import Busy
from storage.blockstore import Visibility
from storage.catalog.models import ModelRow
from storage.cid import DAG_CBOR, Cid
from storage.errors import TargetExists

BASE = str(Cid.of(b"base", DAG_CBOR))
CARD = ModelCard(
    name="tiny", fingerprint=BASE, architecture="LlamaForCausalLM", n_params=1, n_layers=1, hidden_size=8, vocabulary=9,
    context_tokens=64, dtype="F32", has_chat_template=True,
)  # fmt: skip
TINY = ModelRow(
    name="tiny", fingerprint=BASE, folder="/m", source="tiny", card=msgspec.to_builtins(CARD), added_unix_s=0.0
)
READY = messages.TrainReady(step=0, n_steps=2, n_train=9, n_held_out=1, n_params=5, loss_before=2.0, notes=("cut",))
ONE = messages.TrainStep(step=1, n_steps=2, loss=2.0, tokens_per_second=10.0, left_s=1.0)


class Trainer:
    """Says what it is told to, attempt by attempt; an exception ends one."""

    def __init__(self, *attempts):
        self.attempts, self.asked, self.n_cancelled = list(attempts), [], 0

    @asynccontextmanager
    async def call(self, request):
        self.asked.append(request)
        yield Replies(self, self.attempts.pop(0))


class Replies:
    def __init__(self, trainer, said):
        self.trainer, self.said = trainer, iter(said)

    def __aiter__(self):
        return self

    async def __anext__(self):
        item = next(self.said, None)
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item() if callable(item) else item

    def cancel(self):
        self.trainer.n_cancelled += 1


@pytest.fixture(autouse=True)
def fox(tmp_path):
    """The data."""
    path = tmp_path / "fox.txt"
    path.write_text("the quick brown fox")
    return str(path)


@pytest.fixture
def given(node_here):
    """The node with a model and a trainer of the test's; `finish(name)` writes what a training leaves."""
    node = node_here.node
    node.catalog.models.upsert(TINY)

    def with_trainer(*attempts):
        trainer = Trainer(*attempts)
        return dataclasses.replace(node, trainer=trainer, events=Events()), trainer

    return with_trainer


class Events:
    def __init__(self):
        self.told = []

    def note(self, kind, fields):
        self.told.append((kind, fields))


def leave_run(node, name="fox", step=1):
    """An unfinished training with a checkpoint, as the trainer leaves it; returns the checkpoint."""
    folder = runs.run_folder(node.home.training, name)
    run = Run(name=name, model="tiny", base=BASE, trained_on=BASE, data="d", data_name="fox.txt", settings=Settings())
    if runs.read_run(folder) is None:
        runs.begin(folder, run, b"data")
    staging = folder / runs.CHECKPOINTS / ".writing"
    staging.mkdir()
    state = State(
        run=run, step=step, n_steps=2, n_examples=4, n_tokens=9, curve=[(1, 2.5)], evaluations=[], loss_before=3.0,
        environment={"cpu": "x"},
    )  # fmt: skip
    (staging / runs.STATE_FILE).write_bytes(msgspec.json.encode(state))
    for file in (runs.ADAPTER_FILE, runs.OPTIMIZER_FILE):
        (staging / file).write_bytes(b"tensors" * 100)
    kept = runs.keep_checkpoint(folder, staging, step)
    return messages.TrainCheckpoint(step=step, folder=str(kept.folder), cid=str(kept.cid))


def finish(node, name="fox"):
    """The adapter's folder, as the trainer leaves it."""
    out = node.home.training / name
    out.mkdir()
    record = {"losses": [[1, 2.0], [2, 1.5]], "held_out_losses": [[0, 2.0]], "n_steps": 2, "loss_after": 1.0}
    (out / "training.json").write_text(json.dumps(record))
    (out / "adapter_model.safetensors").write_bytes(b"")
    return messages.Trained(
        folder=str(out), cid="c", loss_before=2.0, loss_after=1.0, n_tokens=9, n_steps=2, best_step=2, train_s=0.1
    )


async def told(stream):
    return [item async for item in stream]


def kinds(node):
    return [kind for kind, _ in node.events.told]


async def test_steps_and_the_result_with_its_curves_are_told_and_noted(given, fox):
    node, trainer = given([READY, ONE, lambda: finish(node)])
    items = await told(train(node, Train(data=fox, plot=True)))
    assert [type(item) for item in items] == [Step, Step, Step, Trained]
    assert (items[2].n_done, items[2].n_total, items[2].loss, items[2].left_s) == (1, 2, 2.0, 1.0)
    assert items[-1].losses == [(1.0, 2.0), (2.0, 1.5)] and "held out" in items[-1].plot
    assert items[-1].warnings == ("cut",)
    (asked,) = trainer.asked
    assert (asked.name, asked.out, asked.data) == ("fox", str(node.home.training / "fox"), fox)
    assert node.training_now == set()


async def test_checkpoints_are_held_one_at_a_time_and_none_when_it_is_over(given, fox):
    seen = []

    def look(node):
        seen.append([(row.kind, row.version, str(row.files)) for row in keep.held(node.adapters.ports, "fox")])
        return ONE

    node, _ = given([
        READY, lambda: leave_run(node, step=1), lambda: look(node), lambda: leave_run(node, step=2),
        lambda: look(node), lambda: finish(node),
    ])  # fmt: skip
    await told(train(node, Train(data=fox, name="fox")))
    ports: Ports = node.adapters.ports
    assert [[row[:2] for row in rows] for rows in seen] == [[("checkpoint", 1)], [("checkpoint", 2)]]
    assert keep.held(ports, "fox") == []
    assert not [pin for pin in ports.pins.list() if pin.name.startswith("artifact/")]


async def test_a_held_checkpoint_is_private_and_comes_back_where_the_disk_lost_it(given, fox):
    node, _ = given([READY, lambda: leave_run(node), EngineDied("killed")], [EngineDied("x")], [EngineDied("x")])
    with pytest.raises(EngineDied):
        await told(train(node, Train(data=fox, name="fox")))
    ports = node.adapters.ports
    (row,) = keep.held(ports, "fox")
    assert ports.roots.level(row.manifest) is Visibility.PRIVATE
    folder = runs.run_folder(node.home.training, "fox")
    (checkpoint,) = runs.checkpoints(folder)
    assert row.files == checkpoint.cid
    (checkpoint.folder / runs.STATE_FILE).unlink()
    assert runs.whole(folder)[0] is None
    assert keep.mend(ports, folder)
    assert runs.whole(folder)[0] == checkpoint


async def test_the_trainers_death_is_told_and_the_training_goes_on_from_its_checkpoint(given, fox):
    node, trainer = given(
        [READY, ONE, lambda: leave_run(node), EngineDied("the engine died: it was killed by SIGKILL")],
        [READY, lambda: finish(node)],
    )
    items = await told(train(node, Train(data=fox, name="fox", fresh=True)))
    assert isinstance(items[-1], Trained)
    assert any("SIGKILL" in item.step and item.n_done == 1 for item in items[:-1])
    first, second = trainer.asked
    assert first.is_fresh and first.data == fox
    assert second.data is None and not second.is_fresh
    assert "training_interrupted" in kinds(node) and "training_finished" in kinds(node)


async def test_a_trainer_that_dies_again_and_again_is_given_up(given, fox):
    node, trainer = given(*[[READY, EngineDied("out of memory")] for _ in range(5)])
    with pytest.raises(EngineDied, match="memory"):
        await told(train(node, Train(data=fox, name="fox")))
    assert len(trainer.asked) == 2
    assert kinds(node)[-1] == "training_failed"


async def test_who_leaves_has_the_trainer_pause_and_keeps_its_checkpoint(given, fox):
    paused = messages.TrainPaused(step=1, n_steps=2)
    node, trainer = given([READY, ONE, lambda: leave_run(node), paused])
    stream = train(node, Train(data=fox, name="fox"))
    async for item in stream:
        if isinstance(item, Step) and item.loss is not None:
            break
    await stream.aclose()
    assert trainer.n_cancelled == 1
    assert len(keep.held(node.adapters.ports, "fox")) == 1
    assert kinds(node)[-1] == "training_paused"
    assert node.training_now == set()


async def test_one_name_is_trained_once_at_a_time(given, fox):
    node, _ = given([READY, ONE, None])
    stream = train(node, Train(data=fox, name="fox"))
    await stream.__anext__()
    await stream.__anext__()
    with pytest.raises(Busy, match="under way"):
        await told(train(node, Train(data=fox, name="fox")))
    await stream.aclose()


async def test_a_model_that_is_trained_on_is_not_removed_until_that_is_over(given, fox):
    node, _ = given([READY, ONE, None])
    stream = train(node, Train(data=fox, name="fox"))
    await stream.__anext__()
    await stream.__anext__()
    with pytest.raises(InUse, match=r"tiny is in use by the training 'fox'\. End that first: .*Ctrl-C pauses"):
        await models.rm(node, models.Named(name="tiny"))
    (running,) = await ls(node, Nothing())  # before anything of it is on the disk
    assert (running.name, running.state, running.n_steps) == ("fox", "running", None)
    await stream.aclose()
    assert (await models.rm(node, models.Named(name="tiny"))).name == "tiny"


async def test_what_needs_the_weights_of_a_backends_model_is_refused(given, fox, tmp_path):
    node, trainer = given()
    row = dataclasses.replace(TINY, source="backend:http://127.0.0.1:8000/v1")
    node.catalog.models.upsert(row)
    out = str(tmp_path / "out")
    for asked in (
        lambda: told(train(node, Train(data=fox, model="tiny"))),
        lambda: model_export.merge(node, model_export.Merge(model="tiny", adapter="fox", out=out)),
        lambda: model_export.export(node, model_export.Export(model="tiny", out=out)),
        lambda: models.rm(node, models.Named(name="tiny")),
    ):
        with pytest.raises(BackendRefused, match="tiny is the model of the backend, which has its weights"):
            await asked()
    with pytest.raises(BadTask, match="not here"):
        find_base(node.catalog, "tiny")
    assert trainer.asked == []


class Workshop:
    """Does at once what is asked for, and notes what that was."""

    def __init__(self):
        self.asked = []

    async def one(self, request):
        self.asked.append(type(request).__name__)
        if isinstance(request, messages.Merge):
            return messages.Merged(card=CARD, n_layers=1)
        return messages.Exported(path=request.out, n_bytes=1, n_tensors=1)

    @asynccontextmanager
    async def call(self, request):
        self.asked.append(type(request).__name__)

        async def replies():
            yield messages.Imported(card=CARD)

        yield replies()


async def test_work_on_whole_models_keeps_neither_answers_nor_trainings_waiting(given, tmp_path):
    node, trainer = given()
    node = dataclasses.replace(node, workshop=Workshop())
    out = str(tmp_path / "out")
    await model_export.merge(node, model_export.Merge(model="tiny", adapter=str(tmp_path), out=out))
    await model_export.export(node, model_export.Export(model="tiny", out=out))
    (pulled,) = await told(models.pull(node, models.Pull(source=str(tmp_path), name="new")))
    assert (pulled.name, node.workshop.asked) == ("new", ["Merge", "Export", "Import"])
    assert trainer.asked == [] and node.engine.n_calls == node.engine.health().n_starts == 0


async def test_a_training_that_fails_says_why_in_an_event_too(given, fox):
    node, _ = given([BadData("line 3: not JSON")])
    with pytest.raises(BadData, match="line 3"):
        await told(train(node, Train(data=fox, name="fox")))
    assert node.events.told[-1] == (
        "training_failed", {"name": "fox", "code": "bad_data", "text": "line 3: not JSON"},
    )  # fmt: skip


async def test_data_is_looked_through_without_a_model_or_a_trainer(given, tmp_path):
    node, trainer = given()
    node.catalog.models.remove("tiny")
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    (checked,) = await told(train(node, Train(data=str(path), is_check=True)))
    assert isinstance(checked, Checked) and (checked.form, checked.n_examples, checked.n_bad) == ("completion", 2, 0)
    path.write_text(path.read_text() + "{\n")
    stream = train(node, Train(data=str(path), is_check=True))
    seen = await stream.__anext__()
    with pytest.raises(BadData, match="1 lines"):
        await stream.__anext__()
    assert list(seen.bad) == [{"line": 3, "text": "not JSON (Input data was truncated)"}]
    assert trainer.asked == []


async def test_bad_data_is_refused_before_a_process_is_started_for_it(given, tmp_path):
    node, trainer = given()
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{\n')
    with pytest.raises(BadData, match="line 2"):
        await told(train(node, Train(data=str(tmp_path / "x.jsonl"))))
    assert trainer.asked == [] and node.events.told == []


async def test_what_comes_from_stdin_needs_a_name(given, tmp_path):
    node, _ = given()
    (tmp_path / "stdin").write_text("a story")
    with pytest.raises(BadName, match="--name"):
        await told(train(node, Train(data=str(tmp_path / "stdin"))))


async def test_trainings_are_listed_shown_resumed_and_given_up(given):
    node, trainer = given([READY, lambda: finish(node, "cat")])
    leave_run(node, "cat")
    leave_run(node, "dog")
    assert [(one.name, one.state, one.step) for one in await ls(node, Nothing())] == [
        ("cat", "unfinished", 1), ("dog", "unfinished", 1),
    ]  # fmt: skip
    details = await show(node, Show(name="dog", plot=True))
    assert details.losses == [(1.0, 2.5)] and details.held_out_losses == [(0.0, 3.0)] and details.plot
    assert details.settings["rank"] == 8 and details.checkpoint
    assert isinstance((await told(resume(node, Resume(name="cat", force=True))))[-1], Trained)
    assert trainer.asked[0].data is None and trainer.asked[0].is_forced
    await rm(node, Named(name="dog"))
    runs.discard(runs.run_folder(node.home.training, "cat"))
    (cat,) = await ls(node, Nothing())
    assert (cat.name, cat.state, cat.loss, cat.is_published) == ("cat", "finished", 1.0, False)
    assert (await show(node, Show(name="cat"))).losses == [(1.0, 2.0), (2.0, 1.5)]
    for ask in (show(node, Show(name="dog")), rm(node, Named(name="dog"))):
        with pytest.raises(runs.NoRun, match="covey training ls"):
            await ask
    with pytest.raises(runs.NoRun):
        await told(resume(node, Resume(name="dog")))


async def test_curves_are_drawn_into_a_file(given, tmp_path):
    node, _ = given()
    leave_run(node, "dog")
    await show(node, Show(name="dog", svg=str(tmp_path / "dog.svg")))
    assert (tmp_path / "dog.svg").read_text().startswith("<svg")


async def test_a_file_that_is_there_is_drawn_over_by_no_curves_and_refused_before_anything_is_trained(
    given, fox, tmp_path
):
    node, trainer = given([READY, lambda: finish(node)])
    leave_run(node, "dog")
    (tmp_path / "holiday.svg").write_text("the sea")
    svg = str(tmp_path / "holiday.svg")
    for ask in (
        show(node, Show(name="dog", svg=svg)),
        told(train(node, Train(data=fox, svg=svg))),
        told(resume(node, Resume(name="dog", svg=svg))),
    ):
        with pytest.raises(TargetExists):
            await ask
    assert (tmp_path / "holiday.svg").read_text() == "the sea" and not trainer.asked


async def test_what_the_operation_takes_the_trainer_takes(given, fox):
    greatest = {
        "rank": 512, "alpha": 4096.0, "targets": ("q" * 64,) * 16, "n_steps": 1_000_000, "batch": 1024,
        "context_tokens": 1 << 17, "learning_rate": 1.0, "held_out_frac": 0.5, "seed": (1 << 63) - 1,
        "accumulate": 1024, "n_epochs": 10_000.0, "n_warmup": 1_000_000, "weight_decay": 1.0, "clip_norm": 1e6,
        "dpo_beta": 100.0, "n_eval": 100_000, "eval_every": 1_000_000, "patience": 10_000, "min_gain": 100.0,
        "checkpoint_every": 1_000_000,
    }  # fmt: skip
    node, trainer = given([lambda: finish(node)])
    params = msgspec.convert({"data": fox, "name": "fox"} | greatest, Train)
    assert await told(train(node, params))
    (asked,) = trainer.asked
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=messages.Request) == asked
    for name, value in greatest.items():
        assert getattr(asked.settings, name) == value
        if name != "targets":
            with pytest.raises(msgspec.ValidationError):
                msgspec.convert({"data": fox, "name": "fox", name: value * 2}, Train)


def test_every_setting_can_be_asked_for():
    assert set(Settings.__struct_fields__) - set(Train.__struct_fields__) == {"form"}
    assert {Path(field).name for field in Train.__struct_fields__} >= {"data", "kind"}
    for name in set(Settings.__struct_fields__) - {"form"}:
        assert getattr(Train(data="x"), name) == getattr(Settings(), name)
