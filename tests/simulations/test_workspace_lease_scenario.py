"""What agents/WORKSPACES.md says of claims and leases in a partition is what happens."""

from simulations.scenarios.workspace_lease import situations


def test_claims_and_leases_in_a_partition_come_to_what_is_written_down():
    found = situations()
    assert [one.n_states for one in found] == [1] * 6
    assert [one.is_safe for one in found] == [True, True, True, True, False, True]
    claimed, moved, stayed, even, removed, lied = found
    assert claimed.held == ("member 0", "-") and (claimed.held_after, claimed.done_after) == ("member 0", "left")
    assert moved.held == ("member 0", "member 2") and moved.done == ("-", "right") and moved.done_after == "right"
    assert stayed.done == ("left", "-") and (stayed.held_after, stayed.done_after) == ("member 3", "left")
    assert even.held == ("-", "-") and even.held_after == "-"
    assert removed.done == ("left", "right") and removed.done_after == "left"
    assert lied.held == ("member 0", "member 3") and (lied.held_after, lied.done_after) == ("-", "-")
