from simulations.__main__ import main
from simulations.scenarios import SCENARIOS
from simulations.scenarios.announce import HEAL_S, PUBLISH_S, simulate


def test_the_same_seed_gives_the_same_table_and_another_seed_another(capsys):
    printed = []
    for seed in ("3", "3", "4"):
        assert main(["announce", "--nodes", "12", "--seed", seed, "--loss", "0.05"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]
    assert "digest " in printed[0]


def test_everybody_has_the_adapter_in_the_end_and_the_far_side_only_after_healing():
    heard = simulate(12, 1, 0.02)
    assert len(heard) == 11
    assert all(one.ready_s is not None and one.heard_s < one.ready_s for one in heard)
    assert all(one.heard_s > HEAL_S - PUBLISH_S for one in heard if one.side == 1)
    assert all(one.heard_s < HEAL_S - PUBLISH_S for one in heard if one.side == 0)


def test_scenarios_are_found_by_scanning():
    assert "announce" in SCENARIOS
    assert all(scenario.summary for scenario in SCENARIOS.values())
