"""The room of large buffers is used again: what a process asks the system for, counted in pages."""

import subprocess
import sys

import pytest

from daemon.buffers import LARGE_BYTES, keep_buffers

COUNT = """
import resource
from daemon.buffers import keep_buffers
if {is_kept} and not keep_buffers():
    raise SystemExit("no mallopt")
def fill():
    for _ in range(50):
        held = [bytes(bytearray(1 << 20)) for _ in range(4)]
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def n_faults(*, is_kept: bool) -> int:
    command = [sys.executable, "-c", COUNT.format(is_kept=is_kept)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "no mallopt" in done.stderr:
        pytest.skip("this C library has its own ways with memory")
    return int(done.stdout)


def test_a_block_takes_the_room_of_one_that_is_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert n_faults(is_kept=True) * 10 < n_faults(is_kept=False)


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(LARGE_BYTES))
    assert not keep_buffers()
