"""Short versions of the campaigns, and that they notice what they are for."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns import shim, syncs

ROOT = Path(__file__).parents[2]
needs_shim = pytest.mark.skipif(shim.why_not() is not None, reason=str(shim.why_not()))


def run(*args: str) -> tuple[int, str]:
    """A campaign forks, which this process with its threads should not: it gets one of its own."""
    command = [sys.executable, "-m", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def test_sixty_deaths_cost_nothing_that_was_acknowledged() -> None:
    code, said = run("tests.campaigns.crash", "--points", "60")
    assert code == 0, said
    assert "60 deaths by kill -9" in said


@needs_shim
def test_power_loss_costs_nothing_that_was_acknowledged() -> None:
    code, said = run("tests.campaigns.power", "--prefixes", "30")
    assert code == 0, said
    assert "nothing acknowledged was lost" in said


@needs_shim
@pytest.mark.parametrize("site", ["_sync: sync_data(fd)", "_sync: sync_folder(self._folder)"])
def test_power_loss_is_noticed_where_a_sync_is_left_out(site: str) -> None:
    code, said = run("tests.campaigns.power", "--prefixes", "10", "--without", site)
    assert code == 1, said
    assert "FAILED" in said


def test_every_sync_of_the_store_has_a_name() -> None:
    files = {site.partition(":")[0] for site in syncs.sites()}
    assert {"storage/packs/files.py", "storage/packs/recovery.py", "storage/durable.py"} <= files
