"""The task `lora` with a real engine: a round trains on from its adapter, to the same bytes each time it is done."""

import pydoc_data.topics
from contextlib import nullcontext
from functools import partial

import msgspec
import numpy as np
import pytest

from agents.adapters.inspect import inspect_folder
from agents.engine.client import open_engine
from agents.engine.worker.models import read_card
from agents.federation.node.training import RoundEngine, find_base
from agents.federation.plans.compatibility import problems
from agents.federation.results.outcome import compute
from agents.federation.tasks import Exam, Work, task_of
from agents.federation.updates.lora import scatter
from agents.federation.updates.tensors import canonical, flush, new_vector, read_layout, read_vector
from agents.federation.updates.variates import moved, write_correction
from agents.training.settings import ExampleNoise
from protocols.rounds import read_plan
from tests.agents.federation.results.test_lora_ways import submitted
from tests.agents.federation.village import make_plan

pytestmark = [pytest.mark.engine, pytest.mark.long]
SETTINGS = {
    "task": "lora", "base": "tiny", "targets": ["q_proj", "v_proj"], "rank": 4, "n_steps": 12, "context_tokens": 64,
    "learning_rate": 0.004,
}  # fmt: skip


@pytest.mark.parametrize("way", ["fedit", "ffa"])
async def test_two_rounds_lower_the_loss_and_a_round_done_again_gives_the_same_bytes(
    tiny_model, catalog, tmp_path, way
):
    text = tmp_path / "topic.txt"
    text.write_text(pydoc_data.topics.topics["debugger"])

    def find(name):
        return find_base(catalog, name)

    task = task_of(SETTINGS | {"lora": way}).completed(find)
    assert task.base == read_card(tiny_model).base
    base = tmp_path / "base-0"
    task.initial(base, find)
    losses = []
    async with open_engine(threads=1) as trainer:
        engine = RoundEngine(catalog, trainer, lambda row, use: nullcontext())
        before = (await task.evaluate(Exam(base, text, engine))).loss
        for number in (1, 2):
            for name in ("once", "again"):
                folder = tmp_path / f"{name}-{number}"
                folder.mkdir()
                made = await task.train(Work(base, text, bytes([number] * 32), folder / "update", engine))
            update = tmp_path / f"once-{number}" / "update"
            assert update.read_bytes() == (tmp_path / f"again-{number}" / "update").read_bytes()
            layout = read_layout(base)
            assert task.misfit(layout) == "" and read_layout(update) == layout
            assert {name[-8] for name, _ in layout.shapes} == ({"B"} if way == "ffa" else {"A", "B"})
            base = tmp_path / f"base-{number}"
            vector = new_vector(base, layout)
            vector[:] = read_vector(tmp_path / f"base-{number - 1}", layout) + read_vector(update, layout)
            flush(vector, base)
            score = await task.evaluate(Exam(base, text, engine))
            losses.append(score.loss)
            assert score.loss == pytest.approx(made.loss, abs=1e-4) and 0 < score.accuracy < 1
            assert np.isfinite(vector).all()
    assert max(losses) < before
    (tmp_path / "adapter").mkdir()
    task.write_adapter(base, tmp_path / "adapter", {"round": 2}, find)
    assert inspect_folder(tmp_path / "adapter").rank == 4


@pytest.mark.parametrize("way", ["rolora", "flora", "flexlora", "hetlora", "fedex"])
async def test_rounds_of_two_members_lower_the_loss_in_every_way(catalog, tmp_path, way):
    """What was merged counts for the engine, and the adapter that is made of it does what the tensors do."""
    find = partial(find_base, catalog)
    task = task_of(SETTINGS | {"lora": way}).completed(find)
    texts = []
    for member in ("ada", "bob"):
        (tmp_path / member).write_text(pydoc_data.topics.topics["debugger"])
        texts.append(tmp_path / member)
    base = tmp_path / "base-0"
    task.initial(base, find)
    plan = read_plan(make_plan(2, task=msgspec.json.decode(msgspec.json.encode(task)))[1])
    losses = []
    async with open_engine(threads=1) as trainer:
        engine = RoundEngine(catalog, trainer, lambda row, use: nullcontext())
        before = (await task.evaluate(Exam(base, texts[0], engine))).loss
        for number in (1, 2, 3):
            ones = []
            for client, text in enumerate(texts):
                folder = tmp_path / f"{number}-{client}"
                folder.mkdir()
                rank = 2 if task.way.takes_ranks and client else 0
                await task.train(
                    Work(base, text, bytes([number, client] * 16), folder / "update", engine, number, rank)
                )
                ones.append(submitted(folder / "update", client))
            (tmp_path / f"out-{number}").mkdir()
            outcome = compute(plan, base, ones, tmp_path / f"out-{number}", seed=b"", number=number)
            assert not outcome.failed and len(outcome.admitted) == 2
            base = outcome.tensors
            losses.append((await task.evaluate(Exam(base, texts[0], engine))).loss)
        assert losses[-1] < before
        (tmp_path / "adapter").mkdir()
        task.write_adapter(base, tmp_path / "adapter", {}, find)
        found = inspect_folder(tmp_path / "adapter")
        (tmp_path / "whole").mkdir()
        canonical(tmp_path / "adapter" / "adapter_model.safetensors", tmp_path / "whole" / "adapter")
        as_adapter = task_of(SETTINGS | {"base": task.base, "rank": found.rank, "alpha": found.alpha, "lora": "fedit"})
        score = await as_adapter.evaluate(Exam(tmp_path / "whole" / "adapter", texts[0], engine))
        assert score.loss == pytest.approx(losses[-1], abs=1e-4)


@pytest.mark.parametrize("way", ["fedit", "ffa"])
async def test_corrected_rounds_of_members_with_unlike_texts_keep_the_common_variate_the_mean_of_their_own(
    catalog, tmp_path, way
):
    find = partial(find_base, catalog)
    steps = {"optimizer": "sgd", "learning_rate": 0.5, "n_steps": 6}
    task = task_of(SETTINGS | steps | {"lora": way}).completed(find)
    texts = [tmp_path / "ada", tmp_path / "bob"]
    for text, topic in zip(texts, ("debugger", "assignment"), strict=True):
        text.write_text(pydoc_data.topics.topics[topic])
    base, states = tmp_path / "base-0", []
    task.initial(base, find)
    layout = read_layout(base)
    settings = msgspec.json.decode(msgspec.json.encode(task))
    plan = read_plan(make_plan(2, task=settings, server={"server": "scaffold"})[1])
    assert problems(plan) == []
    own = [np.zeros(layout.n_params, np.float32) for _ in texts]
    async with open_engine(threads=1) as trainer:
        engine = RoundEngine(catalog, trainer, lambda row, use: nullcontext())
        before = (await task.evaluate(Exam(base, texts[0], engine))).loss
        for number in (1, 2, 3):
            ones, common = [], read_vector(states[0], layout) if states else None
            for client, text in enumerate(texts):
                folder = tmp_path / f"{number}-{client}"
                folder.mkdir()
                write_correction(folder / "correction", layout, own[client], common)
                work = Work(base, text, bytes([number, client] * 16), folder / "update", engine, number)
                await task.train(work._replace(correction=folder / "correction"))
                own[client] = moved(own[client], common, read_vector(folder / "update", layout), 6 * 0.5)
                ones.append(submitted(folder / "update", client))
            (tmp_path / f"out-{number}").mkdir()
            outcome = compute(plan, base, ones, tmp_path / f"out-{number}", seed=b"", number=number, states=states)
            assert not outcome.failed and len(outcome.admitted) == 2
            base, states = outcome.tensors, list(outcome.states)
            np.testing.assert_allclose(read_vector(states[0], layout), sum(own) / 2, atol=1e-6)
        assert (await task.evaluate(Exam(base, texts[0], engine))).loss < before
    # An own variate is a mean of gradients, each of which was shortened to a norm of 1.
    assert all(0.0 < np.linalg.norm(one) < 1.01 for one in own)


@pytest.mark.parametrize("way", ["ffa", "rolora"])
async def test_a_round_that_hides_examples_learns_through_the_noise_and_never_the_same_twice(catalog, tmp_path, way):
    text = tmp_path / "topic.txt"
    text.write_text(pydoc_data.topics.topics["debugger"])
    find = partial(find_base, catalog)
    task = task_of(SETTINGS | {"lora": way, "batch": 16, "n_steps": 20, "learning_rate": 0.01}).completed(find)
    base = tmp_path / "base"
    task.initial(base, find)
    updates = []
    async with open_engine(threads=1) as trainer:
        engine = RoundEngine(catalog, trainer, lambda row, use: nullcontext())
        before = (await task.evaluate(Exam(base, text, engine))).loss
        for name in ("once", "again"):
            (tmp_path / name).mkdir()
            noise = ExampleNoise(bound=1.0, multiplier=0.3)
            made = await task.train(Work(base, text, bytes(32), tmp_path / name / "update", engine, noise=noise))
            layout = read_layout(tmp_path / name / "update")
            updates.append(np.array(read_vector(tmp_path / name / "update", layout)))
        assert made.n_steps == 20 and made.n_samples > 16 and task.steps(made.n_samples) == (16, 20)
        assert np.isfinite(updates).all() and (updates[0] != updates[1]).any()
        whole = read_layout(base)
        after = new_vector(tmp_path / "after", whole)
        scatter(updates[0], layout, after, whole)
        after += read_vector(base, whole)
        flush(after, tmp_path / "after")
        assert (await task.evaluate(Exam(tmp_path / "after", text, engine))).loss < before
