"""Who performs a run is killed at each boundary; another takes over, and no step that is done is done again."""

import pytest

from simulations.scenarios.run_kills import BOUNDARIES, Case, simulate


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_run_survives_its_performer(boundary):
    found = simulate(Case(boundary, 2, "comes back late"), seed=1)
    assert found.is_good, found
    assert found.performers == 2 and sum(found.n_effects) <= 6


def test_and_goes_on_with_the_same_one_when_it_is_back_at_once():
    found = simulate(Case("before effect", 4, "comes back at once"), seed=1)
    assert found.is_good and found.n_attempts == (1, 1, 1, 1, 2) and found.n_effects == (1, 1, 1, 1, 1)
