"""Real daemons in real processes, driven by the real command line."""

import random
import shutil
from collections.abc import AsyncIterator, Callable
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
from storage.blockstore import EVERYTHING
from storage.catalog import Catalog
from storage.catalog.models import ModelRow
from storage.cid import DAG_CBOR, Cid
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore

Node = Any  # the class stands in tests/conftest.py, which tests cannot import

# A base model that no node has to load: what is fetched for it is judged by its shapes.
BASE = msgspec.structs.replace(TINY, hidden_size=4096, n_layers=28)
BASE_CID = Cid.parse(BASE.fingerprint)
TOPIC = wire.topic_of(BASE_CID)
LARGE_RANK = 256  # 224 MiB: a fetch that can be interrupted


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
def with_tiny(tiny_model: Path) -> Callable[[Node], Node]:
    """Give a node that is down a model that really answers; it is found in its folder at the start."""

    def give(node: Node) -> Node:
        shutil.copytree(tiny_model, node.home / "models" / "tiny")
        return node

    return give


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
        peer = PeerId.parse(await trio.to_thread.run_sync(lambda: node.peer))  # a command: it would hold up the network
        with trio.fail_after(60):
            while peer not in self.network.topic_peers(TOPIC):
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
        running(run_exchange, Exchange(network, store, lambda peer: EVERYTHING)),
        network.subscribe(TOPIC),
    ):
        yield Mallory(identity, network, store, catalog)
    catalog.close()
