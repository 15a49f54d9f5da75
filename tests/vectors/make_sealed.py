"""Write the vectors of sealed content: `python -m tests.vectors.make_sealed`, from the repository's root.

Each is a root (annotated hex), its ciphertext, the reader's seed, and what comes of it: `opened`, or the error's name.
All that is random comes from a counter, so that the file changes only when the format does.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from storage.sealed import Made, seal_path
from storage.unixfs import read_file

from .make_signed import annotate

ALICE, BOB, EVE = (Identity(letter * 32) for letter in (b"a", b"b", b"e"))
LARGE = bytes(range(251)) * 600  # three chunks
LOW_ORDER_POINT = bytes(32)

Vector = dict[str, Any]


class Counted:
    """Bytes that look random and are the same every time."""

    def __init__(self) -> None:
        self._n = 0

    def __call__(self, n_bytes: int) -> bytes:
        self._n += 1
        return hashlib.shake_256(b"covey sealed vectors %d" % self._n).digest(n_bytes)


def sealed_folder(store: MemoryBlockstore) -> Made:
    """A folder with a file, a program, a symlink and an empty folder in it, sealed to Alice and Bob."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "folder"
        folder.mkdir(mode=0o755)
        for path, content, mode in (("hello.txt", b"hello\n", 0o644), ("run", b"#!/bin/sh\n", 0o755)):
            (folder / path).write_bytes(content)
            (folder / path).chmod(mode)
        (folder / "link").symlink_to("hello.txt")
        (folder / "nothing").mkdir(mode=0o700)
        folder.chmod(0o755)
        return seal_path(store, folder, [ALICE.peer_id, BOB.peer_id], entropy=Counted())


def vector(name: str, expect: str, root: dict[str, Any], ciphertext: bytes, reader: Identity = ALICE) -> Vector:
    """One vector; `root` is written as DAG-CBOR."""
    data = dag_cbor.encode(root)
    return {
        "name": name,
        "expect": expect,
        "cid": str(Cid.of(data, DAG_CBOR)),
        "reader_seed": reader.seed.hex(),
        "root": annotate(data),
        "ciphertext": ciphertext.hex(),
    }


def flipped(data: bytes, at: int) -> bytes:
    """The same bytes but for one bit."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def vectors() -> Iterator[Vector]:
    """Every vector."""
    store = MemoryBlockstore()
    made = sealed_folder(store)
    root = dag_cbor.decode(store.get(made.cid))
    sealed = b"".join(read_file(store, made.root.content.data))
    about, wraps, roster = root["content"], root["wraps"], root["roster"]
    yield vector("a folder, read by the first recipient", "opened", root, sealed)
    yield vector("the same, read by the second", "opened", root, sealed, BOB)
    yield vector("read by somebody else", "NotARecipient", root, sealed, EVE)
    yield vector("another kind", "BrokenSeal", root | {"kind": "covey/other"}, sealed)
    yield vector("another version", "UnknownSeal", root | {"version": 2}, sealed)
    yield vector("an unknown field", "BrokenSeal", root | {"hint": "trust me"}, sealed)
    yield vector("a field less", "BrokenSeal", {key: value for key, value in root.items() if key != "roster"}, sealed)
    yield vector("another prefix", "NotARecipient", root | {"content": about | {"prefix": bytes(19)}}, sealed)
    yield vector("another commitment", "NotARecipient", root | {"content": about | {"commitment": bytes(32)}}, sealed)
    yield vector("another length", "NotARecipient", root | {"content": about | {"n_bytes": 1}}, sealed)
    yield vector("another ciphertext", "NotARecipient", root | {"content": about | {"data": Cid.of(b"")}}, sealed)
    yield vector("a wrap less", "BrokenSeal", root | {"wraps": [wrap for wrap in wraps if opens(made, wrap)]}, sealed)
    yield vector("wraps in another order", "BrokenSeal", root | {"wraps": wraps[::-1]}, sealed)
    yield vector("a wrap twice", "BrokenSeal", root | {"wraps": [wraps[0], *wraps]}, sealed)
    yield vector("no wraps", "NotARecipient", root | {"wraps": []}, sealed)
    low = sorted([LOW_ORDER_POINT + wraps[0][32:], LOW_ORDER_POINT + wraps[1][32:]])
    yield vector("ephemeral keys of low order", "NotARecipient", root | {"wraps": low}, sealed)
    yield vector("an altered roster", "BrokenSeal", root | {"roster": flipped(roster, 30)}, sealed)
    yield vector("a roster cut short", "BrokenSeal", root | {"roster": roster[:20]}, sealed)


def opens(made: Made, wrap: bytes) -> bool:
    """Is this Alice's wrap?"""
    from storage.sealed.keys import unwrap

    return unwrap(made.root._replace(wraps=(wrap,)), ALICE) is not None


def stream_vector() -> Vector:
    """The chunks of a longer plaintext, by their hashes."""
    from storage.sealed.stream import seal_chunks

    key, prefix = Counted()(32), Counted()(19)
    chunks = list(seal_chunks(key, prefix, [LARGE]))
    return {
        "key": key.hex(),
        "prefix": prefix.hex(),
        "plaintext": "the bytes 0 to 250, 600 times",
        "chunks": [{"n_bytes": len(chunk), "sha2-256": hashlib.sha256(chunk).hexdigest()} for chunk in chunks],
    }


def main() -> None:
    """Write the file."""
    document = {
        "about": "Sealed content. The folder holds hello.txt, run (0755), link -> hello.txt and nothing/.",
        "stream": stream_vector(),
        "vectors": list(vectors()),
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (Path(__file__).parent / "sealed.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
