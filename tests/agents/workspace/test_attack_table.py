"""The table of attacks comes out as agents/WORKSPACES.md says: nothing handled, nothing stored, nothing effective."""

from tests.campaigns.attacks import EXPECTED, is_expected, table


def test_every_attack_comes_to_what_it_should():
    rows = table(8)
    assert [row for row in rows if not is_expected(row)] == []
    assert {row.name for row in rows} == {*EXPECTED, "as it should be", "as it should be, after it"}
