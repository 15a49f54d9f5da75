"""A clip bound that follows the norms: a noisy bit of each client, paid for, agreed on, and computed again by all."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.federation.files.audit import audit, verdict_of
from agents.federation.node.experiment import Experiment
from agents.federation.node.planning import faults
from agents.federation.plans.compatibility import problems
from agents.federation.plans.privacy_accounts import lattice_of, told
from agents.federation.privacy.clipping import AdaptiveBound
from agents.federation.privacy.lattice import Lattice, hidden, mean_of_sum, on_grid
from agents.federation.privacy.noise import MAX_DEVIATION
from agents.federation.results.outcome import Outcome, Submitted, compute, document, draw_noise, read_document
from agents.federation.results.verify import bound_before
from agents.federation.updates.tensors import BadTensors, Layout, flush, new_vector, read_vector
from protocols.rounds import Plan, Submit, read_plan
from simulations.net import SimWorld
from storage.cid import RAW, Cid
from storage.codecs import dag_cbor
from tests.agents.federation.node.test_service import Home, begun, until
from tests.agents.federation.secure.test_secure_service import SECURE, all_up
from tests.agents.federation.village import identity, make_plan

LAYOUT = Layout.of({"weight": (20, 20)})
BUDGET = {"epsilon": 500.0, "delta": 1e-5}
CENTRAL = {"noise": "central", "bound": 1.0, "multiplier": 0.5, "quantile": 0.5, "count_noise": 5.0, "budget": BUDGET}
N = 4


def plan(**changes: Any) -> Plan:
    privacy = CENTRAL | changes
    more = {"secure": {}, "max_norm": 1.0} if privacy["noise"] == "distributed" else {}
    return read_plan(make_plan(N, privacy=privacy, min_participants=3, is_evaluated=False, **more)[1])


def write(path: Path, values: object, layout: Layout = LAYOUT) -> Path:
    vector = new_vector(path, layout)
    vector[:] = np.asarray(values, np.float32)
    flush(vector, path)
    return path


def run(folder: Path, norms: list[float], bound: float | None, noise: Path) -> Outcome:
    """A round in which clients' updates have these norms."""
    base = folder / "base"
    if not base.exists():
        write(base, np.zeros(400))
    ones = []
    for number, norm in enumerate(norms):
        name = f"{number}-{norm}"
        path = folder / name if (folder / name).exists() else write(folder / name, np.full(400, norm / 20.0))
        submit = Submit(round=1, base=Cid.of(b"base", RAW), update=Cid.of(path.read_bytes(), RAW), n_samples=1)
        ones.append(Submitted(identity(number).peer_id, submit, path, 0))
    out = folder / f"out-{len(list(folder.iterdir()))}"
    out.mkdir()
    return compute(plan(), base, ones, out, seed=b"", noise=noise, bound=bound)


def noise_of(folder: Path, of_count: int) -> Path:
    """Noise as large as it must be, known."""
    values = np.append(np.resize([MAX_DEVIATION, -MAX_DEVIATION], 400), of_count)
    return write(folder / f"noise-{of_count}", values, Layout.of({"noise": (401,)}))


def bound_of(outcome: Outcome) -> float:
    assert outcome.bound is not None and not outcome.failed
    return outcome.bound


def test_the_noise_of_update_and_bit_together_is_what_the_plan_promises() -> None:
    for changes in (
        {},
        {"noise": "distributed"},
        {"count_noise": 0.0},
        {"multiplier": 2.0, "noise": "distributed", "count_noise": 0.0},
    ):
        the_plan = plan(**changes)
        grid = lattice_of(the_plan)
        assert grid is not None and grid.bit_steps > 0 and the_plan.privacy is not None
        promised = the_plan.privacy["multiplier"]
        n_least = 1 if grid.n_needed == 1 else the_plan.min_participants
        found = told(the_plan, n_least).multiplier
        assert promised <= found <= promised * 1.01
        # Andrew et al., section 2.2: the two mechanisms one after the other.
        of_count = MAX_DEVIATION * math.sqrt(grid.n_needed) / (2.0 * grid.bit_steps)
        assert found**-2 == pytest.approx(grid.multiplier**-2 + (2.0 * of_count) ** -2, rel=1e-2)
        assert grid.multiplier > promised


def test_what_a_round_tells_does_not_hang_on_the_bound() -> None:
    for bound in (1e-9, 0.3, 1.0, 7.7, 1e9):
        now, first = lattice_of(plan(), bound), lattice_of(plan())
        assert now is not None and first is not None
        assert (now.reach, now.bit_steps, now.bound) == (first.reach, first.bit_steps, bound)


def test_each_bit_says_whether_the_update_was_within_before_it_was_clipped() -> None:
    grid = Lattice(1.0, 0.5, 1, bit_steps=100)
    assert on_grid(np.full(4, 0.4, np.float32), grid)[-1] == 100
    assert on_grid(np.full(4, 0.6, np.float32), grid)[-1] == -100
    assert len(on_grid(np.full(4, 0.4, np.float32), Lattice(1.0, 0.5, 1))) == 4


def test_bits_add_up_under_masks_to_the_number_of_those_within() -> None:
    grid = Lattice(1.0, 0.5, 3, bit_steps=5000)
    words = np.zeros(5, np.uint32)
    for norm in (0.1, 0.2, 3.0):
        words += hidden(np.full(4, norm / 2, np.float32), grid)
    found = mean_of_sum(words, 3, grid)
    assert len(found.mean) == 4 and found.n_within is not None
    assert abs(found.n_within - 2.0) < 6.0 * MAX_DEVIATION * math.sqrt(3) / (2 * 5000)


def test_the_bound_goes_where_the_norms_are(tmp_path: Path) -> None:
    noise = noise_of(tmp_path, 0)
    bound: float | None = None
    for _ in range(60):
        bound = bound_of(run(tmp_path, [4.0, 5.0, 6.0, 7.0], bound, noise))
    assert 4.5 < bound < 6.6
    assert bound_of(run(tmp_path, [0.1, 0.2, 0.3], None, noise)) == AdaptiveBound(1.0, 0.5, 0.2).moved(3.0, 3).bound


def test_the_rounds_bound_clips_and_the_counts_noise_counts(tmp_path: Path) -> None:
    calm, loud = noise_of(tmp_path, 0), noise_of(tmp_path, -4000)
    wide, narrow = (run(tmp_path, [9.0, 9.0 + 1e-3, 9.0 + 2e-3], bound, calm) for bound in (8.0, 2.0))
    means = [np.array(read_vector(one.tensors, LAYOUT), np.float64).mean() * 20.0 for one in (wide, narrow)]
    np.testing.assert_allclose(means, [8.0, 2.0], rtol=1e-3)
    assert bound_of(run(tmp_path, [0.1, 0.2], None, loud)) != bound_of(run(tmp_path, [0.1, 0.2], None, calm))


def test_the_bound_is_part_of_the_document_and_of_no_other_plans(tmp_path: Path) -> None:
    outcome = run(tmp_path, [0.1, 0.2, 0.3], None, noise_of(tmp_path, 0))
    fixed = (Cid.of(b"plan", RAW), 1, Cid.of(b"base", RAW))
    cid, data = document(*fixed, outcome, Cid.of(b"tensors", RAW), [])
    assert read_document(data).bound == outcome.bound
    other = document(*fixed, outcome._replace(bound=2.0), Cid.of(b"tensors", RAW), [])
    assert other[0] != cid
    assert b"bound" not in document(*fixed, outcome._replace(bound=None), Cid.of(b"tensors", RAW), [])[1]


@pytest.mark.parametrize("bound", [0.0, -1.0, 1e300, "1", 1, [1.0]])
def test_a_document_with_a_bound_that_is_none_is_refused(tmp_path: Path, bound: object) -> None:
    outcome = run(tmp_path, [0.1, 0.2, 0.3], None, noise_of(tmp_path, 0))
    fixed = (Cid.of(b"plan", RAW), 1, Cid.of(b"base", RAW))
    value = dag_cbor.decode(document(*fixed, outcome, Cid.of(b"tensors", RAW), [])[1])
    with pytest.raises(BadTensors, match="clip bound"):
        read_document(dag_cbor.encode(value | {"bound": bound}))


def test_a_round_that_failed_leaves_the_bound_where_it_was(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", np.resize([MAX_DEVIATION, -MAX_DEVIATION], 400))
    outcome = run(tmp_path, [0.1, 0.2, 0.3], 0.7, plain)
    assert "does not fit the base" in outcome.failed and outcome.bound == 0.7


def test_drawn_noise_has_a_value_for_the_count(tmp_path: Path) -> None:
    draw_noise(plan(), 1, write(tmp_path / "base", np.zeros(400)), tmp_path / "noise")
    assert not run(tmp_path, [0.1, 0.2, 0.3], None, tmp_path / "noise").failed


def test_a_count_whose_noise_costs_more_than_the_whole_may_is_refused() -> None:
    assert problems(plan()) == []
    (why,) = problems(plan(count_noise=0.2))
    assert "count_noise of 0.2 clients" in why and "alone costs more" in why


# Whole members


@pytest.fixture
def four(sim_world: SimWorld, tmp_path: Path) -> list[Home]:
    return [Home(sim_world, name, tmp_path) for name in ("ada", "bob", "cleo", "dan")]


class Blocks:
    """Documents, as a member finds them."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def __getattr__(self, name: str) -> Any:
        assert name == "block"
        return self._home.node.ports.store.get


def has_results(home: Home, one: Experiment) -> bool:
    """Over half of the members may have told a result that this one has yet to compute."""
    results = [one.book.result(number) for number in (1, 2, 3)]
    return all(cid is not None and home.node.ports.store.size(cid) is not None for cid in results)


def bounds(home: Home, one: Experiment) -> list[float | None]:
    return [bound_before(one.book, number, Blocks(home)) for number in (2, 3, 4)]  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", ["central", "distributed"])
async def test_members_move_the_bound_together_and_anybody_proves_it(
    four: list[Home], autojump_clock: Any, noise: str
) -> None:
    async with all_up(four):
        privacy = CENTRAL | {"noise": noise, "bound": 0.01, "count_noise": 2.0}
        changes = SECURE if noise == "distributed" else {"min_participants": 3}
        entry = four[0].plan(four, privacy=privacy, n_rounds=3, is_evaluated=False, **changes)
        ones = await begun(four, entry)
        assert faults(ones[0].plan) == []
        await until(lambda: all(one.is_over and has_results(home, one) for home, one in zip(four, ones, strict=True)))
        found = [bounds(home, one) for home, one in zip(four, ones, strict=True)]
        for one in ones:  # and each is shown them
            shown = await one.clip_bounds(range(1, 5))
            assert shown == {1: 0.01} | dict(zip((2, 3, 4), found[0], strict=True))
        assert all(one == found[0] for one in found)
        assert all(one != other for one, other in pairwise([0.01, *found[0]]))  # it moved in each round
        findings = audit(four[3].node.ports, entry, ones[3].book.entries(), four[3].folder / "scratch")
        assert verdict_of(findings) == "proved"
        assert [one.verdict for one in findings if one.round] == ["proved"] * 3
