import pytest

from simulations.__main__ import main
from simulations.scenarios import SCENARIOS


def test_the_help_tells_of_each_scenario_in_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert [one.name for one in SCENARIOS.values() if f"{one.name} {one.summary}" not in told] == []
