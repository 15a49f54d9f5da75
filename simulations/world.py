"""Whole nodes in one process on virtual time: the daemon's own cores and services over the simulated network."""

import hashlib
import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import trio

from agents.adapters.announce import run_announcer
from agents.adapters.decide import TRUST_KIND
from agents.adapters.policy import Policy
from agents.adapters.ports import Ports
from agents.adapters.subscribe import News, run_subscriber
from agents.engine.messages import ModelCard
from protocols.bitswap.shell import Exchange, in_turn, run_exchange
from simulations.net import SimNetwork, SimWorld
from storage.blockstore import Sight, Store
from storage.catalog import Catalog
from storage.catalog.models import ModelRow
from storage.cid import DAG_CBOR, Cid
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore
from storage.pins import Pins
from storage.roots import Roots

START_UNIX_S: Final = 1_700_000_000.0
MAX_PUBLISHED: Final = 16
WIDTH: Final = 8
RANK: Final = 2

TINY: Final = ModelCard(
    name="tiny",
    fingerprint=str(Cid.of(b"the tiny base model", DAG_CBOR)),
    architecture="LlamaForCausalLM",
    n_params=1000,
    n_layers=2,
    hidden_size=WIDTH,
    vocabulary=100,
    context_tokens=64,
    dtype="F32",
    has_chat_template=False,
)


class SimEvent(NamedTuple):
    """What a node would write to its event log, and when on the virtual clock."""

    at_s: float
    kind: str
    fields: dict[str, Any]


@dataclass(eq=False)
class SimNode:
    """One node: what it has, and the channels by which its services are told of news."""

    name: str
    network: SimNetwork
    ports: Ports
    rng: random.Random
    events: list[SimEvent]
    publish: trio.MemorySendChannel[Cid]
    published: trio.MemoryReceiveChannel[Cid]
    tell: trio.MemorySendChannel[News]
    news: trio.MemoryReceiveChannel[News]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def peer(self) -> PeerId:
        """The node's id."""
        return self.network.peer_id

    def trust(self, *peers: PeerId) -> None:
        """Trust these publishers of adapters."""
        for peer in peers:
            self.ports.catalog.peers.trust(peer, [TRUST_KIND], unix_now_s())

    def add_model(self, card: ModelCard = TINY) -> None:
        """Have a model, whose weights no simulation needs."""
        row = ModelRow(
            name=card.name,
            fingerprint=card.fingerprint,
            derived_from=card.derived_from,
            folder="",
            source="simulated",
            card=msgspec.to_builtins(card),
            added_unix_s=unix_now_s(),
        )
        self.ports.catalog.models.upsert(row)

    def first(self, kind: str) -> SimEvent | None:
        """The first event of a kind."""
        return next((event for event in self.events if event.kind == kind), None)


def unix_now_s() -> float:
    """The wall clock that all simulated nodes share."""
    return START_UNIX_S + trio.current_time()


def make_identity(seed: int, name: str) -> Identity:
    """The identity that a node of this name has under this seed."""
    return Identity(hashlib.sha256(f"{seed}/{name}".encode()).digest())


def make_node(
    world: SimWorld,
    name: str,
    home: Path,
    *,
    store: Store | None = None,
    catalog: Catalog | None = None,
    policy: Policy | None = None,
    is_busy: Callable[[], bool] = lambda: False,
) -> SimNode:
    """A node that is on the network and not yet running; `store` and `catalog` are those of an earlier life."""
    identity = make_identity(world.seed, name)
    network = world.node(identity.peer_id)
    store = store or MemoryBlockstore()
    catalog = catalog or Catalog.open(Path(":memory:"))
    roots, events = Roots(store), list[SimEvent]()

    def emit(kind: str, *, by: PeerId | None = None, **fields: Any) -> None:
        events.append(SimEvent(trio.current_time(), kind, fields))

    def sight_of(peer: PeerId) -> Sight:
        return roots.sight(peer, is_flock=peer in catalog.peers.flock())

    ports = Ports(
        exchange=Exchange(network, store, sight_of, work=in_turn),
        identity=identity,
        store=store,
        roots=roots,
        pins=Pins(store),
        catalog=catalog,
        emit=emit,
        unix_s=unix_now_s,
        folder=home / name / "adapters",
        policy=policy or Policy(),
        is_busy=is_busy,
    )
    publish, published = trio.open_memory_channel[Cid](MAX_PUBLISHED)
    tell, news = trio.open_memory_channel[News](MAX_PUBLISHED)
    rng = random.Random(f"{world.seed}/{name}")
    return SimNode(name, network, ports, rng, events, publish, published, tell, news)


async def run_node(node: SimNode, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Run the node's services until it is cancelled, by `node.scope` too."""
    with node.scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(run_exchange, node.ports.exchange))
            await nursery.start(partial(run_announcer, node.ports, node.published, node.rng))
            await nursery.start(partial(run_subscriber, node.ports, node.news, node.rng))
            task_status.started()


_FINITE = bytes(byte & 0xBF for byte in range(256))  # of a float's last byte: an exponent that is no NaN's


def write_adapter(
    folder: Path,
    *,
    width: int = WIDTH,
    layers: int = TINY.n_layers,
    rank: int = RANK,
    fill: int = 0,
    noise: random.Random | None = None,
) -> Path:
    """A PEFT folder that passes every check, of as many bytes as its shape asks for; `noise` makes blocks differ."""
    tensors, at = dict[str, Any](), 0
    for layer in range(layers):
        for half, shape in (("A", (rank, width)), ("B", (width, rank))):
            n_bytes = 4 * rank * width
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{half}.weight"
            tensors[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + n_bytes]}
            at += n_bytes
    header = json.dumps(tensors).encode()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    data = bytearray(noise.randbytes(at) if noise else bytes([fill]) * at)
    data[3::4] = data[3::4].translate(_FINITE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def write_model(folder: Path, *, width: int = WIDTH, layers: int = TINY.n_layers, seed: int = 0, **config: Any) -> Path:
    """A base model's folder that passes every check but the engine's: weights, configuration and tokenizer."""
    shapes = {"model.embed_tokens.weight": (64, width), "model.norm.weight": (width,)}
    shapes |= {
        f"model.layers.{i}.self_attn.{kind}.weight": (width, width)
        for i in range(layers)
        for kind in ("q_proj", "v_proj")
    }
    tensors, at = dict[str, Any](), 0
    for name, shape in shapes.items():
        n_bytes = 4 * math.prod(shape)
        tensors[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    header = json.dumps(tensors).encode()
    about = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "max_position_embeddings": 64,
        "num_hidden_layers": layers,
        "vocab_size": 64,
    }
    folder.mkdir(parents=True, exist_ok=True)
    data = random.Random(seed).randbytes(at)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    (folder / "config.json").write_text(json.dumps(about | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder
