"""A few members with all that can go wrong between them: one state in the end, and one winner."""

from simulations.scenarios.workspace import simulate


def test_members_that_were_parted_crashed_or_lied_come_to_one_state():
    found = simulate(6, 30, seed=2, loss_frac=0.05)
    assert found.states == 1 and found.agreed_s is not None
    assert found.parted > 1 and found.winners <= 1 and found.forks == 1 and found.n_void > 0
