"""The campaign of attacks on a daemon: a few of them here, all of them by `python -m tests.campaigns.hostile`."""

import pytest
import trio

from tests.campaigns.hostile import ATTACKS, Row, campaign, line, stand
from tests.campaigns.hostile_scene import Scene, daemon_with_content

QUICK = ("insistent",)

pytestmark = pytest.mark.e2e


def stand_all(names: tuple[str, ...]) -> list[Row]:
    with daemon_with_content() as scene:
        return trio.run(campaign, scene, names, lambda row: None)


def test_a_daemon_stands_attacks_serves_a_friend_meanwhile_and_does_not_grow() -> None:
    rows = stand_all(QUICK)
    assert [row.attack for row in rows] == list(QUICK)
    assert all(row.is_well for row in rows), "\n".join(map(line, rows))
    assert rows[0].offender == "refused (bad_connection)"


@pytest.mark.long
def test_a_daemon_stands_every_attack_that_we_know() -> None:
    rows = stand_all(tuple(ATTACKS))
    assert all(row.is_well for row in rows), "\n".join(map(line, rows))


def test_what_goes_wrong_stands_in_the_table() -> None:
    class Deaf(Scene):
        """A node that serves nobody any more."""

        async def fetch(self) -> float:
            raise trio.TooSlowError

        async def ask(self, *args: str) -> list[dict[str, object]]:
            return []

        async def offenders(self) -> dict[str, str]:
            return {}

    class Process:
        resident_mib = 1.0

    async def harmless(scene: Scene) -> str:
        return "nothing"

    deaf = Deaf(Process(), None, None, None)  # type: ignore[arg-type]  # of no use here
    row = trio.run(stand, deaf, "none", harmless)
    assert not row.is_well
    assert "| NO |" in line(row)
    assert "TooSlowError" in row.stranger
