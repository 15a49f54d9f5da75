"""Each rule is what its paper says: checked against the plainest possible writing of it, in float64."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.aggregation.aggregate import Recipe, aggregate
from agents.aggregation.geometry import COLUMNS, Geometry, measure
from agents.aggregation.networks import network, sort_rows
from agents.aggregation.registry import before_of, rule_of, server_of
from agents.aggregation.updates import CannotAggregate, Update, Vector, largest
from tests.agents.aggregation.examples import PEERS, SEED, examples, settings, vector

Matrix = npt.NDArray[np.float64]


def result(updates: Sequence[Update], rule: dict[str, object], before: Sequence[dict[str, object]] = ()) -> Vector:
    out = np.empty(len(updates[0].vector), np.float32)
    aggregate(updates, Recipe(rule_of(rule), tuple(map(before_of, before))), out, seed=SEED)
    return out


def stacked(updates: Sequence[Update]) -> Matrix:
    return np.stack([update.vector for update in updates]).astype(np.float64)


def squared_distances(x: Matrix) -> Matrix:
    difference = x[:, None] - x[None]
    return np.asarray((difference**2).sum(-1))


def made_of(values: Sequence[Sequence[float]]) -> list[Update]:
    return [Update(bytes([index]), f"p{index}", np.array(value, np.float32)) for index, value in enumerate(values)]


def assert_close(actual: Vector, expected: Matrix) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6 * float(np.abs(expected).max()))


# The combinations of single elements


@given(st.integers(1, 12), st.data())
def test_a_pruned_network_puts_every_wanted_rank_in_its_place(n_rows: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, n_rows - 1))
    last = data.draw(st.integers(first, n_rows - 1))
    bits = np.array(list(itertools.product([0, 1], repeat=n_rows)), np.float32).T  # the 0-1 principle
    rows = sort_rows(list(bits.copy()), first, last)
    np.testing.assert_array_equal(rows, np.sort(bits, axis=0)[first : last + 1])


def test_a_network_for_the_median_has_fewer_comparators_than_a_sort() -> None:
    assert len(network(50, 24, 25)) < len(network(50, 0, 49))


@pytest.mark.parametrize("n_updates", range(1, 12))
def test_the_median_is_numpys_bit_by_bit(n_updates: int) -> None:
    updates = examples(1000, n_updates)
    expected = np.median(np.stack([update.vector for update in updates]), axis=0)
    np.testing.assert_array_equal(result(updates, {"rule": "median"}), expected)


@pytest.mark.parametrize("n_bad", range(6))
def test_a_trimmed_mean_leaves_out_as_many_values_at_either_end(n_bad: int) -> None:
    updates = examples(1000)
    kept = np.sort(stacked(updates), axis=0)[n_bad : len(updates) - n_bad]
    assert_close(result(updates, {"rule": "trimmed_mean", "n_bad": n_bad}), kept.mean(0))


def test_bulyan_averages_what_lies_nearest_to_the_median_of_the_chosen() -> None:
    updates = sorted(examples(200), key=lambda update: update.cid)
    x, n_bad = stacked(updates), 2
    left, chosen = list(range(len(x))), []
    while len(chosen) < len(x) - 2 * n_bad:
        squared = squared_distances(x[left])
        near = max(len(left) - n_bad - 2, 1)
        scores = np.sort(squared, axis=1)[:, 1 : near + 1].sum(1)
        chosen.append(left.pop(int(scores.argmin())))
    ordered = np.sort(x[chosen], axis=0)
    middle = np.median(ordered, axis=0)
    n_kept = len(x) - 4 * n_bad
    order = np.argsort(np.abs(ordered - middle), axis=0, kind="stable")[:n_kept]
    expected = np.take_along_axis(ordered, order, axis=0).mean(0)
    assert_close(result(updates, settings("bulyan")), expected)


# Weighted sums


def test_fedavg_counts_samples() -> None:
    updates = examples(100)
    weights = np.array([update.weight for update in updates])
    expected = (stacked(updates) * (weights / weights.sum())[:, None]).sum(0)
    assert_close(result(updates, settings("fedavg")), expected)


def test_a_uniform_mean_asks_for_no_samples() -> None:
    updates = examples(100)
    assert_close(result(updates, {"rule": "fedavg"}), stacked(updates).mean(0))


def test_fednova_normalises_by_local_steps() -> None:
    updates = examples(100)
    weights = np.array([update.weight for update in updates])
    parts, steps = weights / weights.sum(), np.array([float(update.n_steps) for update in updates])
    expected = (parts * steps).sum() * ((parts / steps)[:, None] * stacked(updates)).sum(0)
    assert_close(result(updates, {"rule": "fednova"}), expected)


def test_fednova_counts_a_claim_of_steps_up_to_its_cap() -> None:
    updates = examples(100)
    liar, most = updates[-1], max(update.n_steps for update in updates)
    told = [*updates[:-1], liar._replace(n_steps=1 << 31)]
    honest = [*updates[:-1], liar._replace(n_steps=most)]
    settings = {"rule": "fednova", "max_steps": most}
    assert result(told, settings).tobytes() == result(honest, settings).tobytes()
    assert np.abs(result(told, {"rule": "fednova"})).max() < 1000 * np.abs(stacked(updates)).max()


def test_fedbuff_damps_the_old_and_refuses_the_too_old() -> None:
    updates = examples(100)
    damping = np.array([1 / math.sqrt(1 + update.staleness) for update in updates])
    expected = (damping[:, None] * stacked(updates)).mean(0)
    assert_close(result(updates, {"rule": "fedbuff"}), expected)
    with pytest.raises(CannotAggregate, match="2 results old"):
        result(updates, {"rule": "fedbuff", "max_staleness": 1})


def test_the_geometric_median_is_weiszfelds() -> None:
    updates = examples(100)
    x = stacked(updates)
    z = np.zeros(x.shape[1])
    for _ in range(10):
        weights = 1 / np.linalg.norm(x - z, axis=1)
        z = (weights[:, None] * x).sum(0) / weights.sum()
    np.testing.assert_allclose(result(updates, {"rule": "geometric_median"}), z, rtol=1e-3, atol=1e-4)


def test_the_geometric_median_is_moved_little_by_one_update_far_away() -> None:
    updates = examples(100)
    far = updates[0]._replace(vector=np.full(100, 1e30, np.float32))
    calm, moved = (result([one, *updates[1:]], {"rule": "geometric_median"}) for one in (updates[0], far))
    assert float(np.abs(moved - calm).max()) < float(np.abs(calm).max())


def test_centred_clipping_moves_the_centre_by_clipped_differences() -> None:
    updates = examples(100)
    x = stacked(updates)
    z, radius = np.zeros(x.shape[1]), 0.3
    for _ in range(3):
        clips = np.minimum(1, radius / np.linalg.norm(x - z, axis=1))
        z = z + (clips[:, None] * (x - z)).mean(0)
    assert_close(result(updates, {"rule": "centred_clipping", "radius": radius}), z)


def test_a_norm_bound_shortens_the_long() -> None:
    updates = made_of([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    np.testing.assert_allclose(result(updates, {"rule": "norm_bound", "bound": 1.0}), [0.9 / 3, 1.2 / 3], rtol=1e-6)


def test_fltrust_counts_what_points_the_trusted_way() -> None:
    updates = made_of([[1.0, 0.0], [10.0, 0.0], [-7.0, 0.0], [0.0, 3.0]])
    np.testing.assert_array_equal(result(updates, {"rule": "fltrust", "trusted": "p0"}), [1.0, 0.0])


def test_fltrust_counts_nothing_that_is_too_short_to_be_brought_to_a_length() -> None:
    updates = examples(3)
    tiny = Update(b"\xff", "tiny", np.full_like(updates[0].vector, 1e-45) * np.sign(updates[0].vector))
    rule = {"rule": "fltrust", "trusted": updates[0].peer}
    np.testing.assert_array_equal(result([*updates, tiny], rule), result(updates, rule))


def test_fltrust_without_its_trusted_peer_says_so() -> None:
    with pytest.raises(CannotAggregate, match="the trusted peer nobody is missing"):
        result(examples(10), {"rule": "fltrust", "trusted": "nobody"})


def test_the_filter_keeps_the_crowd_that_points_one_way() -> None:
    updates = examples(4000)
    flipped = [update._replace(vector=update.vector * np.float32(-5.0)) for update in updates[:4]]
    kept = result([*flipped, *updates[4:]], {**settings("flame"), "noise": 0.0})
    norms = np.linalg.norm(stacked([*flipped, *updates[4:]]), axis=1)
    clips = np.minimum(1, np.sort(norms)[5] / norms[4:])
    assert_close(kept, (clips[:, None] * stacked(updates[4:])).mean(0))


def test_the_filters_noise_has_the_deviation_that_the_plan_states() -> None:
    updates = examples(20_000)
    calm = result(updates, {**settings("flame"), "noise": 0.0})
    noise = result(updates, {**settings("flame"), "noise": 0.01}) - calm
    norm = sorted(np.linalg.norm(stacked(updates), axis=1))[5]
    assert abs(float(noise.mean())) < 0.03 * 0.01 * norm
    assert float(noise.std()) == pytest.approx(0.01 * norm, rel=0.03)


# Choices by distance


@pytest.mark.parametrize("n_bad", [0, 1, 2, 4])
def test_krum_chooses_as_a_search_over_all_distances_does(n_bad: int) -> None:
    updates = sorted(examples(300), key=lambda update: update.cid)
    squared = np.sort(squared_distances(stacked(updates)), axis=1)
    scores = squared[:, 1 : len(updates) - n_bad - 1].sum(1)
    chosen = result(updates, {"rule": "krum", "n_bad": n_bad})
    np.testing.assert_array_equal(chosen, updates[int(scores.argmin())].vector)
    n_kept = len(updates) - n_bad - 2
    expected = stacked(updates)[np.argsort(scores)[:n_kept]].mean(0)
    assert_close(result(updates, {"rule": "multi_krum", "n_bad": n_bad}), expected)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_small_differences_are_seen_at_every_scale_and_beside_an_outlier(scale: float) -> None:
    near = [vector(500, f"near-{index}", 1e-6) * np.float32(scale) for index in range(8)]
    updates = [Update(bytes([i]), f"p{i}", x) for i, x in enumerate(near)]
    outlier = Update(b"\xff", "far", np.full(500, 3e38, np.float32))
    tenfold = Update(b"\xfe", "tenfold", near[0] * np.float32(10))
    chosen = result([*updates, outlier, tenfold], {"rule": "multi_krum", "n_bad": 2, "n_kept": 6})
    assert float(np.abs(chosen).max()) <= float(np.abs(near).max())


def test_no_squared_distance_is_negative() -> None:
    geometry = measure([vector(500, f"near-{index}", 1e-9) for index in range(9)])
    assert all(geometry.distance(i, j) > 0 for i, j in itertools.permutations(range(9), 2))


@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=2,
        max_size=5,
    )
)
def test_inner_products_are_right_to_the_quantum(values: list[list[float]]) -> None:
    vectors = [np.array(value, np.float32) for value in values]
    geometry = measure(vectors)
    for i, j in itertools.product(range(len(vectors)), repeat=2):
        exact = math.fsum(float(a) * float(b) for a, b in zip(vectors[i], vectors[j], strict=True))
        bound = largest(vectors[i]) * largest(vectors[j]) * 3 * 2.0**-15
        assert abs(geometry.real(geometry.dot(i, j)) - exact) <= bound + 1e-300


def test_mixing_averages_each_update_with_its_nearest() -> None:
    updates = sorted(examples(300), key=lambda update: update.cid)
    x = stacked(updates)
    near = np.argsort(squared_distances(x), axis=1, kind="stable")[:, :9]
    mixed = x[near].mean(1)
    kept = np.sort(mixed, axis=0)[2:-2].mean(0)
    before = [{"before": "nnm", "n_bad": 2}]
    assert_close(result(updates, {"rule": "trimmed_mean", "n_bad": 2}, before), kept)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_inner_products_of_any_length_stay_exact(n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sum holds so many products and no more: longer vectors have several, which are added without a bound."""
    largest = [np.full(6 * COLUMNS, 0.999, np.float32)]
    quantum = 130941 / 2**17
    monkeypatch.setattr("agents.aggregation.geometry.BLOCKS_OF_SUM", 2)
    measured = measure(largest, n_threads)
    assert measured.real(measured.dot(0, 0)) == len(largest[0]) * quantum**2


def test_the_geometry_of_mixtures_is_that_of_the_mixed_updates() -> None:
    vectors = [vector(300, name) for name in PEERS]
    groups = [(0, 1, 2), (3,), (4, 5, 6, 7), (8, 9), (10, 0)]
    mixed = measure(vectors).mixed(groups)
    x = np.stack([np.mean([vectors[i].astype(np.float64) for i in group], axis=0) for group in groups])
    for i, j in itertools.product(range(len(groups)), repeat=2):
        assert mixed.real(mixed.dot(i, j)) == pytest.approx(float(x[i] @ x[j]), rel=1e-3, abs=1e-3)


class Counted(int):
    """A whole number that counts its sums."""

    n_sums = 0

    def __add__(self, other: int) -> "Counted":
        Counted.n_sums += 1
        return Counted(int(self) + int(other))

    __radd__ = __add__


def test_what_mixtures_cost_grows_with_the_cube_of_their_number_and_no_faster() -> None:
    """A thousand clients would else keep each member at it for hours."""
    n = 20
    groups = [tuple(sorted((place + step) % n for step in range(n - 4))) for place in range(n)]
    Counted.n_sums = 0
    Geometry([[Counted(i * j) for j in range(n)] for i in range(n)], Fraction(1)).mixed(groups)
    assert 0 < Counted.n_sums <= 2 * n**3


def test_buckets_hold_every_update_once() -> None:
    step = before_of({"before": "bucketing", "size": 3})
    from agents.aggregation.rule import Given, Known

    given_ = Given([Known(peer, 1.0, 1, 0) for peer in PEERS], lambda: measure([]))
    groups = step.groups(given_, SEED)
    assert sorted(i for group in groups for i in group) == list(range(len(PEERS)))
    assert [len(group) for group in groups] == [3, 3, 3, 2]
    assert groups != step.groups(given_, b"another round")


# The server's steps


def steps_of(server: dict[str, object], changes: Sequence[Vector]) -> list[Vector]:
    step = server_of(server)
    states = [np.zeros(len(changes[0]), np.float32) for _ in range(step.n_states)]
    made = []
    for change in changes:
        out = np.empty(len(change), np.float32)
        recipe = Recipe(rule_of({"rule": "fedavg"}), (), step)
        aggregate([Update(b"0", "p", change)], recipe, out, states=states)
        made.append(out)
    return made


CHANGES = [vector(50, f"change-{index}") for index in range(3)]


@pytest.mark.parametrize("is_nesterov", [False, True])
def test_momentum_keeps_a_velocity(is_nesterov: bool) -> None:
    velocity = np.zeros(50)
    made = steps_of({"server": "fedavgm", "rate": 0.7, "beta": 0.9, "is_nesterov": is_nesterov}, CHANGES)
    for change, step in zip(CHANGES, made, strict=True):
        velocity = 0.9 * velocity + change
        assert_close(step, 0.7 * (change + 0.9 * velocity if is_nesterov else velocity))


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_adaptive_servers_keep_two_moments(name: str) -> None:
    first, second = np.zeros(50), np.zeros(50)
    made = steps_of({"server": name, "rate": 0.1, "tau": 0.01}, CHANGES)
    for change, step in zip(CHANGES, made, strict=True):
        square = change.astype(np.float64) ** 2
        first = 0.9 * first + 0.1 * change
        match name:
            case "fedadagrad":
                second = second + square
            case "fedadam":
                second = 0.99 * second + 0.01 * square
            case _:
                second = second - 0.01 * square * np.sign(second - square)
        assert_close(step, 0.1 * first / (np.sqrt(second) + 0.01))


# What is refused


@pytest.mark.parametrize(
    ("rule", "n_updates", "what"),
    [
        ({"rule": "krum", "n_bad": 4}, 10, "Krum bears 4 bad updates among 11 or more, and there are 10"),
        ({"rule": "multi_krum", "n_bad": 2}, 6, "Multi-Krum"),
        ({"rule": "bulyan", "n_bad": 2}, 10, "Bulyan"),
        ({"rule": "trimmed_mean", "n_bad": 2}, 4, "a trimmed mean"),
    ],
)
def test_too_few_updates_for_the_bad_ones_are_refused(rule: dict[str, object], n_updates: int, what: str) -> None:
    with pytest.raises(CannotAggregate, match=what):
        result(examples(10, n_updates), rule)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", ["krum", "multi_krum", "bulyan", "geometric_median", "norm_bound", "flame"])
def test_a_choice_by_distance_refuses_what_is_not_finite(rule: str, bad: float) -> None:
    updates = examples(100)
    broken = updates[3].vector.copy()
    broken[99] = bad
    updates[3] = updates[3]._replace(vector=broken)
    with pytest.raises(CannotAggregate, match="NaN or infinity"):
        result(updates, settings(rule))


@pytest.mark.parametrize("values", [[math.nan], [1.0, math.inf], [-math.inf, 2.0], [0.0] * 70_000 + [math.nan]])
def test_screening_finds_what_is_not_finite_wherever_it_stands(values: list[float]) -> None:
    assert not math.isfinite(largest(np.array(values, np.float32)))


def test_screening_is_not_fooled_by_a_sum_that_overflows() -> None:
    assert largest(np.full(100, 3.4e38, np.float32)) == pytest.approx(3.4e38)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"vector": np.zeros(1, np.float32)}, "the update of other is float32 \\(1,\\)"),
        ({"vector": np.zeros(4, np.float64)}, "float64"),
        ({"vector": np.zeros((2, 2), np.float32)}, "\\(2, 2\\)"),
        ({"peer": "first"}, "one peer has two updates"),
    ],
)
def test_updates_that_do_not_fit_together_are_refused(change: dict[str, object], what: str) -> None:
    first = Update(b"a", "first", np.zeros(4, np.float32))
    other = first._replace(cid=b"b", peer="other")._replace(**change)
    with pytest.raises(CannotAggregate, match=what):
        result([first, other], {"rule": "fedavg"})


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ({"rule": "average"}, "there is no rule 'average'; there are: bulyan, "),
        ({"rule": 3}, "there is no rule '3'"),
        ("krum", "there is no rule"),
        ({"rule": "krum"}, "the settings of krum are not valid"),
        ({"rule": "krum", "n_bad": -1}, "the settings of krum are not valid"),
        ({"rule": "krum", "n_bad": 1, "n_good": 2}, "the settings of krum are not valid"),
        ({"rule": "fedavg", "weights": math.nan}, "the settings of fedavg are not valid"),
    ],
)
def test_a_rule_that_a_plan_states_wrongly_is_refused(rule: object, what: str) -> None:
    with pytest.raises(CannotAggregate, match=what):
        rule_of(rule)
