import pytest

from simulations.__main__ import main
from simulations.scenarios import SCENARIOS

FEDERATED = sorted(name for name in SCENARIOS if name.startswith("fl_"))


def test_the_scenarios_of_rounds_are_found() -> None:
    assert FEDERATED == ["fl_churn", "fl_equivocation", "fl_partition", "fl_stragglers", "fl_sybils"]


@pytest.mark.parametrize("name", FEDERATED)
def test_a_scenario_ends_as_expected_and_again_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for _ in range(2):
        assert main([name, "--participants", "20", "--selected", "9", "--seed", "3"]) == 0
        printed.append(capsys.readouterr().out)
    assert ": as expected\n" in printed[0]
    assert printed[0] == printed[1]
