"""Whatever is altered in sealed content, by whomever, is refused with a typed error."""

import hashlib
import os
import random

import pytest
from nacl.bindings import crypto_scalarmult_base

from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import (
    BadRecipient,
    BrokenSeal,
    Corrupt,
    NotARecipient,
    NotSealed,
    StorageError,
    TooLarge,
    UnknownSeal,
)
from storage.keys import Identity, InvalidKey, InvalidPeerId, PeerId, agree, exchange_key_of
from storage.sealed import Keyring, Sealed, open_sealed, read_root
from storage.sealed.keys import commitment, encrypt, make_root, stream_key, unwrap, wrap
from storage.sealed.root import MAX_RECIPIENTS, MAX_ROOT_BYTES, Content
from storage.sealed.sealer import PROFILE
from storage.sealed.stream import CHUNK_BYTES, Shape, seal_chunks
from storage.unixfs import add_bytes
from tests.storage.losing import lose

LOW_ORDER = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")
LOW_ORDER_ED25519 = bytes([1]) + bytes(31)


def flips(data: bytes):
    for at in range(len(data)):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def test_every_flipped_bit_of_a_root_is_refused(bench):
    made = bench.seal(b"secret", bench.alice.peer_id, bench.bob.peer_id)
    n_flips = 0
    for altered in flips(bench.store.get(made.cid)):
        cid = bench.put_root(altered)
        for reader in (bench.alice, bench.bob):
            with pytest.raises(StorageError):
                bench.read(cid, reader)
        n_flips += 1
    assert n_flips > 3000


def test_every_flipped_bit_of_the_ciphertext_is_refused(bench):
    made = bench.seal(b"secret", is_padded=False)
    [chunk] = bench.chunks(made)
    for altered in flips(chunk):
        sealed = bench.with_chunks(made, [altered])
        with pytest.raises(BrokenSeal):
            list(sealed.plaintext())


CHANGES = {
    "two swapped": lambda chunks, other: [chunks[1], chunks[0], *chunks[2:]],
    "the first dropped": lambda chunks, other: chunks[1:],
    "one dropped": lambda chunks, other: [*chunks[:2], *chunks[3:]],
    "one twice": lambda chunks, other: [*chunks[:2], chunks[1], *chunks[2:]],
    "the last cut off": lambda chunks, other: chunks[:-1],
    "the last twice": lambda chunks, other: [*chunks, chunks[-1]],
    "a few bytes cut off": lambda chunks, other: [*chunks[:-1], chunks[-1][:-3]],
    "a few bytes more": lambda chunks, other: [*chunks, bytes(40)],
    "the last chunk moved to the front": lambda chunks, other: [chunks[-1], *chunks[:-1]],
    "one of another content": lambda chunks, other: [chunks[0], other[1], *chunks[2:]],
    "only the first": lambda chunks, other: chunks[:1],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_chunks_in_any_other_order_are_refused(bench, change):
    made, other = bench.seal(os.urandom(4 * CHUNK_BYTES + 100)), bench.seal(os.urandom(4 * CHUNK_BYTES + 100))
    chunks = bench.chunks(made)
    assert b"".join(bench.with_chunks(made, chunks).plaintext()) == b"".join(bench.opened(made.cid).plaintext())
    with pytest.raises(BrokenSeal):
        list(bench.with_chunks(made, change(chunks, bench.chunks(other))).plaintext())


def test_a_whole_chunk_is_given_out_before_a_broken_one_and_nothing_of_that(bench):
    content = os.urandom(3 * CHUNK_BYTES)
    made = bench.seal(content)
    chunks = bench.chunks(made)
    pieces = bench.with_chunks(made, [*chunks[:2], bytes(len(chunks[2])), *chunks[3:]]).plaintext()
    assert next(pieces) + next(pieces) == content[: 2 * CHUNK_BYTES]
    with pytest.raises(BrokenSeal, match="chunk 2"):
        next(pieces)


def test_a_ciphertext_of_another_length_or_kind_is_refused(bench):
    made = bench.seal(b"secret")
    chunks = bench.chunks(made)
    with pytest.raises(BrokenSeal, match="where the root states"):
        list(bench.with_chunks(made, [*chunks, b"more"], n_bytes=len(chunks[0])).plaintext())
    folder = dag_cbor.encode({})
    bench.put_root(folder)
    for data in (Cid.of(folder, DAG_CBOR), made.cid):
        with pytest.raises(BrokenSeal, match="no file"):
            list(bench.with_chunks(made, chunks, data=data).plaintext())
    wrong_part = bench.with_chunks(made, chunks)
    wrong_part._check_ciphertext = lambda: None
    wrong_part.root = made.root._replace(content=made.root.content._replace(data=Cid.of(folder, DAG_CBOR)))
    with pytest.raises(BrokenSeal, match="no file"):
        list(wrong_part.plaintext())


@pytest.mark.parametrize("n_bytes", [1, 16, 65552 + 16, 65552 * (1 << 26) + 100])
def test_impossible_lengths_are_refused(n_bytes):
    with pytest.raises(BrokenSeal, match="no sealed content has"):
        Shape(Content(Cid.of(b""), n_bytes, bytes(19), bytes(32)))


def plaintext_under(bench, plaintext: bytes) -> Sealed:
    key, prefix = bytes(range(32)), bytes(19)
    data = b"".join(seal_chunks(stream_key(key), prefix, [plaintext]))
    content = Content(add_bytes(bench.store, data, PROFILE), len(data), prefix, commitment(key))
    return Sealed(bench.store, make_root(content, key, [], os.urandom), key)


@pytest.mark.parametrize("plaintext", [b"short", (1 << 60).to_bytes(8), bytes(8), b"xx" + (3).to_bytes(8)])
def test_a_maker_who_lies_about_the_table_is_refused(bench, plaintext):
    with pytest.raises(BrokenSeal):
        list(plaintext_under(bench, plaintext).entries())


def test_ten_thousand_altered_roots_give_only_typed_errors(bench):
    made = bench.seal(b"secret", bench.alice.peer_id, bench.bob.peer_id)
    good = bench.store.get(made.cid)
    rng = random.Random(8)
    opened = 0
    for _ in range(10_000):
        cid = bench.put_root(mutated(good, rng))
        try:
            bench.read(cid)
            opened += 1
        except StorageError:
            pass
        lose(bench.store, [cid] if cid != made.cid else [])
    assert opened == 0


def mutated(good: bytes, rng: random.Random) -> bytes:
    """Bytes changed anywhere, or a well-formed root with other values."""
    if rng.random() < 0.5:
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[at] = (data[at] + rng.randint(1, 255)) % 256
                case 1:
                    del data[at : at + rng.randint(1, 40)]
                case _:
                    data[at:at] = rng.randbytes(rng.randint(1, 40))
        return bytes(data)
    value = dag_cbor.decode(good)
    where = rng.choice([value, value["content"]])
    field = rng.choice(sorted(where))
    where[field] = rng.choice(
        [None, 0, -1, 1 << 63, "", b"", rng.randbytes(19), rng.randbytes(32), [], [[]], {}, Cid.of(b"")]
    )
    return dag_cbor.encode(value)


# --- recipients and keys


def test_who_is_no_recipient_gets_one_clear_line(bench):
    made = bench.seal(b"secret", bench.bob.peer_id)
    with pytest.raises(NotARecipient) as refusal:
        bench.read(made.cid, bench.eve)
    assert str(refusal.value) == (
        f"{made.cid} is not sealed to this node ({bench.eve.peer_id}), or its root was altered"
    )
    with pytest.raises(NotARecipient):
        Sealed(bench.store, made.root, bytes(32))


def test_recipients_know_each_other_and_nobody_else_does(bench):
    made = bench.seal(b"secret", bench.alice.peer_id, bench.bob.peer_id, bench.bob.peer_id)
    assert bench.opened(made.cid).recipients == sorted([bench.alice.peer_id, bench.bob.peer_id])
    block = bench.store.get(made.cid)
    for who in (bench.alice, bench.bob):
        for trace in (bytes(who.peer_id), who.peer_id.public_key, who.peer_id.exchange_key):
            assert trace not in block


def test_a_wrap_opens_nothing_but_what_it_was_made_for(bench):
    one, other = bench.seal(b"one"), bench.seal(b"other")
    moved = other.root._replace(wraps=one.root.wraps)
    with pytest.raises(NotARecipient):
        bench.opened(bench.put_root(moved.block().data))


def test_one_ciphertext_has_one_key(bench):
    """A wrap with another key, made by the sealer for one recipient only: the commitment says no."""
    made = bench.seal(b"secret")
    liar = make_root(made.root.content, bytes(32), [bench.bob.peer_id], os.urandom)
    with pytest.raises(NotARecipient):
        bench.opened(bench.put_root(liar.block().data), bench.bob)


def test_a_wrap_with_another_key_does_not_hide_the_true_one(bench):
    made = bench.seal(b"secret")
    for key in (bytes(32), bytes(range(32))):  # wherever it stands among the wraps
        false = [wrap(key, bench.alice.peer_id, made.root.content.binding, os.urandom) for _ in range(8)]
        both = made.root._replace(wraps=tuple(sorted([*made.root.wraps, *false])))
        assert unwrap(both, bench.alice) == made.key


@pytest.mark.parametrize("listed", [b"\xff", b"\x01", [b"no peer"], [1], "twice", "fewer"])
def test_a_roster_that_lies_is_refused(bench, listed):
    from storage.sealed.keys import _ROSTER, _roster_bound, derive

    made = bench.seal(b"secret", bench.alice.peer_id, bench.bob.peer_id)
    names = {"twice": [bytes(bench.bob.peer_id)] * 2, "fewer": [bytes(bench.bob.peer_id)]}
    plain = listed if isinstance(listed, bytes) else dag_cbor.encode(names.get(str(listed), listed))
    bound = _roster_bound(made.root.content, made.root.wraps)
    roster = bytes(24) + encrypt(derive(made.key, _ROSTER), bytes(24), plain, bound)
    with pytest.raises(BrokenSeal, match="list of recipients"):
        Sealed(bench.store, made.root._replace(roster=roster), made.key)


def test_the_ways_in_are_counted(bench):
    made = bench.seal(b"secret")
    peers = [Identity(hashlib.sha256(b"%d" % n).digest()).peer_id for n in range(MAX_RECIPIENTS + 1)]
    with pytest.raises(TooLarge, match="1025 recipients"):
        make_root(made.root.content, made.key, peers, os.urandom)
    full = make_root(made.root.content, made.key, peers[1:], os.urandom)
    assert len(full.block().data) < MAX_ROOT_BYTES
    assert read_root(bench.store, bench.put_root(full.block().data)) == full
    wraps = sorted(os.urandom(80) for _ in range(MAX_RECIPIENTS + 1))
    with pytest.raises(BrokenSeal, match="1025 wraps"):
        bench.opened(bench.put_root(made.root._replace(wraps=tuple(wraps)).block().data))


def test_a_root_that_is_none_is_said_so(bench):
    bench.store.put_many([bench.block(big := bytes(MAX_ROOT_BYTES + 1))])
    with pytest.raises(TooLarge):
        bench.opened(Cid.of(big, DAG_CBOR))
    for data in (dag_cbor.encode([]), dag_cbor.encode({"kind": "note"}), b"\xff"):
        with pytest.raises(NotSealed, match="is not sealed"):
            bench.opened(bench.put_root(data))
    with pytest.raises(BrokenSeal, match="covey get"):
        bench.opened(add_bytes(bench.store, b"plain"))
    long = bench.seal(b"x").root
    with pytest.raises(BrokenSeal, match="roster of"):
        bench.opened(bench.put_root(long._replace(roster=bytes(70_000)).block().data))
    newer = dag_cbor.encode(dag_cbor.decode(long.block().data) | {"version": "2" * 100})
    with pytest.raises(UnknownSeal, match="this Covey knows 1") as refusal:
        bench.opened(bench.put_root(newer))
    assert len(str(refusal.value)) < 160


@pytest.mark.parametrize("public_key", [LOW_ORDER_ED25519, bytes(32), b"\xff" * 32, b"\x02" + bytes(31)])
def test_nothing_is_sealed_to_a_bad_key(bench, public_key):
    with pytest.raises(BadRecipient, match="nothing can be sealed"):
        bench.seal(b"secret", PeerId.of(public_key))
    assert not list(bench.store.cids())  # said before the work
    with pytest.raises(InvalidPeerId):
        _ = PeerId.of(public_key).exchange_key


def test_nothing_is_sealed_to_a_key_of_another_kind(bench):
    with pytest.raises(BadRecipient):
        bench.seal(b"secret", PeerId(b"\x12\x20" + bytes(32)))


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), LOW_ORDER])
def test_points_of_low_order_are_refused(bench, point):
    with pytest.raises(InvalidKey):
        agree(bytes(range(32)), point)
    with pytest.raises(InvalidKey):
        bench.alice.agree(point)


def test_two_identities_agree(bench):
    assert bench.alice.agree(bench.bob.peer_id.exchange_key) == bench.bob.agree(bench.alice.peer_id.exchange_key)
    assert exchange_key_of(bytes(range(32))) == crypto_scalarmult_base(bytes(range(32)))


# --- keys that are kept outside of roots


def test_an_erased_key_opens_nothing_more(bench, tmp_path):
    ring = Keyring(tmp_path / "keys")
    made = bench.seal(b"secret", bench.bob.peer_id)
    assert ring.get(made.root) is None and not ring.erase(made.root)
    ring.keep(made.root, made.key)
    ring.keep(made.root, made.key)
    [path] = (tmp_path / "keys").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert Sealed(bench.store, made.root, ring.get(made.root) or b"").find().n_bytes == 6
    assert ring.erase(made.root) and not list((tmp_path / "keys").iterdir())
    assert ring.get(made.root) is None
    with pytest.raises(NotARecipient):
        open_sealed(bench.store, made.cid, bench.alice)


def test_a_damaged_key_file_is_told(bench, tmp_path):
    ring = Keyring(tmp_path / "keys")
    made = bench.seal(b"secret")
    ring.keep(made.root, made.key)
    [path] = (tmp_path / "keys").iterdir()
    for damage in (bytes(32), b"short"):
        path.write_bytes(damage)
        with pytest.raises(Corrupt, match="does not hold the key"):
            ring.get(made.root)
