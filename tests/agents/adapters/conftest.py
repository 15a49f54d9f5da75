"""PEFT folders to test with: tiny, valid unless a test spoils them; whole nodes, honest and hostile publishers."""

import json
import struct
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from agents.adapters.publish import Release, publish
from protocols import adapters as wire
from protocols.adapters import Announcement, Base, Manifest, manifest_content
from protocols.entry import make_entry
from protocols.net import PeerInfo
from simulations.net import open_world
from simulations.world import TINY, SimNode, make_node, run_node, unix_now_s
from storage.blockstore import Visibility
from storage.cid import Cid

Shapes = Iterable[tuple[str, tuple[int, ...]]]

BASE = Cid.parse(TINY.fingerprint)
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}


def lora_shapes(rank: int = 2, width: int = 8, layers: int = 2) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (f"base_model.model.model.layers.{layer}.self_attn.{kind}.lora_{half}.weight", shape)
        for layer in range(layers)
        for kind in ("q_proj", "v_proj")
        for half, shape in (("A", (rank, width)), ("B", (width, rank)))
    ]


def safetensors(shapes: Shapes, dtype: str = "F32", fill: int = 0, **changes: Any) -> bytes:
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes:
        size = _BYTES[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    header |= changes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes([fill]) * at


def config(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": 2,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "auto_mapping": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "init_lora_weights": True,
        "rank_pattern": {},
    }
    return fields | changes


def write_folder(
    folder: Path,
    *,
    shapes: Shapes | None = None,
    fill: int = 0,
    files: dict[str, bytes] | None = None,
    **changes: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(
        safetensors(lora_shapes() if shapes is None else shapes, fill=fill)
    )
    (folder / "adapter_config.json").write_text(json.dumps(config(**changes)))
    for name, data in (files or {}).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def peft_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write an adapter folder; keywords change its configuration."""

    def write(name: str = "adapter", **options: Any) -> Path:
        return write_folder(tmp_path / name, **options)

    return write


@pytest.fixture
def make_safetensors() -> Callable[..., bytes]:
    return safetensors


@pytest.fixture
def make_shapes() -> Callable[..., list[tuple[str, tuple[int, ...]]]]:
    return lora_shapes


@pytest.fixture
async def flock(tmp_path: Path) -> Any:
    """Start nodes by name on one simulated network; those started are connected to all before them."""
    async with open_world(seed=1) as world, trio.open_nursery() as nursery:
        nodes: list[SimNode] = []

        async def start(name: str, *, trusts: Iterable[SimNode] = (), has_model: bool = True, **life: Any) -> SimNode:
            node = make_node(world, name, tmp_path, **life)
            node.trust(*(other.peer for other in trusts))
            if has_model:
                node.add_model()
            await nursery.start(run_node, node)
            for other in nodes:
                await node.network.connect(PeerInfo(other.peer, (other.network.address,)))
            nodes.append(node)
            await trio.sleep(1)  # virtual: the topics that each listens to are known
            return node

        def stop(node: SimNode) -> None:
            nodes.remove(node)
            node.scope.cancel()
            world.crash(node.network)

        start.stop = stop  # type: ignore[attr-defined]
        yield start
        for node in nodes:
            node.scope.cancel()


async def release_(node, folder, name="poet", **options):
    return await publish(node.ports, folder, Release(name, TINY, **options), node.publish)


@pytest.fixture
def release() -> Any:
    return release_


def plant_(
    node,
    files,
    *,
    base=BASE,
    name="poet",
    visibility=Visibility.FLOCK,
    identity=None,
    scope=None,
    kind="adapter",
    extra=None,
    **claims,
):
    """A hostile publisher's manifest: says whatever it likes. Returns its CID."""
    manifest = Manifest(
        name=name,
        base=Base(fingerprint=base, name="tiny", architecture="LlamaForCausalLM"),
        files=files,
        created_unix_s=1,
        **{"version": 1, "n_bytes": 1, "n_params": 64, "rank": 2, "alpha": 4.0, "targets": ("q_proj",)} | claims,
    )
    content = manifest_content(manifest) | (extra or {})
    entry = make_entry(identity or node.ports.identity, kind, scope or str(base), 1, [], content)
    node.ports.store.put_many(entry.blocks)
    node.ports.roots.publish(entry.cid, visibility)
    return entry.cid


@pytest.fixture
def plant() -> Any:
    return plant_


async def announce_(node, manifest, *, base=BASE, identity=None, sequence=None, **claims):
    body = Announcement(manifest=manifest, **{"name": "poet", "version": 1, "n_bytes": 1} | claims)
    number = partial(node.ports.catalog.sequences.next, unix_s=unix_now_s())
    data = wire.seal_announcement(identity or node.ports.identity, base, body, number, unix_now_s())
    await node.network.publish(wire.topic_of(base), data)
    return data


@pytest.fixture
def announce() -> Any:
    return announce_


def refusals_(node):
    return [event.fields["code"] for event in node.events if event.kind == "adapter_refused"]


@pytest.fixture
def refusals() -> Any:
    return refusals_


def sizes_(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.fixture
def sizes() -> Any:
    return sizes_
