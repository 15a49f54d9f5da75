"""A run over three real nodes, one of which is killed with -9 at each boundary: `python -m tests.campaigns.run_kills`.

Three processes, each a whole node of its own, share a workspace; a case is a run of five steps in it. At a boundary of
a step (before it is begun, before and after its effect, after its commit) who performs it dies, or one of the others
does; it comes back at once, or when the run is over. Each effect writes a line to a file that outlives all of them: so
what happened is counted outside. A row a case: how often each step's effect happened, was begun, and was committed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from agents.workspace.runs.core import runs
from agents.workspace.runs.plan import Plan, Step, value_of
from protocols.net import PeerInfo
from protocols.workspaces.entries import Commit, Grant, Put
from storage.cid import Cid
from storage.keys import Identity, PeerId

ROOT: Final = Path(__file__).parents[2]
N_NODES: Final = 3
N_STEPS: Final = 5
LEASE_S: Final = 3.0
LIMIT_S: Final = 240.0
POLL_S: Final = 0.1
BOUNDARIES: Final = ("before begin", "before effect", "after effect", "after commit")
VICTIMS: Final = ("performer", "another")
BACKS: Final = ("at once", "later")


class Case(NamedTuple):
    """One kill."""

    boundary: str
    step: int
    victim: str
    back: str

    @property
    def run(self) -> str:
        """What its run is called."""
        return f"{self.boundary}.{self.step}.{self.victim}.{self.back}".replace(" ", "-")


class Outcome(NamedTuple):
    """By step: how often its effect happened, was begun and is committed. `n_states`: of the three nodes."""

    is_done: bool
    n_states: int
    n_effects: tuple[int, ...]
    n_begun: tuple[int, ...]
    n_committed: tuple[int, ...]

    @property
    def is_good(self) -> bool:
        """Was each step committed once, and each effect that happened again told of?"""
        told = all(begun >= effects for begun, effects in zip(self.n_begun, self.n_effects, strict=True))
        return (
            self.is_done and self.n_states == 1 and told and set(self.n_committed) == {1} and min(self.n_effects) >= 1
        )


# --- one node, in a process of its own


async def node(folder: Path, number: int) -> None:
    """Do what standard input says; die where `trap` says."""
    import daemon.app
    from agents.workspace.service import Workspaces
    from daemon.config import Config, NetworkConfig
    from daemon.paths import Home, make_home
    from protocols.net_libp2p import NetConfig, open_network

    async def effect(given: Any, key: str) -> Any:
        note(folder / "effects", f"{given['run']} {given['step']} {key}")
        await trio.sleep(0.05)
        return given["step"]

    async def on_boundary(where: str, act: Any) -> None:
        trap = json.loads((folder / "trap").read_text())
        if (trap["run"], trap["boundary"], trap["step"]) != (act.run.name, where, act.step):
            return await trio.lowlevel.checkpoint()
        if (folder / f"sprung-{trap['run']}").exists():
            return await trio.lowlevel.checkpoint()
        note(folder / f"sprung-{trap['run']}", str(number))
        if trap["victim"] == "performer":
            os.kill(os.getpid(), signal.SIGKILL)
        while not (folder / f"go-{trap['run']}").exists():
            await trio.sleep(POLL_S)
        return None

    daemon.app.Workspaces = partial(Workspaces, effects={"count": effect}, on_boundary=on_boundary)  # type: ignore[attr-defined,misc]
    home = Home(folder / f"home-{number}")
    make_home(home)
    identity = Identity(bytes([number + 1]) * 32)
    config = Config(network=NetworkConfig(host="127.0.0.1", port=0, has_mdns=False))
    listen = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
    async with daemon.app.open_node(home, identity, config, print, lambda own, _: open_network(own, listen)) as one:
        answer(peer=str(identity.peer_id), address=one.network.addresses()[0])
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            wish = json.loads(line)
            answer(**await obey(one, **wish))


async def obey(one: Any, do: str, **wish: Any) -> dict[str, Any]:
    """Carry out one wish of the parent's."""
    spaces = one.workspaces
    match do:
        case "create":
            return {"cid": str((await spaces.create("campaign")).cid)}
        case "invite":
            peer = PeerId.parse(wish["peer"])
            await spaces.get(Cid.parse(wish["cid"])).say(Grant(audience=peer, can=("run", "write"), keys=("*",)))
        case "join":
            info = PeerInfo.parse(wish["address"])
            await one.network.connect(info)
            await spaces.join(Cid.parse(wish["cid"]), [info.peer])
        case "connect":
            for address in wish["addresses"]:
                await one.network.connect(PeerInfo.parse(address))
        case "plan":
            steps = tuple(
                Step(name=f"s{step}", do="count", input={"run": wish["run"], "step": step}, backoff_s=0.0, max_tries=9)
                for step in range(N_STEPS)
            )
            plan = Plan(title=wish["run"], steps=steps, lease_s=LEASE_S)
            await spaces.get(Cid.parse(wish["cid"])).say(Put(key=f"runs/{wish['run']}", value=value_of(plan)))
        case "look":
            return look(spaces.get(Cid.parse(wish["cid"])).space, wish["run"])
    return {}


def look(space: Any, name: str) -> dict[str, Any]:
    """How a run stands."""
    run = next((one for one in runs(space) if one.name == name), None)
    task = f"runs/{name}"
    done = [space.done(task, step) for step in range(N_STEPS)]
    return {
        "is_done": run is not None and run.state == "done",
        "state": str(space.state()),
        "begun": [len(space.begun(task, step)) for step in range(N_STEPS)],
        "committed": [int(one is not None and isinstance(one.says, Commit)) for one in done],
    }


def note(path: Path, text: str) -> None:
    """Write a line that is there whatever happens to this process."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def answer(**fields: Any) -> None:
    """Tell the parent."""
    print(json.dumps(fields), flush=True)


# --- the parent


class Child:
    """A node's process, which may be killed and started again."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.peer = self.address = ""
        self.process: subprocess.Popen[str]
        self.start()

    def start(self) -> None:
        """Come up, with what is on the disk."""
        command = [sys.executable, "-m", "tests.campaigns.run_kills", "--node", str(self.number)]
        command += ["--folder", str(self.folder)]
        errors = (self.folder / f"errors-{self.number}").open("a")
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        errors.close()
        hello = self._read()
        self.peer, self.address = hello["peer"], hello["address"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise ConnectionError(f"node {self.number} died")

    def ask(self, do: str, **wish: Any) -> dict[str, Any]:
        """What it answers. Raises: ConnectionError where it is dead."""
        assert self.process.stdin is not None
        try:
            print(json.dumps({"do": do, **wish}), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise ConnectionError(f"node {self.number} is dead") from None
        return self._read()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.communicate()  # it ends, and its pipes are closed


class Campaign:
    """Three nodes that share a workspace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "trap").write_text(json.dumps({"run": "", "boundary": "", "step": -1, "victim": ""}))
        self.nodes = [Child(folder, number) for number in range(N_NODES)]
        self.cid = self.nodes[0].ask("create")["cid"]
        for one in self.nodes[1:]:
            self.nodes[0].ask("invite", cid=self.cid, peer=one.peer)
            one.ask("join", cid=self.cid, address=self.nodes[0].address)
        self.nodes[2].ask("connect", addresses=[self.nodes[1].address])

    def run(self, case: Case, asked: int = 0) -> Outcome:
        """One case. `asked`: which node puts the plan there."""
        trap = {"run": case.run, "boundary": case.boundary, "step": case.step, "victim": case.victim}
        (self.folder / "trap").write_text(json.dumps(trap))
        self.nodes[asked].ask("plan", cid=self.cid, run=case.run)
        sprung = self.folder / f"sprung-{case.run}"
        self._until(lambda: sprung.exists() and sprung.read_text().endswith("\n"))
        performer = int(sprung.read_text())
        victim = self.nodes[performer if case.victim == "performer" else (performer + 1) % N_NODES]
        victim.kill()
        (self.folder / f"go-{case.run}").touch()
        others = [one for one in self.nodes if one is not victim]
        if case.back == "later":
            self._until(lambda: all(one.ask("look", cid=self.cid, run=case.run)["is_done"] for one in others))
        victim.start()
        victim.ask("connect", addresses=[one.address for one in others])
        return self._outcome(case)

    def _until(self, is_it: Any) -> bool:
        end_s = time.monotonic() + LIMIT_S
        while not is_it():
            if time.monotonic() > end_s:
                return False
            time.sleep(POLL_S)
        return True

    def _outcome(self, case: Case) -> Outcome:
        views: list[dict[str, Any]] = []

        def is_over() -> bool:
            views[:] = [one.ask("look", cid=self.cid, run=case.run) for one in self.nodes]
            return all(view["is_done"] for view in views) and len({view["state"] for view in views}) == 1

        self._until(is_over)
        lines = (self.folder / "effects").read_text().splitlines() if (self.folder / "effects").exists() else []
        happened = Counter(int(line.split()[1]) for line in lines if line.split()[0] == case.run)
        return Outcome(
            is_done=all(view["is_done"] for view in views),
            n_states=len({view["state"] for view in views}),
            n_effects=tuple(happened[step] for step in range(N_STEPS)),
            n_begun=tuple(views[0]["begun"]),
            n_committed=tuple(views[0]["committed"]),
        )

    def close(self) -> None:
        """End all processes."""
        for one in self.nodes:
            one.kill()


def cases() -> list[Case]:
    """All of them."""
    return [
        Case(boundary, step, victim, back)
        for boundary in BOUNDARIES
        for step in range(N_STEPS)
        for victim in VICTIMS
        for back in BACKS
    ]


def main() -> None:
    """Run the cases and print the table; exit 1 where one is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take each Nth case only (default 1: all)")
    parser.add_argument("--first", type=int, default=0, help="begin with this one, from 0 (default 0)")
    parser.add_argument("--node", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.node is not None:
        trio.run(node, args.folder, args.node)
        return
    chosen = list(enumerate(cases()))[args.first :: args.every]
    heads = f"{'killed':15}{'step':>5}  {'who':10}{'back':9}{'done':>5}{'states':>7}"
    print(f"{heads}{'effects':>9}{'begun':>9}{'committed':>11}")
    n_good = 0
    with tempfile.TemporaryDirectory(prefix="covey-run-kills-") as name:
        campaign = Campaign(Path(name))
        try:
            for number, case in chosen:
                found = campaign.run(case, number % N_NODES)
                n_good += found.is_good
                counts = ("".join(map(str, of)) for of in (found.n_effects, found.n_begun, found.n_committed))
                text = "".join(f"{one:>{width}}" for one, width in zip(counts, (9, 9, 11), strict=True))
                done, mark = "yes" if found.is_done else "NO", "" if found.is_good else "   NOT as expected"
                row = f"{case.boundary:15}{case.step:>5}  {case.victim:10}{case.back:9}{done:>5}{found.n_states:>7}"
                print(f"{row}{text}{mark}", flush=True)
        finally:
            campaign.close()
    print(f"{n_good} of {len(chosen)} as expected: each step committed once, each repeated effect told of")
    sys.exit(n_good < len(chosen))


if __name__ == "__main__":
    main()
