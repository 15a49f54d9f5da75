"""Fixtures that more than one area of the tests needs."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings
from trio.testing import MockClock

from simulations.net import SimWorld, open_world
from storage.catalog import Catalog
from tests.holding import until_holds
from tests.models import cached_model

ROOT = Path(__file__).parents[1]
COVEY = [sys.executable, "-m", "daemon.cli.main"]
START_LIMIT_S = 60
STOP_LIMIT_S = 30
SETTINGS = {"network.host": "127.0.0.1", "network.port": "0", "network.has_mdns": "false"}

# Every run tries the same examples, however busy the machine is; --hypothesis-profile=explore tries others.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("COVEY_LONG") != "1":
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes a minute or more: run `make long`"))


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Virtual time that jumps when every task sleeps, but never while a thread works.

    Trio's own would count a disk's milliseconds as idleness, and let hours pass in them.
    """
    clock = MockClock(autojump_threshold=0)
    run_sync = trio.to_thread.run_sync
    n_working = 0

    async def run_sync_in_standing_time(*args: Any, **options: Any) -> Any:
        nonlocal n_working
        n_working += 1
        clock.autojump_threshold = math.inf
        try:
            return await run_sync(*args, **options)
        finally:
            n_working -= 1
            if not n_working:
                clock.autojump_threshold = 0

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync_in_standing_time)
    return clock


@pytest.fixture
async def sim_world() -> AsyncIterator[SimWorld]:
    """A simulated network; `sim_world.node(Identity.generate().peer_id)` is a node's port.

    A test asks for `autojump_clock` beside it: pytest-trio looks for a clock among a test's own arguments only.
    """
    assert isinstance(trio.lowlevel.current_clock(), MockClock), "let the test take autojump_clock too"
    async with open_world(seed=1) as world:
        yield world


class CommandFailed(AssertionError):
    """A command ended with another exit code than expected."""


def _heed_interrupts() -> None:
    """Where the tests are a shell's job in the background, SIGINT is ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Node:
    """A node: a home folder, and a daemon that can be started, stopped and killed."""

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.home = home
        self.env = {**os.environ, "COVEY_HOME": str(home), "OMP_NUM_THREADS": "1"}
        self.process: subprocess.Popen[str] | None = None
        self.ok("init")
        self.set(SETTINGS)

    def covey(self, *args: str, stdin: str = "", timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command as a user would."""
        return subprocess.run(
            [*COVEY, *args], env=self.env, input=stdin, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT
        )

    def begin(self, *args: str) -> subprocess.Popen[str]:
        """Start a command, and go on."""
        return subprocess.Popen(
            [*COVEY, *args], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            preexec_fn=_heed_interrupts,
        )  # fmt: skip

    def ok(self, *args: str, stdin: str = "", timeout_s: float = 120) -> str:
        """Run a command that must succeed; return what it printed."""
        done = self.covey(*args, stdin=stdin, timeout_s=timeout_s)
        if done.returncode != 0:
            raise CommandFailed(
                f"{self.name}$ covey {' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def ask(self, *args: str, timeout_s: float = 120) -> Any:
        """Run a command that must succeed with --json; return its last line, decoded."""
        return json.loads(self.ok(*args, "--json", timeout_s=timeout_s).strip().splitlines()[-1])

    def set(self, settings: dict[str, str]) -> None:
        """Change settings; they hold from the next start."""
        for key, value in settings.items():
            self.ok("config", "set", key, value)

    def up(self) -> "Node":
        """Start the daemon and wait until it is ready."""
        log = (self.home / "daemon.out").open("a")
        self.process = subprocess.Popen(
            [*COVEY, "up", "--json"], env=self.env, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        )
        log.close()
        assert self.process.stdout is not None
        alarm = threading.Timer(START_LIMIT_S, self.process.kill)
        alarm.start()
        said = self.process.stdout.readline()
        alarm.cancel()
        if not said:
            raise CommandFailed(f"{self.name} did not start: {(self.home / 'daemon.out').read_text()[-2000:]}")
        return self

    def down(self) -> int:
        """Stop it as a service manager would; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self._reap(STOP_LIMIT_S)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self._reap(STOP_LIMIT_S)

    def close(self) -> None:
        """Whatever state it is in, end it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self._reap(STOP_LIMIT_S)

    def _reap(self, timeout_s: float) -> int:
        assert self.process is not None and self.process.stdout is not None
        code = self.process.wait(timeout_s)
        self.process.stdout.close()
        return code

    @property
    def is_alive(self) -> bool:
        """Does the daemon still answer?"""
        return self.covey("status").returncode == 0

    @property
    def address(self) -> str:
        """Where to reach it, with its peer id."""
        return str(self.ask("status")["addresses"][0])

    @property
    def peer(self) -> str:
        """Its peer id."""
        return str(self.ask("id")["peer"])

    def knows(self, other: "Node", *, trusts: bool = True) -> None:
        """Connect to another node, and trust what it publishes."""
        self.ok("peer", "add", other.address)
        if trusts:
            self.ok("peer", "trust", other.peer, "--kinds", "adapters")

    def until_holds(self, n_bytes: int) -> None:
        """Wait until its disk holds so much."""
        until_holds(self.home, n_bytes)

    def last_event(self) -> int:
        """The newest event's id."""
        return int(self.ask("status")["last_event"])

    def events(self) -> list[dict[str, Any]]:
        """Every event so far."""
        return [json.loads(line) for line in self.ok("events", "--since", "0", "--json").splitlines()]

    def last_event_on_disk(self) -> int:
        """The newest event's id, read from the catalog of a node that is down."""
        catalog = Catalog.open(self.home / "catalog.db")
        last_id = catalog.events.last_id
        catalog.close()
        return last_id

    def wait(
        self,
        kind: str,
        is_it: Callable[[dict[str, Any]], bool] = lambda fields: True,
        *,
        since: int = 0,
        timeout_s: float = 60,
    ) -> dict[str, Any]:
        """The first event of a kind that fits, however long ago after `since` or still to come."""
        with self._follow(since, timeout_s) as lines:
            seen = []
            for line in lines:
                event = json.loads(line)
                if event.get("kind") == kind and is_it(event["fields"]):
                    return dict(event)
                seen.append(f"{event.get('kind')} {event.get('fields')}")
        raise AssertionError(f"{self.name} had no {kind} within {timeout_s} s, but:\n" + "\n".join(seen[-30:]))

    @contextmanager
    def _follow(self, since: int, timeout_s: float) -> Iterator[Iterator[str]]:
        follower = subprocess.Popen(
            [*COVEY, "events", "--follow", "--since", str(since), "--json"],
            env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
        )  # fmt: skip
        alarm = threading.Timer(timeout_s, follower.kill)
        alarm.start()
        assert follower.stdout is not None
        try:
            yield iter(follower.stdout)
        finally:
            alarm.cancel()
            follower.kill()
            follower.stdout.close()
            follower.wait()


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[Callable[[str], Node]]:
    """Make nodes by name; all end with the test."""
    nodes: list[Node] = []

    def make(name: str) -> Node:
        node = Node(name, tmp_path / name)
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def ask_app() -> Any:
    """Send one request; the reply with its status, headers (joined) and body."""

    async def ask(
        app: Any, method: str, path: str, query: str = "", headers: list[tuple[str, str]] | None = None
    ) -> SimpleNamespace:
        reply = SimpleNamespace(status=0, headers={}, body=b"", is_whole=False)

        async def receive() -> dict[str, Any]:
            await trio.sleep_forever()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                for name, value in message["headers"]:
                    key, text = name.decode(), value.decode("latin-1")
                    reply.headers[key] = f"{reply.headers[key]}, {text}" if key in reply.headers else text
            else:
                reply.body += message["body"]
                reply.is_whole = not message["more_body"]

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers or ()],
        }
        await app(scope, receive, send)
        return reply

    return ask


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The tiny model, trained once for all test runs on this machine."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        pytest.skip("torch and transformers are not installed: pip install 'covey[engine]'")
    return cached_model("tiny")
