"""Each LoRA way in a round: what is trained and sent, what comes of it, how far that is the mean of the products."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.adapters.inspect import inspect_folder
from agents.federation.results.outcome import Outcome, Submitted, compute, document
from agents.federation.tasks import BadTask, Exam, Work
from agents.federation.updates.lora import Views
from agents.federation.updates.tensors import Layout, flush, new_vector, read_layout
from protocols.rounds import Plan, Submit, read_plan
from storage.cid import RAW, Cid
from tests.agents.federation.lora_examples import (
    ALPHA,
    LAYERS,
    RANK,
    WAYS,
    Pretender,
    change_of,
    initial,
    model_in,
    numbers,
    read,
    settings,
    task,
)
from tests.agents.federation.village import identity, make_plan

N = 3
EXACT = ("fedex", "ffa", "flora", "rolora")
TAKES_RANKS = ("flexlora", "flora", "hetlora")


def plan(way: str, **changes: Any) -> Plan:
    return read_plan(make_plan(N, task=settings(way), **changes)[1])


async def trained(folder: Path, way: str, base: Path, number: int, client: int, rank: int = 0) -> Path:
    """A client's update, as the task makes it with an engine."""
    home = folder / f"{way}-{number}-{client}"
    home.mkdir(parents=True)
    (home / "text").write_text("words")
    work = Work(base, home / "text", bytes([client] * 32), home / "update", Pretender(), number, rank)
    await task(way).train(work)
    return home / "update"


def submitted(path: Path, client: int, n_samples: int = 10) -> Submitted:
    update = Cid.of(path.read_bytes(), RAW)
    submit = Submit(round=1, base=Cid.of(b"base", RAW), update=update, n_samples=n_samples)
    return Submitted(identity(client).peer_id, submit, path, 0)


def result(folder: Path, the_plan: Plan, base: Path, ones: list[Submitted], number: int, name: str = "") -> Outcome:
    out = folder / f"{the_plan.task['lora']}-out-{number}{name}"
    out.mkdir()
    return compute(the_plan, base, ones, out, seed=b"seed", number=number)


def grown(folder: Path, base: Path, update: Path) -> Path:
    """The tensors of one client: the round's, with its update; of lower ranks, the first rows alone."""
    (layout, values), (other, more) = read(base), read(update)
    mine, given = Views.of(values, layout).tensors, Views.of(more, other).tensors
    for name, tensor in given.items():
        target = mine[name]
        whole = np.zeros_like(target)
        rows, columns = tensor.shape
        whole[:rows, :columns] = target[:rows, :columns] + tensor
        target[:] = whole
    path = folder / f"grown-{len(list(folder.iterdir()))}"
    vector = new_vector(path, layout)
    vector[:] = values
    flush(vector, path)
    return path


async def rounds(folder: Path, way: str, n_rounds: int, ranks: tuple[int, ...] = (0, 0, 0), **changes: Any) -> Path:
    """Some rounds; each result's distance to the mean of the clients' whole changes is what the way promises."""
    base, downs = initial(folder, way), initial(folder, "fedit") if way == "ffa" else None
    for number in range(1, n_rounds + 1):
        updates = [await trained(folder, way, base, number, client, ranks[client]) for client in range(N)]
        ones = [submitted(update, client, 10 * (client + 1)) for client, update in enumerate(updates)]
        outcome = result(folder, plan(way, **changes), base, ones, number)
        assert not outcome.failed and [one.reason for one in outcome.verdicts] == [""] * N
        clients = [change_of(grown(folder, base, update), downs) for update in updates]
        found = change_of(outcome.tensors, downs)
        for layer in LAYERS:
            mean = np.mean([client[layer] for client in clients], axis=0)
            off = np.linalg.norm(found[layer] - mean) / np.linalg.norm(mean)
            assert (off <= 1e-6) == (way in EXACT), (way, number, off)
        base = outcome.tensors
    return base


@pytest.mark.parametrize("way", WAYS)
async def test_the_exact_ways_give_the_mean_of_the_products_round_after_round_and_no_other_does(
    tmp_path: Path, way: str
) -> None:
    await rounds(tmp_path, way, 4)


async def test_stacking_is_exact_for_adapters_of_different_ranks(tmp_path: Path) -> None:
    await rounds(tmp_path, "flora", 2, (1, 2, 4))


async def test_a_round_of_singular_values_gives_the_nearest_adapter_of_the_plans_rank(tmp_path: Path) -> None:
    base = initial(tmp_path, "flexlora")
    updates = [await trained(tmp_path, "flexlora", base, 1, client, rank) for client, rank in enumerate((4, 4, 2))]
    outcome = result(tmp_path, plan("flexlora"), base, [submitted(path, n) for n, path in enumerate(updates)], 1)
    clients = [change_of(grown(tmp_path, base, update)) for update in updates]
    for layer, found in change_of(outcome.tensors).items():
        mean = np.mean([client[layer] for client in clients], axis=0)
        u, values, vt = np.linalg.svd(mean, full_matrices=False)
        best = (u[:, :RANK] * values[:RANK]) @ vt[:RANK]
        assert np.linalg.norm(found - best) <= 1e-6 * np.linalg.norm(best)


async def test_mixed_ranks_are_padded_and_weighed_by_norms_and_each_trains_the_first_of_the_rows(
    tmp_path: Path,
) -> None:
    base, ranks = await rounds(tmp_path, "hetlora", 1), (1, 2, 4)
    updates = [await trained(tmp_path, "hetlora", base, 7, client, rank) for client, rank in enumerate(ranks)]
    assert [read_layout(path).shapes[0][1][0] for path in updates] == list(ranks)
    outcome = result(tmp_path, plan("hetlora"), base, [submitted(path, n) for n, path in enumerate(updates)], 7)
    clients = [grown(tmp_path, base, update) for update in updates]
    for layer in LAYERS:
        norms = np.array([np.linalg.norm(change_of(one)[layer]) for one in clients])
        parts = norms / norms.sum()
        for half in "AB":
            name = f"base_model.model.{layer}.lora_{half}.weight"
            mean = sum(part * tensor(one, name) for part, one in zip(parts, clients, strict=True))
            np.testing.assert_allclose(tensor(outcome.tensors, name), mean, rtol=1e-5, atol=1e-7)


def tensor(path: Path, name: str) -> np.ndarray:  # type: ignore[type-arg]
    layout, vector = read(path)
    return np.array(Views.of(vector, layout).tensors[name], np.float64)


async def test_claimed_samples_weigh_products_where_the_plan_says_so(tmp_path: Path) -> None:
    base = initial(tmp_path, "flora")
    updates = [await trained(tmp_path, "flora", base, 1, client) for client in range(2)]
    ones = [submitted(updates[0], 0, 10), submitted(updates[1], 1, 10**6)]
    outcome = result(
        tmp_path, plan("flora", rule={"rule": "fedavg", "weights": "samples"}, max_samples=30), base, ones, 1
    )
    one, other = (change_of(grown(tmp_path, base, update)) for update in updates)
    for layer, found in change_of(outcome.tensors).items():
        np.testing.assert_allclose(found, one[layer] / 4 + other[layer] * 3 / 4, atol=1e-7)


@pytest.mark.parametrize("way", ["flora", "fedex"])
async def test_the_rank_of_what_is_kept_does_not_grow(tmp_path: Path, way: str) -> None:
    layout, vector = read(await rounds(tmp_path, way, 3))
    assert layout == read_layout(tmp_path / f"{way}-initial")
    merged = [name for name, _ in layout.shapes if name.endswith(".merged.weight")]
    assert len(merged) == len(LAYERS) and all(Views.of(vector, layout).tensors[name].any() for name in merged)


# What is sent


@pytest.mark.parametrize("way", WAYS)
async def test_an_update_holds_what_was_trained_and_nothing_else(tmp_path: Path, way: str) -> None:
    base = initial(tmp_path, way)
    halves = {"ffa": ["B", "B"], "rolora": ["B", "A"]}.get(way, ["AB", "AB"])
    for number, wanted in enumerate(halves, 1):
        shapes = read_layout(await trained(tmp_path, way, base, number, 0)).shapes
        assert sorted({name[-8] for name, _ in shapes}) == sorted(wanted)


@pytest.mark.parametrize("way", WAYS)
async def test_the_engine_begins_with_the_rounds_adapter_and_what_was_merged(tmp_path: Path, way: str) -> None:
    base = await rounds(tmp_path, way, 1)
    engine = Pretender()
    (tmp_path / "text").write_text("words")
    await task(way).train(Work(base, tmp_path / "text", bytes(32), tmp_path / "update", engine, 2))
    await task(way).evaluate(Exam(base, tmp_path / "text", engine))
    for wish in engine.wishes:
        assert (wish.merged is not None) == (way in ("fedex", "flora"))
        assert {name[-8] for name, _ in read_layout(wish.initial).shapes} == ({"B"} if way == "ffa" else {"A", "B"})
        if wish.merged is not None:
            assert read_layout(wish.merged).shapes == tuple(
                (f"base_model.model.{layer}.merged.weight", shape) for layer, shape in sorted(LAYERS.items())
            )
    assert [wish.frozen for wish in engine.wishes] == ["b" if way == "rolora" else "", ""]


async def test_a_lower_rank_counts_as_much_a_rank_as_the_plans(tmp_path: Path) -> None:
    engine = Pretender()
    (tmp_path / "text").write_text("words")
    work = Work(initial(tmp_path, "flora"), tmp_path / "text", bytes(32), tmp_path / "update", engine, 1, 2)
    await task("flora").train(work)
    (wish,) = engine.wishes
    assert (wish.rank, wish.alpha / wish.rank) == (2, ALPHA / RANK)


@pytest.mark.parametrize("way", WAYS)
def test_who_may_choose_a_rank_is_the_ways_to_say(way: str) -> None:
    if way in TAKES_RANKS:
        task(way).check_rank(1)
    with pytest.raises(BadTask, match="leave out --rank" if way not in TAKES_RANKS else "is not one of 1 to"):
        task(way).check_rank(RANK + 1)


# What is refused


def update_of(folder: Path, layout: Layout) -> Submitted:
    path = folder / "bad"
    vector = new_vector(path, layout)
    vector[:] = numbers("bad", layout.n_params)
    flush(vector, path)
    return submitted(path, 2)


def halves(rank_a: int, rank_b: int, which: str = "AB") -> Layout:
    shapes = {}
    for layer, (n_out, n_in) in LAYERS.items():
        both = {"A": (rank_a, n_in), "B": (n_out, rank_b)}
        shapes |= {f"base_model.model.{layer}.lora_{half}.weight": both[half] for half in which}
    return Layout.of(shapes)


@pytest.mark.parametrize(
    ("way", "number", "layout", "why"),
    [
        ("rolora", 1, halves(4, 4), "lora_A.weight is not part of the base"),
        ("rolora", 2, halves(4, 4, "B"), "lora_A.weight is missing"),
        ("fedex", 1, halves(2, 2), "has shape (2, 9), in the base (4, 9)"),
        ("flora", 1, halves(5, 5), "it has rank 5: 1 to 4 are taken"),
        ("flora", 1, halves(2, 3), "in the base (3, 9)"),
        ("flexlora", 1, halves(4, 4, "A"), "it has rank 0"),
        ("hetlora", 1, Layout.of({"x": (3,)}), "it has rank 0"),
        ("hetlora", 1, Layout.of({name: shape[::-1] for name, shape in halves(4, 4).shapes}), "it has rank"),
    ],
)
async def test_what_is_not_the_rounds_to_train_is_refused(
    tmp_path: Path, way: str, number: int, layout: Layout, why: str
) -> None:
    base = initial(tmp_path, way)
    good = [submitted(await trained(tmp_path, way, base, number, client), client) for client in range(2)]
    outcome = result(tmp_path, plan(way), base, [*good, update_of(tmp_path, layout)], number)
    clean = result(tmp_path, plan(way), base, good, number, "-clean")
    (reason,) = [one.reason for one in outcome.verdicts if one.reason]
    assert why in reason
    assert outcome.tensors.read_bytes() == clean.tensors.read_bytes()


@pytest.mark.parametrize("way", ["fedit", "flora", "hetlora"])
async def test_who_moves_a_alone_rides_along_and_is_refused(tmp_path: Path, way: str) -> None:
    """B begins as zeros: the product of such an adapter is nothing, and it would water down the others'."""
    base, rank = initial(tmp_path, way), RANK if way == "fedit" else 2
    one = update_of(tmp_path, halves(rank, rank))
    layout = read_layout(one.path)
    vector = np.memmap(one.path, np.float32, "r+", offset=len(layout.header()), shape=(layout.n_params,))
    for name, tensor in Views.of(vector, layout).tensors.items():
        tensor[:] = 0.0 if "lora_B" in name else 1.0
    vector.flush()
    outcome = result(tmp_path, plan(way), base, [submitted(one.path, 2)], 1)
    assert [verdict.reason for verdict in outcome.verdicts] == ["it leaves every B as it was: nothing was learned"]


async def test_tensors_that_are_not_the_tasks_stay_what_they_are(tmp_path: Path) -> None:
    layout = halves(2, 2)
    path = tmp_path / "base"
    flush(new_vector(path, layout), path)
    outcome = result(tmp_path, plan("flexlora"), path, [update_of(tmp_path, layout)], 1)
    assert "has rank 2, the plan 4" in outcome.failed and outcome.tensors.read_bytes() == path.read_bytes()


async def test_a_base_with_a_half_that_is_no_matrix_admits_nothing_and_stays_what_it_is(tmp_path: Path) -> None:
    """A plan's author may name any tensors for the first."""
    shapes, path = dict(halves(4, 4).shapes), tmp_path / "base"
    bad = Layout.of({name: shape if "lora_B" in name else shape[:1] for name, shape in shapes.items()})
    flush(new_vector(path, bad), path)
    outcome = result(tmp_path, plan("flexlora"), path, [update_of(tmp_path, halves(4, 4))], 1)
    assert [bool(verdict.reason) for verdict in outcome.verdicts] == [True]
    assert outcome.failed and outcome.tensors.read_bytes() == path.read_bytes()


async def test_products_that_overflow_leave_the_tensors_what_they_were(tmp_path: Path) -> None:
    for way in ("flexlora", "flora", "hetlora", "fedex"):
        base, layout = initial(tmp_path, way), halves(4, 4)
        ones = []
        for client in range(2):
            path = tmp_path / f"{way}-huge-{client}"
            vector = new_vector(path, layout)
            vector[:] = 3e38 - client * 1e38
            flush(vector, path)
            ones.append(submitted(path, client))
        outcome = result(tmp_path, plan(way), base, ones, 1)
        assert np.isfinite(read(outcome.tensors)[1]).all()
        if way in ("flora", "fedex"):
            assert outcome.failed and outcome.tensors.read_bytes() == base.read_bytes()


# What becomes of it


@pytest.mark.parametrize("way", WAYS)
async def test_a_result_is_an_adapter_that_does_what_the_tensors_do(tmp_path: Path, way: str) -> None:
    base = await rounds(tmp_path, way, 2)
    (tmp_path / "adapter").mkdir()
    task(way).write_adapter(base, tmp_path / "adapter", {"round": 2}, lambda text: model_in(tmp_path / "model"))
    found = inspect_folder(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    downs = initial(tmp_path, "fedit") if way == "ffa" else None
    is_merged = way in ("fedex", "flora")
    scale = 1.0 if is_merged else ALPHA / RANK
    assert found.rank == (6 if is_merged else RANK)  # as high as what was merged takes
    for layer, wanted in change_of(base, downs).items():
        made = (
            scale
            * tensor(weights, f"base_model.model.{layer}.lora_B.weight")
            @ tensor(weights, f"base_model.model.{layer}.lora_A.weight")
        )
        np.testing.assert_allclose(made, wanted, atol=2e-6 * np.abs(wanted).max())
    assert ("not_in_adapter" in found.training) == is_merged


async def test_documents_are_the_same_in_every_order(tmp_path: Path) -> None:
    for way in WAYS:
        base = initial(tmp_path, way)
        ones = [submitted(await trained(tmp_path, way, base, 1, client), client) for client in range(N)]
        cids = set()
        for turn, order in enumerate((ones, ones[::-1], ones[1:] + ones[:1])):
            outcome = result(tmp_path, plan(way), base, order, 1, f"-{turn}")
            tensors = Cid.of(outcome.tensors.read_bytes(), RAW)
            cids.add(document(Cid.of(b"plan", RAW), 1, Cid.of(b"base", RAW), outcome, tensors, [])[0])
        assert len(cids) == 1
