"""IPNS records: what is signed is what is read, and every lie has its error."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from protocols import ipns
from protocols.errors import Expired, Forged, Local, Malformed, Remote, TooBig
from protocols.ipns_keys import MAX_KEY_BYTES, Kind, PublicKey
from storage.cid import Cid, varint_encode
from storage.codecs import dag_cbor
from storage.keys import Identity, PeerId

ME = Identity(b"\x01" * 32)
OTHER = Identity(b"\x02" * 32)
NOW = 1_800_000_000.0
VALUE = "/ipfs/bafkqaddwgevxmmraojswg33smq"
DOCUMENT = {
    "Value": VALUE.encode(),
    "Validity": b"2099-01-01T00:00:00.000000001Z",
    "ValidityType": 0,
    "Sequence": 7,
    "TTL": 300_000_000_000,
}


def field(number: int, body: bytes | int) -> bytes:
    if isinstance(body, int):
        return varint_encode(number << 3) + varint_encode(body)
    return varint_encode(number << 3 | 2) + varint_encode(len(body)) + body


def signed(document: object = DOCUMENT, *, by: Identity = ME, before: bytes = b"", **changes: object) -> bytes:
    value = {**document, **changes} if isinstance(document, dict) else document
    data = dag_cbor.encode(value)
    return before + field(8, by.sign(b"ipns-signature:" + data)) + field(9, data)


def read(raw: bytes, name: PeerId = ME.peer_id, unix_s: float = NOW) -> ipns.Record:
    return ipns.read_record(raw, name, unix_s)


@given(
    value=st.text(max_size=200),
    sequence=st.integers(0, (1 << 64) - 1),
    lifetime_s=st.integers(1, 10**9),
    ttl_s=st.integers(0, 10**10),
)
def test_a_record_reads_as_it_was_signed(value: str, sequence: int, lifetime_s: int, ttl_s: int) -> None:
    raw = ipns.make_record(ME, value, sequence=sequence, unix_s=NOW, lifetime_s=lifetime_s, ttl_s=ttl_s)
    record = read(raw)
    assert (record.value, record.sequence, record.ttl_ns) == (value.encode(), sequence, ttl_s * 10**9)
    assert record.expires_unix_ns == (int(NOW) + lifetime_s) * 10**9
    assert record.raw == raw


@given(st.data())
def test_no_changed_byte_is_accepted_and_only_the_typed_error_comes(data: st.DataObject) -> None:
    raw = bytearray(ipns.make_record(ME, VALUE, sequence=1, unix_s=NOW))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Remote):
        read(bytes(raw))


@given(st.binary(max_size=300))
def test_garbage_ends_in_the_typed_error(raw: bytes) -> None:
    with pytest.raises(Remote):
        read(raw)


def test_every_record_that_is_cut_short_is_refused() -> None:
    raw = ipns.make_record(ME, VALUE, sequence=1, unix_s=NOW)
    for length in range(len(raw)):
        with pytest.raises(Remote):
            read(raw[:length])


def test_unknown_fields_are_passed_over_and_do_not_change_what_is_signed() -> None:
    extra = (
        field(10, 5) + field(11, b"new") + varint_encode(12 << 3 | 5) + b"abcd" + varint_encode(13 << 3 | 1) + b"8" * 8
    )
    assert read(signed(before=extra, _note="mine")).sequence == 7


def test_legacy_copies_that_say_the_same_are_accepted_whoever_signed_them() -> None:
    legacy = field(1, DOCUMENT["Value"]) + field(2, b"nonsense") + field(4, DOCUMENT["Validity"])
    assert read(signed(before=legacy + field(5, 7) + field(6, DOCUMENT["TTL"]))).value == VALUE.encode()


LEGACY = {1: DOCUMENT["Value"], 2: b"v1", 3: 0, 4: DOCUMENT["Validity"], 5: 7, 6: DOCUMENT["TTL"]}


@pytest.mark.parametrize(("number", "lie"), [(1, b"/ipfs/other"), (3, 1), (4, b"2098-01-01T00:00:00Z"), (5, 8), (6, 1)])
def test_a_legacy_copy_that_says_something_else_is_forged(number: int, lie: bytes | int) -> None:
    with pytest.raises(Forged, match=r"one .* signed and another unsigned"):
        read(signed(before=b"".join(field(key, value) for key, value in (LEGACY | {number: lie}).items())))


def test_a_legacy_copy_that_leaves_a_field_out_is_forged() -> None:
    with pytest.raises(Forged):
        read(signed(before=field(1, DOCUMENT["Value"])))


@pytest.mark.parametrize(
    ("raw", "error", "text"),
    [
        (b"\0" * (ipns.MAX_RECORD_BYTES + 1), TooBig, "the limit is 10240"),
        (b"", Malformed, "no signature of version 2"),
        (field(8, b"") + field(9, b"x"), Malformed, "no signature of version 2"),
        (field(8, b"x" * 64), Malformed, "no signature of version 2"),
        (field(8, b"x") + field(8, b"x"), Malformed, "stands twice"),
        (field(8, 5), Malformed, "field 8 has the wire type 0"),
        (field(5, b"x"), Malformed, "field 5 has the wire type 2"),
        (varint_encode(9 << 3 | 5) + b"abcd", Malformed, "field 9 has the wire type 5"),
        (field(0, 1), Malformed, "field 0"),
        (varint_encode(20 << 3 | 3), Malformed, "wire type 3"),
        (b"\xff" * 10 + b"\x01", Malformed, "over 64 bits"),
        (b"\x42\x05abc", Malformed, "cut short"),
        (signed(by=OTHER), Forged, "not one by the key"),
        (signed(before=field(7, b"\x08\x01\x12\x20" + OTHER.peer_id.public_key), by=OTHER), Forged, "another key"),
        (signed(before=field(7, b"\x09\x01\x12\x20")), Malformed, "not a public key"),
        (field(8, b"x" * 64) + field(9, b"\xff"), Malformed, "the record's data"),
        (signed(["no", "map"]), Malformed, "no map"),
        (signed(Value="text"), Malformed, "Value is missing or no bytes"),
        (signed(Validity=None), Malformed, "Validity is missing"),
        (signed(Sequence=True), Malformed, "Sequence is missing or no number"),
        (signed(TTL=-1), Malformed, "TTL is missing or no number"),
        (signed(ValidityType=1), Malformed, "ValidityType 1 is unknown"),
        (signed(Validity=b"tomorrow"), Malformed, "RFC 3339"),
        (signed(Validity=b"2099-13-01T00:00:00Z"), Malformed, "no time"),
        (signed(Validity=b"2099-01-01T00:00:60Z"), Malformed, "no time"),
        (signed(Validity="2099-01-01T00:00:00Zé".encode()), Malformed, "not ASCII"),
        (signed(Validity=b"2020-01-01T00:00:00Z"), Expired, "was valid until 2020-01-01T00:00:00Z"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(raw: bytes, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        read(raw)


def test_validity_counts_to_the_nanosecond() -> None:
    record = read(signed(Validity=b"2027-01-15T08:00:00.000000001Z"), unix_s=1_800_000_000.0)
    assert record.expires_unix_ns == 1_800_000_000_000_000_001
    assert not record.has_expired(1_800_000_000.0)
    assert record.has_expired(1_800_000_001.0)
    with pytest.raises(Expired):
        read(signed(Validity=b"2027-01-15T08:00:00Z"), unix_s=1_800_000_000.0)


@pytest.mark.parametrize(
    "text", ["2027-01-15T09:30:00.5+01:30", "2027-01-15T07:00:00.5-01:00", "2027-01-15T08:00:00.500Z"]
)
def test_a_validity_may_name_its_zone(text: str) -> None:
    assert ipns.parse_validity(text) == 1_800_000_000_500_000_000


@given(st.integers(-(10**18), 253_402_300_799_999_999_999))
def test_a_validity_is_written_as_it_is_read(unix_ns: int) -> None:
    assert ipns.parse_validity(ipns.validity_text(unix_ns)) == unix_ns


def test_what_no_record_can_say_is_not_signed() -> None:
    with pytest.raises(Malformed, match="beyond the year 9999"):
        ipns.make_record(ME, VALUE, sequence=0, unix_s=NOW, lifetime_s=10**12)
    with pytest.raises(Local):
        ipns.make_record(ME, VALUE, sequence=-1, unix_s=NOW)
    with pytest.raises(Local):
        ipns.make_record(ME, VALUE, sequence=0, unix_s=NOW, ttl_s=1 << 40)
    with pytest.raises(TooBig):
        ipns.make_record(ME, "x" * ipns.MAX_RECORD_BYTES, sequence=0, unix_s=NOW)


def test_the_higher_sequence_ranks_above_the_later_validity() -> None:
    old, later, newer = (
        read(ipns.make_record(ME, VALUE, sequence=sequence, unix_s=NOW, lifetime_s=lifetime_s))
        for sequence, lifetime_s in ((1, 100), (1, 200), (2, 50))
    )
    assert old.rank < later.rank < newer.rank


def test_a_name_reads_in_each_of_its_forms() -> None:
    text = ipns.name_text(ME.peer_id)
    assert text.startswith("k51")
    cid = Cid(b"\x01\x72" + ME.peer_id)
    for form in (text, text.upper(), str(cid), str(ME.peer_id), f"/ipns/{text}"):
        assert ipns.parse_name(form) == ME.peer_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.org",
        "k51",
        "1" * 300,
        "Qmzz",
        str(Cid.of(b"content")),
        str(Cid(b"\x01\x72" + Cid.of(b"x", hash_code=0x13).multihash)),
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="is not an IPNS name"):
        ipns.parse_name(text)


def point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def der(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def libp2p(kind: int, data: bytes) -> bytes:
    return bytes((8, kind, 0x12)) + varint_encode(len(data)) + data


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def test_rsa_secp256k1_and_ecdsa_keys_verify_too(rsa_key: rsa.RSAPrivateKey) -> None:
    data = dag_cbor.encode(DOCUMENT)
    said = b"ipns-signature:" + data
    koblitz, nist = ec.generate_private_key(ec.SECP256K1()), ec.generate_private_key(ec.SECP256R1())
    for key, signature in (
        (libp2p(Kind.RSA, der(rsa_key.public_key())), rsa_key.sign(said, padding.PKCS1v15(), SHA256())),
        (libp2p(Kind.SECP256K1, point(koblitz.public_key())), koblitz.sign(said, ec.ECDSA(SHA256()))),
        (libp2p(Kind.ECDSA, der(nist.public_key())), nist.sign(said, ec.ECDSA(SHA256()))),
    ):
        name = PublicKey.read(key).peer_id
        raw = field(7, key) + field(8, signature) + field(9, data)
        assert read(raw, name).sequence == 7
        assert ipns.holder_of(raw) == name
        with pytest.raises(Forged):
            read(field(7, key) + field(8, signature[:-1] + bytes([signature[-1] ^ 1])) + field(9, data), name)
        if name[0] == 0x12:
            with pytest.raises(Malformed, match="has to carry its key"):
                read(field(8, signature) + field(9, data), name)
        else:
            assert read(field(8, signature) + field(9, data), name).sequence == 7


def test_a_small_key_may_be_named_by_its_hash() -> None:
    key = PublicKey.read(libp2p(Kind.ED25519, ME.peer_id.public_key))
    assert key.peer_id == ME.peer_id
    assert read(signed(before=field(7, key.raw)), key.names[1]).sequence == 7
    assert ipns.holder_of(signed()) is None


def test_keys_that_cannot_be_used_are_refused(rsa_key: rsa.RSAPrivateKey) -> None:
    small = rsa.generate_private_key(65537, 1024).public_key()
    for raw in (
        b"x" * (MAX_KEY_BYTES + 1),
        libp2p(Kind.ED25519, b"x" * 31),
        libp2p(4, b"x" * 32),
        libp2p(Kind.ED25519, b"x" * 32) + b"more",
    ):
        with pytest.raises(Malformed):
            PublicKey.read(raw)
    for raw, text in (
        (libp2p(Kind.RSA, b"nonsense"), "not a usable RSA key"),
        (libp2p(Kind.SECP256K1, b"nonsense"), "not a usable SECP256K1 key"),
        (libp2p(Kind.RSA, der(small)), "1024 bits"),
        (libp2p(Kind.ECDSA, der(rsa_key.public_key())), "says ECDSA"),
    ):
        with pytest.raises(Malformed, match=text):
            PublicKey.read(raw).verifies(b"x", b"y")


FIXTURES = Path(os.environ.get("COVEY_FIXTURES", "/nowhere")) / "gateway-conformance"
VERDICTS = {"v1": Malformed, "v1-v2-broken-v1-value": Forged, "v1-v2-broken-signature-v2": Forged}


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the gateway fixtures are not here: set COVEY_FIXTURES")
def test_foreign_records_are_judged_as_their_makers_say() -> None:
    records = sorted(FIXTURES.rglob("*.ipns-record"))
    assert len(records) == 12
    for path in records:
        name, _, label = path.stem.partition("_")
        if label in VERDICTS:
            with pytest.raises(VERDICTS[label]):
                read(path.read_bytes(), ipns.parse_name(name))
        else:
            assert read(path.read_bytes(), ipns.parse_name(name)).value.startswith(b"/ipfs/")
