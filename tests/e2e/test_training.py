"""A training in real processes: whoever is killed, it goes on from its checkpoint, and ends with the same bytes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.lock import daemon_pid
from daemon.paths import Home

ROOT = Path(__file__).parents[2]
COVEY = [sys.executable, "-m", "daemon.cli.main"]
LIMIT_S = 120
SETTINGS = ("--n-steps", "60", "--dropout", "0.1", "--checkpoint-every", "5", "--batch", "4")

pytestmark = [pytest.mark.e2e, pytest.mark.engine]


class Covey:
    """A home, and the command line in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "COVEY_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*COVEY, *arguments], env=self.environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COVEY, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def weights(self, name: str) -> bytes:
        return (self.home / "training" / name / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def covey(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    covey = Covey(folder / "home")
    covey.run("init")
    for setting in (("network.port", "0"), ("network.host", "127.0.0.1"), ("network.has_mdns", "false")):
        covey.run("config", "set", *setting)
    covey.run("up", "--detach")
    covey.run("model", "pull", str(tiny_model), "--name", "tiny")
    data = folder / "fox.txt"
    data.write_text("".join(f"the fox number {n} sleeps until {n * n}, and dog {n + 7} barks. " for n in range(60)))
    covey.data = str(data)
    covey.run("train", covey.data, "--name", "whole", *SETTINGS)
    yield covey
    covey.run("down")


def steps(process):
    """The items that a training tells, as they come."""
    for line in process.stdout:
        yield json.loads(line)


def end(process):
    """Wait for its end; what it wrote on stderr."""
    return process.communicate(timeout=LIMIT_S)[1]


def trainer_of(covey: Covey) -> int:
    """The process that trains."""
    pid = json.loads(covey.run("engine", "status", "--json"))["trainer"]["pid"]
    assert pid is not None, "no trainer is running"
    return int(pid)


def test_a_killed_trainer_is_told_and_the_training_goes_on_to_the_same_bytes(covey):
    process = covey.start("train", covey.data, "--name", "orphan", *SETTINGS, "--json")
    told, trainer = [], None
    for item in steps(process):
        told.append(item)
        if trainer is None and "loss" in item:
            trainer = trainer_of(covey)
        if item.get("n_done") == 12 and not any("SIGKILL" in one["step"] for one in told):
            os.kill(trainer, signal.SIGKILL)
    end(process)
    assert process.returncode == 0
    died = next(item for item in told if "SIGKILL" in item.get("step", ""))
    assert died["n_done"] >= 10 and died["n_done"] % 5 == 0
    assert any(f"going on after step {died['n_done']}" in item.get("step", "") for item in told)
    assert told[-1]["type"] == "trained"
    assert covey.weights("orphan") == covey.weights("whole")


@pytest.mark.long
def test_a_training_whose_daemon_is_killed_is_gone_on_with_by_the_next(covey):
    process = covey.start("train", covey.data, "--name", "widow", *SETTINGS, "--json")
    for item in steps(process):
        if item.get("n_done") == 17 and "loss" in item:
            os.kill(daemon_pid(Home(covey.home)), signal.SIGKILL)
            break
    end(process)
    assert process.returncode != 0
    covey.run("up", "--detach")
    (left,) = [one for one in json.loads(covey.run("training", "ls", "--json")) if one["state"] == "unfinished"]
    assert left["name"] == "widow" and left["step"] >= 15 and left["step"] % 5 == 0
    covey.run("training", "resume", "widow")
    assert covey.weights("widow") == covey.weights("whole")


@pytest.mark.long
def test_an_interrupted_training_says_how_to_go_on_and_the_same_command_does(covey):
    process = covey.start("train", covey.data, "--name", "half", *SETTINGS, "--json")
    trainer = None
    for item in steps(process):
        if trainer is None and "loss" in item:
            trainer = trainer_of(covey)
        if item.get("n_done") == 7 and "loss" in item:
            os.kill(trainer, signal.SIGSTOP)  # it does not come to its end before the interruption comes to it
            process.send_signal(signal.SIGINT)
            break
    said = end(process)
    os.kill(trainer, signal.SIGCONT)
    assert process.returncode == 130
    assert "To go on: covey training resume half" in said
    told = [
        json.loads(line)
        for line in covey.run("train", covey.data, "--name", "half", *SETTINGS, "--json").split("\n")
        if line
    ]
    assert any("going on after step" in item.get("step", "") for item in told)
    assert covey.weights("half") == covey.weights("whole")


def test_a_trained_adapter_is_published_with_its_record_and_merged_and_exported(covey, tmp_path):
    covey.run("adapter", "publish", "whole", "--visibility", "private")
    shown = json.loads(covey.run("adapter", "show", "whole", "--json"))
    assert shown["training"]["n_steps"] == 60 and shown["training"]["data"].startswith("baf")
    covey.run("model", "merge", "tiny", "whole", str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "model.safetensors").exists()
    covey.run("model", "export", "tiny", str(tmp_path / "fox.gguf"), "--adapter", "whole", "--dtype", "int8")
    assert (tmp_path / "fox.gguf").read_bytes()[:4] == b"GGUF"
