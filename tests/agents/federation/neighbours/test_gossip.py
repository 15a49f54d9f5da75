import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.federation.neighbours.gossip import (
    BadTopology,
    Mass,
    check,
    gathered,
    groups,
    mean,
    metropolis,
    mixed,
    shares,
    side,
    without,
)

RING = [{(i - 1) % 6, (i + 1) % 6} for i in range(6)]
STAR = [{1, 2, 3, 4}, {0}, {0}, {0}, {0}]


def exact(n_members: int, seed: int = 1) -> list[np.ndarray]:  # type: ignore[type-arg]
    chance = random.Random(seed)
    return [np.array([Fraction(chance.randrange(-99, 99)) for _ in range(3)], object) for _ in range(n_members)]


@st.composite
def connected(draw: st.DrawFn) -> list[set[int]]:
    """Any graph of two members or more, joined by a path."""
    n_members = draw(st.integers(2, 9))
    edges = {(i, i + 1) for i in range(n_members - 1)}
    edges |= draw(st.sets(st.tuples(st.integers(0, n_members - 1), st.integers(0, n_members - 1)), max_size=12))
    topology: list[set[int]] = [set() for _ in range(n_members)]
    for one, other in edges:
        if one != other:
            topology[one].add(other)
            topology[other].add(one)
    return topology


@given(connected())
def test_weights_are_symmetric_and_come_to_one(topology: list[set[int]]) -> None:
    weights = metropolis(topology)
    for member, own in enumerate(weights):
        assert sum(own.values()) == 1
        assert own.keys() == {member, *topology[member]}
        assert all(weight >= 0 and weight == weights[other][member] for other, weight in own.items())


@given(connected(), st.data())
def test_mixing_leaves_the_mean_exactly_where_it_is_even_when_some_are_gone(
    topology: list[set[int]], data: st.DataObject
) -> None:
    vectors = exact(len(topology))
    gone = data.draw(st.sets(st.integers(0, len(topology) - 1)))
    after = []
    for member, own in enumerate(metropolis(topology)):
        lost = set(own) - {member} if member in gone else gone
        left = without(own, member, lost)
        after.append(mixed({place: vectors[place] for place in left}, left))
    assert (sum(after) == sum(vectors)).all()


def test_mixing_again_and_again_brings_all_to_the_mean() -> None:
    for topology in (RING, STAR):
        vectors = [vector.astype(np.float64) for vector in exact(len(topology))]
        goal = sum(vectors) / len(vectors)
        for _ in range(200):
            vectors = [
                mixed({place: vectors[place] for place in own}, own) for own in metropolis(topology)
            ]  # fmt: skip
        assert max(np.abs(vector - goal).max() for vector in vectors) < 1e-6


@given(connected(), st.integers(1, 6), st.integers(0, 99))
def test_shares_are_never_made_or_lost(topology: list[set[int]], n_rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    vectors = exact(len(topology))
    held = [Mass(vector, Fraction(1)) for vector in vectors]
    for _ in range(n_rounds):
        receivers = [set(chance.sample(sorted(others), chance.randint(0, len(others)))) for others in topology]
        sent = [shares(mass, len(to)) for mass, to in zip(held, receivers, strict=True)]
        held = [
            gathered(sent[place], {other: sent[other] for other in range(len(sent)) if place in receivers[other]})
            for place in range(len(sent))
        ]
    assert sum(mass.weight for mass in held) == len(topology)
    assert (sum(mass.vector for mass in held) == sum(vectors)).all()


def test_shares_come_to_the_mean_along_edges_that_do_not_lead_back() -> None:
    one_way = [{(i + 1) % 5, (i + 2) % 5} if i % 2 else {(i + 1) % 5} for i in range(5)]
    check(one_way)
    with pytest.raises(BadTopology, match="lead back"):
        metropolis(one_way)
    vectors = [vector.astype(np.float64) for vector in exact(5)]
    held = [Mass(vector, 1.0) for vector in vectors]
    for _ in range(120):
        sent = [shares(mass, len(to)) for mass, to in zip(held, one_way, strict=True)]
        held = [
            gathered(sent[place], {other: sent[other] for other in range(5) if place in one_way[other]})
            for place in range(5)
        ]
    for mass in held:
        np.testing.assert_allclose(mass.mean, sum(vectors) / 5.0, rtol=1e-9)


@pytest.mark.parametrize(("length", "n_dimensions"), [(2, 3), (3, 2), (5, 1), (4, 2), (2, 5)])
def test_a_full_grid_holds_the_exact_mean_after_a_round_for_each_dimension(length: int, n_dimensions: int) -> None:
    n_members = length**n_dimensions
    vectors = exact(n_members)
    goal = sum(vectors) * Fraction(1, n_members)
    for number in range(n_dimensions):
        after = list(vectors)
        for group in groups(n_members, n_dimensions, number):
            common = mean({place: vectors[place] for place in group})
            for place in group:
                after[place] = common
        vectors = after
    assert all((vector == goal).all() for vector in vectors)


@given(st.integers(1, 200), st.integers(1, 5), st.integers(0, 20))
def test_each_member_is_in_one_group_a_round(n_members: int, n_dimensions: int, number: int) -> None:
    found = groups(n_members, n_dimensions, number)
    assert sorted(place for group in found for place in group) == list(range(n_members))
    assert max(map(len, found)) <= side(n_members, n_dimensions)


def test_who_drops_out_of_a_group_is_not_waited_for() -> None:
    vectors = exact(3)
    assert (mean({0: vectors[0], 2: vectors[2]}) == (vectors[0] + vectors[2]) * Fraction(1, 2)).all()


def test_a_mean_of_floats_has_the_same_bits_in_every_order_of_arrival() -> None:
    vectors = {place: np.random.default_rng(place).standard_normal(50).astype(np.float32) for place in range(7)}
    shuffled = {place: vectors[place] for place in random.Random(1).sample(range(7), 7)}
    assert mean(vectors).tobytes() == mean(shuffled).tobytes()
    assert mean(vectors).dtype == np.float32


@pytest.mark.parametrize(
    ("topology", "what"),
    [
        ([{1}, {0}, {3}, {2}], "parts"),
        ([{1}, set()], "parts"),
        ([set(), {0}], "parts"),
        ([{0}], "itself"),
        ([{1}, {0, 2}], "nobody"),
        ([{-1}, {0}], "nobody"),
    ],
)
def test_edges_over_which_nobody_can_average_are_refused(topology: list[set[int]], what: str) -> None:
    with pytest.raises(BadTopology, match=what):
        check(topology)


def test_vectors_that_are_not_the_neighbours_are_refused() -> None:
    weights = metropolis(RING)[0]
    with pytest.raises(BadTopology, match="neighbours"):
        mixed({0: np.zeros(1), 1: np.zeros(1)}, weights)
    with pytest.raises(BadTopology, match="dimensions"):
        groups(4, 9, 0)
