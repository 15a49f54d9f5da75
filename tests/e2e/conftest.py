"""Real daemons in real processes, driven by the real command line."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from daemon import wall
from daemon.lifecycle import running
from protocols import adapters as wire
from protocols.adapters import Announcement, Base, Manifest, manifest_content
from protocols.bitswap.shell import Exchange, run_exchange
from protocols.entry import make_entry
from protocols.net import Network
from protocols.net_libp2p import NetConfig, open_network
from simulations.world import TINY, write_adapter
from storage.catalog import Catalog
from storage.catalog.models import ModelRow
from storage.cid import DAG_CBOR, Cid
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore

ROOT = Path(__file__).parents[2]
COVEY = [sys.executable, "-m", "daemon.cli.main"]
SETTINGS = {"network.host": "127.0.0.1", "network.port": "0", "network.has_mdns": "false"}


class CommandFailed(AssertionError):
    """A command ended with another exit code than expected."""


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
        if not self.process.stdout.readline():
            raise CommandFailed(f"{self.name} did not start: {(self.home / 'daemon.out').read_text()[-2000:]}")
        return self

    def down(self) -> int:
        """Stop it as a service manager would; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self._reap(10)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self._reap(10)

    def close(self) -> None:
        """Whatever state it is in, end it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self._reap(10)

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


# A base model that no node has to load: what is fetched for it is judged by its shapes.
BASE = msgspec.structs.replace(TINY, hidden_size=4096, n_layers=16)
BASE_CID = Cid.parse(BASE.fingerprint)
TOPIC = wire.topic_of(BASE_CID)
LARGE_RANK = 256  # 128 MiB: a fetch that can be interrupted


@pytest.fixture
def with_model() -> Callable[[Node], Node]:
    """Note the base model in the catalog of a node that is down: enough to hear of adapters for it, and no torch."""

    def note(node: Node) -> Node:
        catalog = Catalog.open(node.home / "catalog.db")
        card = msgspec.to_builtins(BASE)
        row = ModelRow(
            name="tiny", fingerprint=BASE.fingerprint, folder="/nowhere", source="tiny", card=card, added_unix_s=1.0
        )
        catalog.models.upsert(row)
        catalog.close()
        return node

    return note


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a PEFT folder for that base: small, or large enough that its fetch can be interrupted."""

    def write(name: str = "poet", *, is_large: bool = False) -> Path:
        rank = LARGE_RANK if is_large else 2
        noise = random.Random(name)
        folder = tmp_path / "folders" / name
        return write_adapter(folder, width=BASE.hidden_size, layers=BASE.n_layers, rank=rank, noise=noise)

    return write


@dataclass
class Mallory:
    """A peer in the test's own process that speaks the protocols and keeps none of the rules."""

    identity: Identity
    network: Network
    store: "LyingStore"
    catalog: Catalog

    @property
    def address(self) -> str:
        """Where to reach it."""
        return self.network.addresses()[0]

    def plant(self, files: Cid, *, base: str = BASE.fingerprint, signer: Identity | None = None, **claims: Any) -> Cid:
        """A manifest that says whatever it likes; its CID."""
        said = {"version": 1, "n_bytes": 1, "n_params": 64, "rank": 2, "alpha": 4.0, "targets": ("q_proj",)} | claims
        manifest = Manifest(
            name="poet",
            base=Base(fingerprint=Cid.parse(base), name="tiny", architecture="LlamaForCausalLM"),
            files=files,
            created_unix_s=1,
            **said,
        )
        entry = make_entry(signer or self.identity, "adapter", base, 1, [], manifest_content(manifest))
        self.store.put_many(entry.blocks)
        return entry.cid

    def announcement(self, manifest: Cid, *, signer: Identity | None = None, **claims: Any) -> bytes:
        """A signed announcement of it."""
        body = Announcement(manifest=manifest, **{"name": "poet", "version": 1, "n_bytes": 1} | claims)
        unix_s = wall.unix_s()
        number = partial(self.catalog.sequences.next, unix_s=unix_s)
        return wire.seal_announcement(signer or self.identity, BASE_CID, body, number, unix_s)

    async def tell(self, node: Node, announcement: bytes) -> None:
        """Have the announcement heard by a node that listens."""
        with trio.fail_after(30):
            while PeerId.parse(node.peer) not in self.network.topic_peers(TOPIC):
                await trio.sleep(0.05)
        await self.network.publish(TOPIC, announcement)


class LyingStore(MemoryBlockstore):
    """A store that can be told to give other bytes than were asked for."""

    lies: bytes | None = None

    def get(self, cid: Cid) -> bytes:
        """The bytes, or the lie for every file block."""
        return super().get(cid) if self.lies is None or cid.codec == DAG_CBOR else self.lies


@pytest.fixture
async def mallory(tmp_path: Path) -> AsyncIterator[Mallory]:
    """A hostile peer on a real socket."""
    identity = Identity.generate()
    catalog = Catalog.open(tmp_path / "mallory.db")
    store = LyingStore()
    config = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
    async with (
        open_network(identity, config) as network,
        running(run_exchange, Exchange(network, store, lambda peer, cid: True)),
        network.subscribe(TOPIC),
    ):
        yield Mallory(identity, network, store, catalog)
    catalog.close()
