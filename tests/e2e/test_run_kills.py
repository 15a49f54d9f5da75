"""A run over real processes, one of which is killed in the midst of it: each step is committed once."""

from pathlib import Path

import pytest

from tests.campaigns.run_kills import Campaign, Case

pytestmark = [pytest.mark.e2e, pytest.mark.long]


def test_who_performs_a_run_may_be_killed_at_any_boundary(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path)
    try:
        for number, case in enumerate(
            [
                Case("after effect", 1, "performer", "later"),
                Case("after commit", 2, "performer", "at once"),
                Case("before effect", 3, "another", "later"),
            ]
        ):
            found = campaign.run(case, number)
            assert found.is_good, (case, found)
    finally:
        campaign.close()
