"""A handful of nodes on loopback that take part in one experiment, for the stories about federated rounds."""

import copy
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

Node = Any
NAMES = ("ada", "bob", "cleo", "dan")
TRAINERS = NAMES[:3]
LIMIT_S = 240.0


class Village:
    """The four, each in a home of its own."""

    def __init__(self, nodes: dict[str, Node], experiment: str) -> None:
        self.nodes = nodes
        self.experiment = experiment

    def __getattr__(self, name: str) -> Node:
        return self.nodes[name]

    def up(self) -> None:
        """Start all, and let each know where the others are."""
        for node in self.nodes.values():
            node.up()
        names = list(self.nodes)
        for index, name in enumerate(names):
            for other in names[index + 1 :]:
                self.nodes[name].ok("peer", "add", self.nodes[other].address, "--name", other)

    @contextmanager
    def watched(self, node: Node) -> Iterator[Iterator[Any]]:
        """`covey fl watch`, as it goes on."""
        watcher = node.begin("fl", "watch", self.experiment, "--json")
        alarm = threading.Timer(LIMIT_S, watcher.kill)
        alarm.start()
        try:
            yield map(json.loads, watcher.stdout)
        finally:
            alarm.cancel()
            watcher.kill()
            watcher.stdout.close()
            watcher.stderr.close()
            watcher.wait()

    def wait(self, node: Node, is_it: Callable[[Any], bool]) -> Any:
        """How it stands once that holds, as one node sees it."""
        last = None
        with self.watched(node) as standings:
            for last in standings:
                if is_it(last):
                    return last
        raise AssertionError(f"it never came to that; at last: {last}")

    def results(self, node: Node) -> list[str | None]:
        return [one["result"] for one in node.ask("fl", "status", self.experiment)[0]["rounds"]]

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()

    def join(self, data: Callable[[str], Path]) -> None:
        """Three join with data, the fourth follows."""
        for name in TRAINERS:
            self.nodes[name].ok("fl", "join", self.experiment, "--from", self.ada.peer, "--data", str(data(name)))
        self.dan.ok("fl", "join", self.experiment, "--from", self.ada.address)
        self.wait(self.ada, lambda now: now["n_joined"] == len(TRAINERS))

    def copied(self, folder: Path) -> Self:
        """The same four, in copies of their homes; they are down."""
        nodes = {}
        for name, node in self.nodes.items():
            shutil.copytree(node.home, folder / name, ignore=shutil.ignore_patterns("*.sock", "daemon.lock"))
            nodes[name] = copy.copy(node)
            nodes[name].home, nodes[name].process = folder / name, None
            nodes[name].env = {**node.env, "COVEY_HOME": str(folder / name)}
        return type(self)(nodes, self.experiment)

    def start(self) -> None:
        """Begin the experiment, once all have met."""
        self.up()
        self.wait(self.ada, lambda now: now["n_reachable"] == 3)
        self.ada.ok("fl", "start", self.experiment)


def is_over(now: Any) -> bool:
    return bool(now["is_over"])
