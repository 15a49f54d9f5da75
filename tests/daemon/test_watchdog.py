"""A stop that hangs: the process ends all the same, with a code that says so."""

import subprocess
import sys

import pytest

from daemon.lifecycle import EXIT_IMPATIENT, EXIT_STUCK

STUCK = """
import os, signal, sys, threading, trio
from daemon.lifecycle import stop_on_signals

async def main():
    stopping = trio.Event()
    with stop_on_signals(stopping.set, limit_s=float(sys.argv[1])):
        os.kill(os.getpid(), signal.SIGTERM)
        await stopping.wait()
        if sys.argv[2] == "loop":
            if sys.argv[1] == "60":
                os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(60)  # the loop itself is stuck
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

trio.run(main)
"""


@pytest.mark.parametrize(
    ("limit_s", "what", "code"),
    [("0.2", "loop", EXIT_STUCK), ("0.2", "task", EXIT_STUCK), ("60", "loop", EXIT_IMPATIENT)],
    ids=["the event loop hangs", "cleaning up hangs", "the user is impatient"],
)
def test_a_stop_that_hangs_ends_the_process(limit_s, what, code):
    done = subprocess.run([sys.executable, "-c", STUCK, limit_s, what], capture_output=True, timeout=30)
    assert done.returncode == code, done.stderr
