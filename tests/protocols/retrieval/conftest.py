"""Servers that exist in the test alone, a node that asks them, and peers beside them; all in virtual time."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from protocols.bitswap.shell import Exchange, in_turn, run_exchange
from protocols.errors import HttpFailed
from protocols.net import PeerInfo
from protocols.retrieval.shell import Retrieval, run_retrieval
from protocols.sources import HttpSource
from protocols.web import Ask, Reply
from simulations.net import SimNetwork, SimWorld
from storage.blockstore import EVERYTHING, Block
from storage.cid import DAG_CBOR, Cid
from storage.codecs.dag_cbor import CODEC as DAG_CBOR_CODEC
from storage.keys import Identity
from storage.memory import MemoryBlockstore

RAW = {"content-type": "application/vnd.ipld.raw"}
LATENCY_S = 0.05


@dataclass
class Said:
    """What a server says: the pieces of the body come `gap_s` apart, the last one never where `hangs`."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: dict(RAW))
    gap_s: float = 0.0
    piece_bytes: int = 16 << 10
    hangs: bool = False


Serve = Callable[[Ask, Cid], Said]


class Servers:
    """The servers by the beginning of their URLs, and what they were asked."""

    def __init__(self) -> None:
        self.serving: dict[str, Serve] = {}
        self.asked: list[Ask] = []
        self.n_open = 0
        self.n_read_bytes = 0
        self.most_open = 0

    @asynccontextmanager
    async def send(self, ask: Ask) -> AsyncIterator[Reply]:
        self.asked.append(ask)
        await trio.sleep(LATENCY_S)
        serve = next((one for url, one in self.serving.items() if ask.url.startswith(url)), None)
        if serve is None:
            raise HttpFailed(f"{ask.url} cannot be reached")
        self.n_open += 1
        self.most_open = max(self.most_open, self.n_open)
        try:
            said = serve(ask, cid_of(ask))
            async with aclosing(self._pieces(said if ask.method != "HEAD" else Said(said.status))) as pieces:
                yield Reply(said.status, said.headers, pieces)
        finally:
            self.n_open -= 1

    async def _pieces(self, said: Said) -> AsyncIterator[bytes]:
        for at in range(0, len(said.body), said.piece_bytes):
            await trio.sleep(said.gap_s)
            piece = said.body[at : at + said.piece_bytes]
            self.n_read_bytes += len(piece)
            yield piece
        if said.hangs:
            await trio.sleep_forever()


def cid_of(ask: Ask) -> Cid:
    path, _, query = ask.url.partition("?")
    text = query.partition("arg=")[2].partition("&")[0] or path.rpartition("/")[2]
    return Cid.parse(text)


@pytest.fixture
def said() -> type[Said]:
    return Said


@pytest.fixture
def gateway() -> Callable[..., Serve]:
    """A server that has these blocks."""

    def having(blocks: Iterable[Block], **how: Any) -> Serve:
        held = {block.cid: block.data for block in blocks}

        def serve(_ask: Ask, cid: Cid) -> Said:
            return Said(body=held[cid], **how) if cid in held else Said(404)

        return serve

    return having


class Node:
    """A node that asks servers and peers."""

    def __init__(self, network: SimNetwork) -> None:
        self.store = MemoryBlockstore()
        self.reports: list[tuple[object, str]] = []
        self.network = network
        self.exchange = Exchange(
            network, self.store, lambda peer: EVERYTHING, lambda *report: self.reports.append(report), in_turn
        )
        self.info = PeerInfo.parse(network.addresses()[0])
        self.finds: list[PeerInfo] = []

    async def find_more(self) -> list[PeerInfo]:
        await trio.lowlevel.checkpoint()
        return self.finds

    def holds(self, blocks: Iterable[Block]) -> bool:
        return all(self.store.get(block.cid) == block.data for block in blocks)


Start = Callable[..., Awaitable[Node]]


@pytest.fixture
def servers() -> Servers:
    return Servers()


@pytest.fixture
async def start(sim_world: SimWorld, nursery: trio.Nursery, servers: Servers) -> Start:
    async def start_node(
        number: int, blocks: Iterable[Block] = (), *, sources: Iterable[str] = (), takes_found: bool = False
    ) -> Node:
        node = Node(sim_world.node(Identity(number.to_bytes(32)).peer_id))
        node.store.put_many(blocks)
        await nursery.start(run_exchange, node.exchange)
        named = [HttpSource.parse(url) for url in sources]
        retrieval = Retrieval(node.exchange, servers.send, named, takes_found=takes_found)
        node.exchange.web = retrieval
        await nursery.start(run_retrieval, retrieval)
        return node

    return start_node


@pytest.fixture
def content() -> Callable[..., list[Block]]:
    """A root and leaves below it; the root comes first."""

    def make(n_leaves: int = 30, leaf_bytes: int = 64 << 10, seed: int = 1) -> list[Block]:
        rng = random.Random(seed)
        leaves = [Block(Cid.of(data), data) for data in (rng.randbytes(leaf_bytes) for _ in range(n_leaves))]
        data = DAG_CBOR_CODEC.encode([leaf.cid for leaf in leaves])
        return [Block(Cid.of(data, DAG_CBOR), data), *leaves]

    return make
