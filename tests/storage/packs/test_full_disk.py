"""On a disk that is really full, what was deleted makes room, whatever the packs look like."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.storage.packs.full_disk import PLAYS

ROOT = Path(__file__).parents[3]
DISK_MIB = 100


def on_a_small_disk(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program that sees a small disk at `folder`, which is gone when it ends."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    script = f'mount -t tmpfs -o size={DISK_MIB}m tmpfs "$0"; exec "$@"'
    return subprocess.run(
        [*unshare, script, str(folder), *command], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="session")
def small_disks(tmp_path_factory: pytest.TempPathFactory) -> None:
    if shutil.which("unshare") is None or on_a_small_disk(tmp_path_factory.mktemp("disk"), "true").returncode:
        pytest.skip("this machine lets nobody mount a small disk")


@pytest.mark.usefixtures("small_disks")
@pytest.mark.parametrize("play", PLAYS)
def test_a_full_disk_gets_the_room_of_what_was_deleted_back(tmp_path: Path, play: str) -> None:
    done = on_a_small_disk(tmp_path, sys.executable, "-m", "tests.storage.packs.full_disk", str(tmp_path), play)
    assert done.returncode == 0, done.stdout + done.stderr
