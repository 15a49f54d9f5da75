"""What tasks want of the engine, as it is asked of the node's trainer."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

import msgspec
import pytest
import trio

from agents.engine import messages
from agents.engine.messages import ModelCard, Reply, Request
from agents.errors import EngineFailed
from agents.federation.node.training import RoundEngine, find_base
from agents.federation.tasks import BadTask, Fitted, Fitting, Score, Trained, Training
from agents.federation.updates.tensors import Layout, flush, new_vector, read_layout
from agents.training.settings import ExampleNoise, FitSettings
from simulations.world import TINY
from storage.catalog import Catalog
from storage.catalog.models import ModelRow

LAYER = "model.layers.0.self_attn.q_proj"
TRAINED = messages.Trained(folder="f", loss_before=2.0, loss_after=1.5, n_tokens=900, train_s=1.0)
READY = messages.TrainReady(step=0, n_steps=3, n_train=40, n_held_out=4, n_params=8, loss_before=2.0)


class FakeTrainer:
    """Answers as it is told to, and notes what it was asked."""

    def __init__(self, *replies: Reply) -> None:
        self.replies: Sequence[Reply] = replies
        self.asked: list[Request] = []
        self.layouts: list[Layout] = []

    @asynccontextmanager
    async def call(self, request: Request) -> AsyncIterator[AsyncIterator[Reply]]:
        await trio.lowlevel.checkpoint()
        assert isinstance(request, messages.Train | messages.Measure)
        self.asked.append(request)
        self.layouts.append(read_layout(Path(str(request.initial))))

        async def told() -> AsyncIterator[Reply]:
            for reply in self.replies:
                await trio.lowlevel.checkpoint()
                yield reply

        yield told()

    async def one(self, request: Request) -> Reply:
        async with self.call(request) as replies:
            async for reply in replies:
                last = reply
        return last


class FakeFitter(FakeTrainer):
    """Answers a request for a module."""

    async def one(self, request: Request) -> Reply:
        await trio.lowlevel.checkpoint()
        self.asked.append(request)
        return self.replies[0]


def nobody_else(row: ModelRow, use: str) -> AbstractContextManager[None]:
    """A model that nobody wants to remove."""
    return nullcontext()


def put(path: Path, layout: Layout) -> Path:
    flush(new_vector(path, layout), path)
    return path


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """It knows one model, a converted copy of another."""
    (tmp_path / "model").mkdir()
    put(tmp_path / "model" / "model.safetensors", Layout.of({f"{LAYER}.weight": (4, 6)}))
    card: ModelCard = msgspec.structs.replace(TINY, fingerprint="bafycopy", derived_from="bafysource")
    catalog = Catalog.open(tmp_path / "catalog.db")
    catalog.models.upsert(
        ModelRow(
            name="mine",
            fingerprint="bafycopy",
            derived_from="bafysource",
            folder=str(tmp_path / "model"),
            source="x",
            card=msgspec.to_builtins(card),
            added_unix_s=1.0,
        )
    )
    yield catalog
    catalog.close()


def wish(folder: Path, **changes: object) -> Training:
    initial = put(folder / "initial", Layout.of({f"base_model.model.{LAYER}.lora_B.weight": (4, 2)}))
    made = Training(
        base="bafysource", data=folder / "text", kind="auto", initial=initial, out=folder / "out", rank=2, alpha=4.0,
        targets=("q_proj",), n_steps=3, batch=2, context_tokens=16, learning_rate=0.1, held_out=0.2, seed=77,
    )  # fmt: skip
    return made._replace(**changes)


def test_a_base_is_found_by_its_name_and_by_what_it_was_made_from(catalog: Catalog) -> None:
    assert find_base(catalog, "mine") == find_base(catalog, "bafysource") == find_base(catalog, "bafycopy")
    assert find_base(catalog, "mine").fingerprint == "bafysource"
    with pytest.raises(BadTask, match="covey model pull other"):
        find_base(catalog, "other")


async def test_a_round_is_trained_on_from_its_adapter_with_its_seed_and_the_split_of_all_rounds(
    catalog: Catalog, tmp_path: Path
) -> None:
    trainer = FakeTrainer(READY, TRAINED)
    assert await RoundEngine(catalog, trainer, nobody_else).train(wish(tmp_path)) == Trained(40, 1.5)
    (asked,) = trainer.asked
    assert isinstance(asked, messages.Train) and asked.is_fresh and asked.initial == str(tmp_path / "initial")
    settings = asked.settings
    assert (settings.seed, settings.splits_by, settings.held_out_frac, settings.frozen) == (77, 0, 0.2, "")
    assert (settings.rank, settings.alpha, settings.n_steps, settings.form) == (2, 4.0, 3, None)


async def test_the_engine_is_asked_for_the_noise_of_the_plan_and_for_none_without(
    catalog: Catalog, tmp_path: Path
) -> None:
    noise, trainer = ExampleNoise(bound=1.0, multiplier=2.0), FakeTrainer(READY, TRAINED)
    asked_for = wish(tmp_path, noise=noise)
    for one in (asked_for, asked_for._replace(noise=None)):
        await RoundEngine(catalog, trainer, nobody_else).train(one)
    assert [asked.noise for asked in trainer.asked if isinstance(asked, messages.Train)] == [noise, None]


async def test_sgd_has_one_rate_in_all_its_steps_and_a_correction_is_passed_on(
    catalog: Catalog, tmp_path: Path
) -> None:
    trainer = FakeTrainer(READY, TRAINED)
    plain = wish(tmp_path)
    corrected = plain._replace(optimizer="sgd", momentum=0.5, proximal_mu=0.25, correction=tmp_path / "correction")
    for one in (corrected, plain):
        await RoundEngine(catalog, trainer, nobody_else).train(one)
    sgd, usual = (asked for asked in trainer.asked if isinstance(asked, messages.Train))
    assert (sgd.settings.optimizer, sgd.settings.momentum, sgd.settings.proximal_mu) == ("sgd", 0.5, 0.25)
    assert (sgd.settings.schedule, sgd.settings.n_warmup) == ("constant", 0)
    assert sgd.correction == str(tmp_path / "correction") and usual.correction is None
    assert (usual.settings.optimizer, usual.settings.schedule, usual.settings.n_warmup) == ("adamw", "cosine", 3)


async def test_a_module_is_made_trained_and_measured_by_the_engine(catalog: Catalog, tmp_path: Path) -> None:
    trainer = FakeFitter(messages.Fitted(n_learned=9, n_held_out=1, loss=0.5, accuracy=0.75))
    engine = RoundEngine(catalog, trainer, nobody_else)
    settings = FitSettings(n_steps=7)
    found = await engine.fit(Fitting("net", settings, tmp_path / "base", data=tmp_path / "rows"))
    assert found == Fitted(9, 1, 0.5, 0.75)
    base, data = str(tmp_path / "base"), str(tmp_path / "rows")
    assert trainer.asked == [messages.Fit(factory="net", settings=settings, initial=base, data=data)]
    with pytest.raises(EngineFailed, match="trained no module"):
        await RoundEngine(catalog, FakeFitter(TRAINED), nobody_else).fit(Fitting("net", settings))


async def test_a_training_that_was_stopped_is_no_update(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="was stopped"):
        await RoundEngine(catalog, FakeTrainer(READY, messages.TrainPaused(step=1, n_steps=3)), nobody_else).train(
            wish(tmp_path)
        )


async def test_a_result_is_measured_on_what_the_training_would_hold_out(catalog: Catalog, tmp_path: Path) -> None:
    trainer = FakeTrainer(messages.Measured(loss=1.25, accuracy=0.5, n_labels=90, n_examples=4))
    engine = RoundEngine(catalog, trainer, nobody_else)
    assert await engine.measure(wish(tmp_path)) == Score(4, 1.25, 0.5)
    trained = FakeTrainer(READY, TRAINED)
    (tmp_path / "initial").unlink()
    await RoundEngine(catalog, trained, nobody_else).train(wish(tmp_path))
    measure, train = trainer.asked[0], trained.asked[0]
    assert isinstance(measure, messages.Measure) and isinstance(train, messages.Train)
    assert measure.settings == train.settings


async def test_where_b_alone_is_exchanged_the_engine_gets_both_and_learns_b(catalog: Catalog, tmp_path: Path) -> None:
    trainer = FakeTrainer(READY, TRAINED)
    await RoundEngine(catalog, trainer, nobody_else).train(wish(tmp_path, is_half=True))
    (asked,), (layout,) = trainer.asked, trainer.layouts
    assert isinstance(asked, messages.Train) and asked.settings.frozen == "a"
    assert dict(layout.shapes)[f"base_model.model.{LAYER}.lora_A.weight"] == (2, 6)


async def test_without_the_base_nothing_is_asked_of_the_engine(catalog: Catalog, tmp_path: Path) -> None:
    trainer = FakeTrainer()
    with pytest.raises(BadTask, match="is not here"):
        await RoundEngine(catalog, trainer, nobody_else).train(wish(tmp_path, base="bafyother"))
    assert not trainer.asked


async def test_the_base_is_kept_while_a_round_reads_it(catalog: Catalog, tmp_path: Path) -> None:
    told: list[str] = []

    @contextmanager
    def keeping(row: ModelRow, use: str) -> Iterator[None]:
        told.append(f"{row.name}: {use}")
        yield
        told.append(f"{len(trainer.asked)} asked")

    trainer = FakeTrainer(READY, TRAINED)
    await RoundEngine(catalog, trainer, keeping).train(wish(tmp_path))
    assert told == ["mine: the training of a round", "1 asked"]
