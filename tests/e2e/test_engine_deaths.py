"""The engine dies or hangs under a real daemon: the user reads what happened, and the next message is answered."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
LONG = ("--max-tokens", "500")
HANG_S = 3


@pytest.fixture
def ada(new_node, with_tiny):
    node = with_tiny(new_node("ada"))
    node.set({"engine.hang_timeout_s": str(HANG_S)})
    return node.up()


def worker_pid(node, *, timeout_s: float = 60) -> int:
    """The process id of the engine, once there is one."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        pid = node.ask("engine", "status")["pid"]
        if pid:
            return int(pid)
    raise AssertionError("no engine was started")


def asked_and_answering(node, *args: str) -> subprocess.Popen[str]:
    """A long question whose answer has begun."""
    asking = node.begin("ask", "Tell me all about lists.", *LONG, *args)
    assert asking.stdout.read(1)
    return asking


@pytest.mark.parametrize(
    ("how", "said"), [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGSTOP, "no sign of life")], ids=["kill", "stop"]
)
def test_an_engine_that_dies_or_hangs_in_mid_answer_is_told_of_and_the_next_question_is_answered(ada, how, said):
    ada.ok("ask", "Hello?", "--max-tokens", "1")
    pid = worker_pid(ada)  # on a busy machine the answer would end before this is known
    asking = asked_and_answering(ada)

    os.kill(pid, how)
    answer, error = asking.communicate(timeout=60)

    assert asking.returncode == 1
    assert answer[-1:] in ("\n", "") and error.count("\n") == 1
    assert error.startswith("covey: the engine died:") and said in error
    assert ada.is_alive
    assert said in ada.wait("engine_died")["fields"]["text"]
    assert ada.ok("ask", "And now?", "--max-tokens", "4")
    status = ada.ask("engine", "status")
    assert (status["n_deaths"], status["n_restarts"], status["state"]) == (1, 1, "ready")
    assert said in status["last_death"]


@pytest.mark.long
def test_an_engine_that_dies_while_it_loads_is_told_of_and_the_next_question_loads_it_again(ada):
    asking = ada.begin("ask", "Hello?", "--max-tokens", "4")

    os.kill(worker_pid(ada), signal.SIGKILL)
    _, error = asking.communicate(timeout=60)

    assert asking.returncode == 1
    assert "killed by SIGKILL" in error and "memory" in error
    assert ada.ok("ask", "And now?", "--max-tokens", "4")


@pytest.mark.long
def test_a_chat_whose_engine_dies_says_so_and_goes_on(ada):
    chat = subprocess.Popen(
        [sys.executable, "-m", "daemon.cli.main", "chat", "--json", *LONG],
        env=ada.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip

    def until(*kinds: str) -> dict:
        for line in chat.stdout:
            event = json.loads(line)
            if event.get("type") in kinds:
                return event
        raise AssertionError("the chat ended")

    print("Tell me all about lists.", file=chat.stdin, flush=True)
    until("token")
    os.kill(worker_pid(ada), signal.SIGKILL)
    failed = until("failed", "finished")
    print("And about numbers?", file=chat.stdin, flush=True)
    went_on = until("token")
    chat.stdin.close()
    chat.stdin = None
    chat.communicate(timeout=60)

    assert failed["code"] == "engine_died" and "SIGKILL" in failed["text"]
    assert went_on["text"]


def test_the_user_may_end_it_and_is_told_what_that_ended(ada):
    asking = asked_and_answering(ada)

    assert "stopped" in ada.ok("engine", "stop")
    _, error = asking.communicate(timeout=60)

    assert asking.returncode == 1 and "stopped by its user" in error
    status = ada.ask("engine", "status")
    assert (status["state"], status["pid"], status["n_deaths"]) == ("stopped", None, 0)
