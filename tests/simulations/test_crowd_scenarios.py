import argparse

import pytest

from simulations.__main__ import main
from simulations.scenarios import SCENARIOS
from simulations.scenarios.federated import lines

FEDERATED = sorted(name for name in SCENARIOS if name.startswith("fl_"))
N_SELECTED = 12  # of 20: a rule for half of them bears all four bad ones, whomever chance selects
AGAIN = ("fl_equivocation", "fl_sign_flip")  # one of each kind of crowd


def test_the_scenarios_of_rounds_are_found() -> None:
    assert [name.removeprefix("fl_") for name in FEDERATED] == [
        "alie", "async", "churn", "equivocation", "free_riders", "gossip", "ipm", "label_flip", "nan", "partition",
        "scaling", "sign_flip", "stragglers", "sybils",
    ]  # fmt: skip


@pytest.mark.parametrize("name", FEDERATED)
def test_a_scenario_ends_as_expected_and_again_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for _ in range(1 + (name in AGAIN)):
        assert main([name, "--participants", "20", "--selected", str(N_SELECTED), "--seed", "3"]) == 0
        printed.append(capsys.readouterr().out)
    assert ": as expected\n" in printed[0]
    assert printed[0] == printed[-1]


def test_the_table_has_a_row_for_each_that_was_asked_for() -> None:
    args = argparse.Namespace(participants=20, selected=N_SELECTED, seed=3, only=("nan", "sybils"))
    found = list(lines(args))
    assert [line.split("|")[1].strip() for line in found[2:]] == ["nan", "sybils"]
    assert all("| as expected |" in line for line in found[2:])
