"""A node in a temporary home: real disk and control socket, no other machines."""

import http.client
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from daemon.app import open_node
from daemon.config import Config
from daemon.paths import Home, make_home
from protocols.conduct import Conduct
from protocols.errors import DialFailed, ProtocolRefused
from protocols.net import Link, PeerInfo
from storage.keys import Identity, PeerId


class LonelyNetwork:
    """A network on which nobody answers, but those in `reachable`."""

    def __init__(self, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.reachable: set[PeerId] = set()
        self.hang_up: set[PeerId] = set()  # who lets itself be connected to, and no more
        self.connected: list[PeerId] = []
        self.protected: set[PeerId] = set()
        self.refused: set[PeerId] = set()
        self.served: dict[str, Any] = {}
        self.flock: str | None = None
        self.conduct = Conduct()
        self.records: dict[PeerId, bytes] = {}  # of names, in the DHT

    @classmethod
    @asynccontextmanager
    async def opened(cls, identity: Identity, _config: object) -> AsyncIterator["LonelyNetwork"]:
        yield cls(identity.peer_id)

    def addresses(self) -> list[str]:
        return [f"/ip4/127.0.0.1/tcp/4701/p2p/{self.peer_id}"]

    def observed_addresses(self) -> list[str]:
        return []

    def relays(self) -> list[PeerId]:
        return []

    def peers(self) -> list[PeerId]:
        return list(self.connected)

    def peer_addresses(self, peer: PeerId) -> list[str]:
        return ["/ip4/192.0.2.7/tcp/4701"] if peer in self.reachable else []

    @asynccontextmanager
    async def watch_peers(self) -> AsyncIterator[Any]:
        _, changes = trio.open_memory_channel[Any](1)
        yield changes

    async def connect(self, info: PeerInfo) -> None:
        await trio.lowlevel.checkpoint()
        if info.peer not in self.reachable:
            raise DialFailed(f"{info.peer} does not answer")
        self.connected.append(info.peer)

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        if peer in self.connected:
            self.connected.remove(peer)

    def protect(self, peers: Any) -> None:
        self.protected = set(peers)

    def refuse(self, peers: Any) -> None:
        self.refused = set(peers)
        self.connected = [peer for peer in self.connected if peer not in self.refused]

    def report(self, peer: PeerId, code: str) -> None:
        self.conduct.report(peer, code, trio.current_time(), is_kept=peer in self.protected)

    def received_bytes(self, peer: PeerId) -> int:
        return 0

    def doubt(self, peer: PeerId) -> None:
        pass

    def connections(self) -> list[Link]:
        return [Link(peer, "192.0.2.7:4701", True, 1, 2000, 3000) for peer in self.connected]

    async def find_peer(self, peer: PeerId) -> PeerInfo:
        await trio.lowlevel.checkpoint()
        return PeerInfo(peer, tuple(self.peer_addresses(peer)))

    def serve(self, protocol: str, handler: Any) -> None:
        self.served[protocol] = handler

    @asynccontextmanager
    async def subscribe(self, topic: str, is_valid: Any = None) -> AsyncIterator[Any]:
        _, messages = trio.open_memory_channel[Any](1)
        yield messages

    def topic_peers(self, topic: str) -> list[PeerId]:
        return []

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def open_stream(self, peer: PeerId, protocols: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if peer in self.reachable - self.hang_up:
            raise ProtocolRefused(f"{peer} speaks none of {', '.join(protocols)}")
        raise DialFailed(f"{peer} does not answer")

    async def provide(self, cid: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def provide_many(self, cids: Any) -> int:
        await trio.lowlevel.checkpoint()
        return len(cids)

    async def find_providers(self, cid: Any, limit: int) -> list[PeerInfo]:
        await trio.lowlevel.checkpoint()
        return []

    async def publish_record(self, name: PeerId, raw: bytes, unix_s: float) -> int:
        await trio.lowlevel.checkpoint()
        self.records[name] = raw
        return len(self.connected)

    async def find_record(self, name: PeerId, unix_s: float) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self.records.get(name)


class Answered:
    """What the control socket said."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.kind = response.getheader("content-type")
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


class SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    make_home(made)
    return made


@pytest.fixture
def ask(home: Home) -> Callable[..., Answered]:
    """POST to the control socket from a thread."""

    def post(path: str, body: Any = b"", method: str = "POST", **headers: str) -> Answered:
        connection = SocketConnection(home.socket)
        try:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, raw, headers)
            return Answered(connection.getresponse())
        finally:
            connection.close()

    return post


@pytest.fixture
def lonely() -> type[LonelyNetwork]:
    return LonelyNetwork


@pytest.fixture
async def node_here(
    home: Home, lonely: type[LonelyNetwork], ask: Callable[..., Answered]
) -> AsyncIterator[SimpleNamespace]:
    """A whole node in this process: `node` is it, `post(operation, **params)` asks it over its control socket."""
    async with open_node(home, Identity.generate(), Config(), print, lonely.opened) as node:

        async def post(name: str, /, **params: Any) -> Answered:
            return await trio.to_thread.run_sync(partial(ask, f"/v1/{name}", params))

        yield SimpleNamespace(node=node, post=post)


@pytest.fixture
async def in_village(node_here: SimpleNamespace, tmp_path: Path) -> Any:
    """Ask in a workspace called village: `ask(operation, **params)` gives the answer, `ask.add(toml)` adds an agent."""
    await node_here.post("ws/create", title="village")

    async def ask(operation: str, /, **params: Any) -> Any:
        answer = await node_here.post(operation, **{"workspace": "village"} | params)
        return answer.json if answer.kind == "application/json" else answer.lines

    async def add(text: str, **params: Any) -> Any:
        (tmp_path / "agent.toml").write_text(text)
        return await ask("agent/add", file=str(tmp_path / "agent.toml"), **params)

    ask.add, ask.folder, ask.post, ask.node = add, tmp_path, node_here.post, node_here.node
    return ask
