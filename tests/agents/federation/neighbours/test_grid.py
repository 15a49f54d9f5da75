import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.federation.neighbours.grid import groups, side


@given(st.integers(1, 200), st.integers(1, 5), st.data())
def test_each_member_is_in_one_group_a_round(n_members: int, n_dimensions: int, data: st.DataObject) -> None:
    found = groups(n_members, n_dimensions, data.draw(st.integers(0, n_dimensions - 1)))
    assert sorted(place for group in found for place in group) == list(range(n_members))
    assert max(map(len, found)) <= side(n_members, n_dimensions)


@pytest.mark.parametrize(("length", "n_dimensions"), [(2, 3), (3, 2), (5, 1), (4, 2), (2, 5)])
def test_in_a_full_grid_news_of_each_member_reaches_all_in_a_round_for_each_dimension(
    length: int, n_dimensions: int
) -> None:
    n_members = length**n_dimensions
    known = [{member} for member in range(n_members)]
    for dimension in range(n_dimensions):
        for group in groups(n_members, n_dimensions, dimension):
            assert len(group) == length
            together = set().union(*(known[member] for member in group))
            for member in group:
                known[member] = together
    assert all(len(each) == n_members for each in known)
