"""The vectors of sealed content, and a reader of another make: the same format, recombined from other primitives."""

import hashlib
import json
from pathlib import Path

import pytest
from Crypto.Cipher import ChaCha20_Poly1305
from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key, key_agreement

from storage import errors
from storage.blockstore import MadeBlock
from storage.cid import DAG_CBOR
from storage.codecs import dag_cbor
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from storage.sealed import export_sealed, open_sealed
from storage.sealed.sealer import PROFILE
from storage.sealed.stream import open_chunk, seal_chunks
from storage.unixfs import add_bytes

DOCUMENT = json.loads((Path(__file__).parents[2] / "vectors" / "sealed.json").read_text())
FOLDER = ["", "hello.txt", "link", "nothing", "run"]


def bytes_of(annotated):
    return b"".join(bytes.fromhex(line.partition("#")[0]) for line in annotated)


@pytest.mark.parametrize("vector", DOCUMENT["vectors"], ids=lambda vector: vector["name"])
def test_sealed_content_is_taken_as_its_vector_says(vector, tmp_path):
    store, reader = MemoryBlockstore(), Identity(bytes.fromhex(vector["reader_seed"]))
    block = MadeBlock.of(bytes_of(vector["root"]), DAG_CBOR)
    assert str(block.cid) == vector["cid"]
    store.put_many([block])
    add_bytes(store, bytes.fromhex(vector["ciphertext"]), PROFILE)
    if vector["expect"] == "opened":
        opened = open_sealed(store, block.cid, reader)
        assert [entry.name for entry in opened.entries()] == FOLDER
        export_sealed(opened, "", tmp_path / "out")
        assert (tmp_path / "out" / "link").read_bytes() == b"hello\n"
        assert (tmp_path / "out" / "run").stat().st_mode & 0o777 == 0o755
    else:
        with pytest.raises(getattr(errors, vector["expect"])):
            open_sealed(store, block.cid, reader)


def test_the_vectors_are_as_written():
    from_command = {vector["expect"] for vector in DOCUMENT["vectors"]}
    assert from_command == {"opened", "NotARecipient", "BrokenSeal", "UnknownSeal"}
    stream = DOCUMENT["stream"]
    key, prefix = bytes.fromhex(stream["key"]), bytes.fromhex(stream["prefix"])
    chunks = list(seal_chunks(key, prefix, [bytes(range(251)) * 600]))
    assert [hashlib.sha256(chunk).hexdigest() for chunk in chunks] == [one["sha2-256"] for one in stream["chunks"]]


# --- by another library (PyCryptodome), after storage/FORMAT.md alone


def foreign_decrypt(key: bytes, nonce: bytes, data: bytes, bound_to: bytes) -> bytes:
    cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)
    cipher.update(bound_to)
    return cipher.decrypt_and_verify(data[:-16], data[-16:])


def derived(secret: bytes, personal: bytes, data: bytes = b"") -> bytes:
    return hashlib.blake2b(data, key=secret, person=personal, digest_size=32).digest()


def foreign_open(root: dict, ciphertext: bytes, seed: bytes) -> bytes:
    binding = hashlib.sha256(b"covey/sealed/1" + dag_cbor.encode(root["content"])).digest()
    scalar = hashlib.sha512(seed).digest()[:32]  # RFC 8032: the first half is the scalar of both curves
    secret = import_x25519_private_key(scalar)
    own_public = secret.public_key().export_key(format="raw")
    for wrap in root["wraps"]:
        shared = key_agreement(
            static_priv=secret, static_pub=import_x25519_public_key(wrap[:32]), kdf=lambda secret: secret
        )
        try:
            key_of_wrap = derived(shared, b"covey-seal-wrap1", wrap[:32] + own_public + binding)
            key = foreign_decrypt(key_of_wrap, bytes(24), wrap[32:], binding)
            break
        except ValueError:
            continue
    assert derived(key, b"covey-seal-cmit1") == root["content"]["commitment"]
    chunks = [ciphertext[at : at + 65552] for at in range(0, len(ciphertext), 65552)]
    stream_key, prefix = derived(key, b"covey-seal-strm1"), root["content"]["prefix"]
    return b"".join(
        foreign_decrypt(
            stream_key, prefix + index.to_bytes(4, "big") + bytes([index == len(chunks) - 1]), chunk, b"covey/sealed/1"
        )
        for index, chunk in enumerate(chunks)
    )


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_another_library_opens_what_is_sealed_here(bench, name):
    content = bytes(range(256)) * 1000
    made = bench.seal(content, bench.alice.peer_id, bench.bob.peer_id)
    root = dag_cbor.decode(bench.store.get(made.cid))
    plaintext = foreign_open(root, b"".join(bench.chunks(made)), getattr(bench, name).seed)
    assert plaintext.startswith(content)
    assert plaintext == b"".join(bench.opened(made.cid).plaintext())


def test_chunks_of_another_library_open_here():
    key, prefix, pieces = bytes(range(32)), bytes(range(19)), [b"a" * 65536, b"b" * 65536, b"end"]
    for index, piece in enumerate(pieces):
        is_last = index == len(pieces) - 1
        nonce = prefix + index.to_bytes(4, "big") + bytes([is_last])
        cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)
        cipher.update(b"covey/sealed/1")
        data, tag = cipher.encrypt_and_digest(piece)
        assert open_chunk(key, prefix, index, data + tag, is_last=is_last) == piece
    assert list(seal_chunks(key, prefix, pieces))[-1] == data + tag
