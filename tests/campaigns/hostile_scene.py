"""A daemon that stands attacks, in a process of its own, with content that everybody may fetch."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from daemon.lifecycle import running
from protocols import adapters as wire
from protocols.bitswap.shell import Exchange, run_exchange
from protocols.fetch.dag import fetch_dag
from protocols.net import Network, PeerInfo
from protocols.net_libp2p import NetConfig, open_network
from simulations.world import TINY
from storage.blockstore import Sight
from storage.catalog import Catalog
from storage.catalog.models import ModelRow
from storage.cid import Cid
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from tests.campaigns.hostile_bombs import BombServer, bombing

ROOT: Final = Path(__file__).parents[2]
LOOPBACK: Final = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
SETTINGS: Final = """\
[network]
host = "127.0.0.1"
port = 0
has_mdns = false
relay = "public"
[ask]
is_enabled = true
[gateway]
is_enabled = true
port = 0
has_routing = true
takes_names = true
[fetch]
gateways = ["BOMBER"]
routers = ["BOMBER"]
"""
CONTENT_BYTES: Final = 8 << 20
FETCH_LIMIT_S: Final = 60.0
TOPIC: Final = wire.topic_of(Cid.parse(TINY.fingerprint))


class Daemon:
    """A daemon in a process of its own, as `covey up` starts it."""

    def __init__(self, home: Path, bomber: str) -> None:
        self._env = {**os.environ, "COVEY_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.ask("init")
        settings = SETTINGS.replace("BOMBER", bomber)
        (home / "config.toml").write_text(settings)
        catalog = Catalog.open(home / "catalog.db")  # enough to listen to adapters for a base
        card = msgspec.to_builtins(TINY)
        catalog.models.upsert(
            ModelRow(
                name="tiny", fingerprint=TINY.fingerprint, folder="/nowhere", source="tiny", card=card, added_unix_s=1.0
            )
        )
        catalog.close()
        self._home = home
        self.begin()
        self.address = self.wait_until_up()
        # A life after this one listens where it did: who speaks with it finds it again.
        port = self.address.split("/")[4]
        (home / "config.toml").write_text(settings.replace("port = 0", f"port = {port}", 1))

    def begin(self) -> None:
        """Start a process, and do not wait for it."""
        with (self._home / "daemon.out").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "daemon.cli.main", "up", "--json"],
                env=self._env, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
            )  # fmt: skip

    def wait_until_up(self) -> str:
        """Wait until it answers. Returns: its address. Raises: AssertionError where it ends instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"it did not start: {(self._home / 'daemon.out').read_text()[-2000:]}"
        return str(json.loads(line)["addresses"][0])

    def ask(self, *args: str) -> list[dict[str, Any]]:
        """What a command prints with --json. Raises: AssertionError where it fails."""
        command = [sys.executable, "-m", "daemon.cli.main", *args, "--json"]
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
        )
        assert done.returncode == 0, f"covey {' '.join(args)}: {done.stderr.strip()}"
        return [json.loads(line) for line in done.stdout.splitlines()]

    @property
    def resident_mib(self) -> float:
        """How much memory it has in use."""
        return self._mib("VmRSS:")

    @property
    def most_resident_mib(self) -> float:
        """The most that this process has had."""
        return self._mib("VmHWM:")

    def _mib(self, field: str) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split(field)[1].split()[0]) / 1024

    def close(self) -> None:
        """End it, whatever state it is in."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@dataclass
class Scene:
    """The daemon, what it serves, and where."""

    daemon: Daemon
    folder: Path
    cid: Cid
    info: PeerInfo
    bomber: BombServer | None = None  # the hostile server that its settings name
    kill_minutes: float = 1.0
    seed: int = 1

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.info.addresses[0].split("/")[4])

    @asynccontextmanager
    async def stranger(self) -> AsyncIterator[Network]:
        """Somebody new, who is connected."""
        async with open_network(Identity.generate(), LOOPBACK) as network:
            await network.connect(self.info)
            yield network

    async def ask(self, *args: str) -> list[dict[str, Any]]:
        """What the daemon tells its user."""
        return await trio.to_thread.run_sync(partial(self.daemon.ask, *args))

    async def noted(self, by: Network, kind: str = "peer_misbehaved") -> list[str]:
        """The codes under which the daemon noted what a peer did."""
        events = await self.ask("events", "--since", "0")
        fields = [event["fields"] for event in events if event["kind"] == kind]
        return [one["code"] for one in fields if one.get("peer") == str(by.peer_id)]

    async def offenders(self) -> dict[str, str]:
        """What became of those who broke the protocols, by the daemon's own word."""
        rows = (await self.ask("peer", "ls"))[0]
        return {
            row["peer"]: f"refused ({row['breach']})" if row["refused_s"] else f"scored down ({row['breach']})"
            for row in rows
            if row["breach"]
        }

    async def fetch(self) -> float:
        """A friend whom it never met fetches what is public. Returns: how many seconds it took."""
        began_s = trio.current_time()
        with trio.fail_after(FETCH_LIMIT_S):
            async with open_network(Identity.generate(), LOOPBACK) as network:
                exchange = Exchange(network, MemoryBlockstore(), lambda peer: Sight())
                async with running(run_exchange, exchange):
                    await fetch_dag(exchange, self.cid, providers=[self.info])
        return trio.current_time() - began_s


Attack = Callable[[Scene], Awaitable[str]]


@contextmanager
def daemon_with_content() -> Iterator[Scene]:
    """A daemon that serves something to everybody."""
    folder = Path(tempfile.mkdtemp(prefix="covey-hostile-"))
    with bombing() as bomber:
        daemon = Daemon(folder / "home", f"http://127.0.0.1:{bomber.server_port}")
        try:
            content = folder / "content"
            content.write_bytes(secrets.token_bytes(CONTENT_BYTES))
            cid = Cid.parse(daemon.ask("add", str(content), "--visibility", "public")[-1]["cid"])
            yield Scene(daemon, folder, cid, PeerInfo.parse(daemon.address), bomber)
        finally:
            daemon.close()
            shutil.rmtree(folder)
