"""Members with a bad network between them, some of whom go away and come back: one state in the end."""

from simulations.scenarios.workspace_merge import simulate


def test_members_over_a_network_that_loses_a_third_come_to_one_state():
    found = simulate(9, 250, seed=3, loss_frac=0.33)
    assert found.states == found.heads == 1 and found.agreed_s is not None
    assert found.parted > 1 and found.forks == 1 and found.n_void > 0 and found.n_lost > found.n_messages / 4
