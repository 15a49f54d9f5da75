"""The story of `covey demo federated`: three train together, one of them dies, a fourth proves what came of it."""

import os
import signal
from pathlib import Path
from typing import Any, Final

import numpy as np

from daemon.demo.stage import Actor, Stage, StepFailed
from daemon.demo.story import ON_LOOPBACK

TRAINERS: Final = ("ada", "bob", "cleo")
N_FEATURES: Final = 64
N_CLASSES: Final = 10
N_ROWS: Final = {"ada": 400, "bob": 400, "cleo": 12_000}
PLAN: Final = """\
title = "digits together"
rounds = 2
min_participants = 2
members = ["{bob}", "{cleo}", "{dan}"]
deputies = ["me", "{bob}", "{cleo}"]
deadline_s = 120
lease_s = 4
before = [{{ before = "nnm", n_bad = 0 }}]
rule = {{ rule = "trimmed_mean", n_bad = 0 }}

[task]
task = "softmax"
n_features = 64
n_classes = 10
batch = 4
n_epochs = 6
learning_rate = 0.01
"""

Json = Any


def play(stage: Stage) -> None:
    """The whole story. Raises: StepFailed at the first step that does not hold."""
    stage.say("Four nodes on this machine and no server. Ada, Bob and Cleo have data that they give to nobody.")
    actors = {name: stage.enters(name) for name in (*TRAINERS, "dan")}
    ada, bob, dan = actors["ada"], actors["bob"], actors["dan"]
    with stage.step("Four daemons start"):
        for actor in actors.values():
            for key, value in ON_LOOPBACK.items():
                actor.asks("config", "set", key, value)
            actor.types("up", "--detach")
        peers = {name: actor.asks("id")["peer"] for name, actor in actors.items()}
        address = ada.asks("status")["addresses"][0]
    with stage.step("Ada signs a plan: what is trained, how updates become one, who coordinates after whom") as found:
        path = stage.folder / "plan.toml"
        path.write_text(PLAN.format(**peers))
        ada.shows(f"covey fl plan {path}")
        experiment = found["experiment"] = ada.asks("fl", "plan", str(path))["experiment"]
        stage.say(f"   {experiment}")
    with stage.step("Three join, each with data of its own; Dan follows and trains nothing. Ada tells who is where"):
        for seed, name in enumerate(TRAINERS):
            data = _data(stage.folder / f"{name}.npz", seed, N_ROWS[name])
            actors[name].types("fl", "join", experiment, "--from", address, "--data", str(data))
        dan.types("fl", "join", experiment, "--from", address)
        _until(ada, experiment, lambda now: now["n_joined"] == len(TRAINERS))
        ada.types("fl", "start", experiment)
    with stage.step("Round 1: each trains, submits, gets a receipt, countersigns, and computes the result for itself"):
        first = _until(dan, experiment, lambda now: now["rounds"] and now["rounds"][0]["result"])["rounds"][0]
        stage.say(f"   {first['n_submitted']} updates, {first['n_votes']} votes, loss {first['loss']:.4f}")
    with stage.step("Round 2: Ada, who coordinates, is killed for good (kill -9) with her update submitted"):
        _until(bob, experiment, _has_receipts_of_two)
        ada.shows("kill -9")
        os.kill(int((ada.home / "daemon.lock").read_text().split()[0]), signal.SIGKILL)
    with stage.step("After a lease of silence Bob takes over, closes what was received, and the round ends") as found:
        ended = _until(dan, experiment, lambda now: now["is_over"])
        second = ended["rounds"][1]
        stage.say(f"   term {second['term']}: {second['n_submitted']} updates, loss {second['loss']:.4f}")
        found |= {"term": second["term"], "result": second["result"], "loss": second["loss"]}
        if not second["term"]:
            raise StepFailed("the coordinator had closed the round before it was killed")
    with stage.step("Dan, who trained nothing, fetches every update, computes both rounds again, and compares"):
        dan.types("fl", "verify", experiment)
    with stage.step("And anybody can, offline, with the one file that holds all of it") as found:
        car = stage.folder / "experiment.car"
        dan.types("fl", "export", experiment, "--out", str(car))
        cleo = actors["cleo"]
        cleo.types("fl", "verify", str(car), "--offline")
        found["size_bytes"] = car.stat().st_size
    stage.say("\nEvery step held. Your own: covey fl plan -h")


def _has_receipts_of_two(now: Json) -> bool:
    last = now["rounds"][-1] if now["rounds"] else None
    return bool(last and last["round"] == 2 and last["n_receipts"] >= 2 and last["phase"] == "training")


def _data(path: Path, seed: int, n_rows: int) -> Path:
    """What one participant has: noisy copies of ten patterns."""
    patterns = np.random.default_rng(0).normal(size=(N_CLASSES, N_FEATURES))
    noise = np.random.default_rng(seed + 1)
    labels = noise.integers(0, N_CLASSES, n_rows)
    x = patterns[labels] + 1.5 * noise.normal(size=(n_rows, N_FEATURES))
    np.savez(path, x=x.astype(np.float32), y=labels)
    return path


def _until(actor: Actor, experiment: str, is_it: Any) -> Json:
    """How the experiment stands once that holds. Raises: StepFailed."""
    for now in actor.follows("fl", "watch", experiment):
        if is_it(now):
            return now
    raise StepFailed(f"{actor.name} waited in vain: covey fl status {experiment}")
