"""The story of `covey demo federated`: three train together, one of them dies, a fourth proves what came of it."""

import importlib.util
import os
import pydoc_data.topics
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from daemon.demo.stage import Actor, Stage, StepFailed
from daemon.demo.story import ON_LOOPBACK

TRAINERS: Final = ("ada", "bob", "cleo")
HEAD: Final = """\
title = "{title}"
rounds = 2
min_participants = 2
members = ["{bob}", "{cleo}", "{dan}"]
deputies = ["me", "{bob}", "{cleo}"]
deadline_s = 200
lease_s = {lease_s}
"""
N_FEATURES: Final = 64
N_CLASSES: Final = 10
N_ROWS: Final = {"ada": 400, "bob": 400, "cleo": 12_000}
DIGITS: Final = """\
before = [{ before = "nnm", n_bad = 0 }]
rule = { rule = "trimmed_mean", n_bad = 0 }
[task]
task = "softmax"
n_features = 64
n_classes = 10
batch = 4
n_epochs = 6
learning_rate = 0.01
"""
TOPICS: Final = {"ada": "formatstrings", "bob": "typesseq", "cleo": "debugger"}
LORA: Final = """\
rule = { rule = "fedavg", weights = "uniform" }
compression = "int8"
[task]
task = "lora"
base = "tiny"
targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
n_steps = 30
context_tokens = 96
learning_rate = 0.005
"""

ROUND_LIMIT_S: Final = 400.0

Json = Any


@dataclass(frozen=True)
class Cast:
    """What is trained: a plan, what each needs first, and what each has to train on."""

    title: str
    plan: str
    lease_s: int
    prepare: Callable[[Stage, dict[str, Actor]], None]
    data: Callable[[Path, str], Path]
    is_adapter: bool


def cast_of(task: str | None) -> Cast:
    """The cast for a task; without one, LoRA where an engine is installed, else what needs none. Raises: StepFailed."""
    has_engine = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))
    if task == "lora" and not has_engine:
        raise StepFailed("LoRA needs an engine: pip install 'covey[engine]', or play it with --task softmax")
    if task == "lora" or (task is None and has_engine):
        return Cast("three topics", LORA, 8, _bring_models, _topic, is_adapter=True)
    return Cast("digits together", DIGITS, 4, lambda stage, actors: None, _digits, is_adapter=False)


def play(stage: Stage, task: str | None = None) -> None:
    """The whole story. Raises: StepFailed at the first step that does not hold."""
    cast = cast_of(task)
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
    cast.prepare(stage, actors)
    with stage.step("Ada signs a plan: what is trained, how updates become one, who coordinates after whom") as found:
        path = stage.folder / "plan.toml"
        path.write_text(HEAD.format(title=cast.title, lease_s=cast.lease_s, **peers) + cast.plan)
        ada.shows(f"covey fl plan {path}")
        experiment = found["experiment"] = ada.asks("fl", "plan", str(path))["experiment"]
        stage.say(f"   {experiment}")
    with stage.step("Three join, each with data of its own; Dan follows and trains nothing. Ada tells who is where"):
        for name in TRAINERS:
            data = cast.data(stage.folder, name)
            actors[name].types("fl", "join", experiment, "--from", address, "--data", str(data))
        dan.types("fl", "join", experiment, "--from", address)
        _until(ada, experiment, lambda now: now["n_joined"] == len(TRAINERS))
        ada.types("fl", "start", experiment)
    _two_rounds(stage, actors, experiment)
    with stage.step("After a lease of silence a deputy takes over, closes what was received; the round ends") as found:
        ended = _until(dan, experiment, lambda now: now["is_over"] and now["rounds"][1]["n_scores"] >= 2)
        second = ended["rounds"][1]
        stage.say(f"   term {second['term']}: {second['n_submitted']} updates, {_scored(second)}")
        found |= {"term": second["term"], "result": second["result"], "loss": second["result_loss"]}
        if not second["term"]:
            raise StepFailed("the coordinator had closed the round before it was killed")
    _prove(stage, actors, experiment)
    _use(stage, bob, experiment, is_adapter=cast.is_adapter)
    stage.say("\nEvery step held. Your own: covey fl plan -h")


def _two_rounds(stage: Stage, actors: dict[str, Actor], experiment: str) -> None:
    """The first is over, and the coordinator of the second is dead."""
    ada, bob, cleo, dan = (actors[name] for name in (*TRAINERS, "dan"))
    with ExitStack() as asleep:
        with stage.step("Round 1: each trains, submits, gets a receipt, countersigns, and computes the result itself"):
            asleep.enter_context(_asleep(cleo, experiment))  # at once: a round may be over in a few seconds
            first = _until(dan, experiment, _others_scored)["rounds"][0]
            stage.say(f"   {first['n_submitted']} updates, {first['n_votes']} votes, {_scored(first)}")
        with stage.step("Round 2: Ada, who coordinates, is killed for good (kill -9) with her update submitted"):
            _until(bob, experiment, _has_receipts_of_two)
            ada.shows("kill -9")
            os.kill(_pid(ada), signal.SIGKILL)


def _prove(stage: Stage, actors: dict[str, Actor], experiment: str) -> None:
    dan, cleo = actors["dan"], actors["cleo"]
    with stage.step("Dan, who trained nothing, fetches every update, computes both rounds again, and compares"):
        dan.types("fl", "verify", experiment)
    with stage.step("And anybody can, offline, with the one file that holds all of it") as found:
        car = stage.folder / "experiment.car"
        dan.types("fl", "export", experiment, "--out", str(car))
        cleo.types("fl", "verify", str(car), "--offline")
        found["size_bytes"] = car.stat().st_size


def _use(stage: Stage, bob: Actor, experiment: str, *, is_adapter: bool) -> None:
    with stage.step("Bob looks at the curves of it" + (", and keeps the result as an adapter" if is_adapter else "")):
        page = stage.folder / "report.html"
        bob.types("fl", "report", experiment, "--out", str(page))
        if is_adapter:
            bob.types("fl", "result", experiment, "--as-adapter", "topics")
            bob.types("adapter", "publish", "topics", "--visibility", "private")
            if not bob.asks("adapter", "ls", "--name", "topics"):
                raise StepFailed("the adapter is not listed")


def _others_scored(now: Json) -> bool:
    """All but the one that is asleep: an engine may train first, and look at the result behind it."""
    return bool(now["rounds"]) and now["rounds"][0]["n_scores"] >= len(TRAINERS) - 1


def _scored(found: Json) -> str:
    """How a round's result does."""
    words = f"loss of the result on what {found['n_scores']} held out {found['result_loss']:.4f}"
    return words + (f", accuracy {found['result_accuracy']:.1%}" if found["result_accuracy"] is not None else "")


def _bring_models(stage: Stage, actors: dict[str, Actor]) -> None:
    with stage.step("Those who train bring in the same small model; the plan names it by its fingerprint"):
        actors["ada"].types("model", "pull", "tiny", "--name", "tiny")
        folder = actors["ada"].asks("model", "show", "tiny")["folder"]
        for name in TRAINERS[1:]:
            actors[name].types("model", "pull", folder, "--name", "tiny")


@contextmanager
def _asleep(actor: Actor, experiment: str) -> Iterator[None]:
    """Stop an actor once it trains in round 2, for the length of the block: so that the round is not over before."""
    _until(actor, experiment, lambda now: "training round 2" in now["doing"])
    actor.shows("kill -STOP (its laptop is closed for a while)")
    os.kill(_pid(actor), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(_pid(actor), signal.SIGCONT)


def _pid(actor: Actor) -> int:
    return int((actor.home / "daemon.lock").read_text().split()[0])


def _has_receipts_of_two(now: Json) -> bool:
    last = now["rounds"][-1] if now["rounds"] else None
    return bool(last and last["round"] == 2 and last["n_receipts"] >= 2 and last["phase"] == "training")


def _topic(folder: Path, name: str) -> Path:
    """What one participant has: a chapter of Python's own reference."""
    path = folder / f"{name}.txt"
    path.write_text(pydoc_data.topics.topics[TOPICS[name]])
    return path


def _digits(folder: Path, name: str) -> Path:
    """What one participant has: noisy copies of ten patterns."""
    path = folder / f"{name}.npz"
    patterns = np.random.default_rng(0).normal(size=(N_CLASSES, N_FEATURES))
    noise = np.random.default_rng(TRAINERS.index(name) + 1)
    labels = noise.integers(0, N_CLASSES, N_ROWS[name])
    x = patterns[labels] + 1.5 * noise.normal(size=(N_ROWS[name], N_FEATURES))
    np.savez(path, x=x.astype(np.float32), y=labels)
    return path


def _until(actor: Actor, experiment: str, is_it: Any) -> Json:
    """How the experiment stands once that holds. Raises: StepFailed."""
    for now in actor.follows("fl", "watch", experiment, limit_s=ROUND_LIMIT_S):
        if is_it(now):
            return now
    raise StepFailed(f"{actor.name} waited in vain: covey fl status {experiment}")
