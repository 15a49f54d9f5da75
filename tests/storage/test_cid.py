"""CIDs: every text form, both versions, and what is refused."""

import multiformats
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.cid import (
    BLAKE2B_256,
    BLAKE3,
    DAG_CBOR,
    DAG_PB,
    HASHES,
    MAX_DIGEST_BYTES,
    RAW,
    SHA2_256,
    SHA2_512,
    Cid,
    varint_decode,
    varint_encode,
)
from storage.errors import InvalidCid
from storage.multibase import NAMES

V1 = Cid.of(b"hello world\n")
V0 = Cid.parse("QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o")


@pytest.mark.parametrize("base", sorted(NAMES))
def test_a_cid_is_written_and_read_in_every_multibase(base: str) -> None:
    for cid in (V1, Cid.of(b"x", DAG_CBOR, SHA2_512), Cid(b"\x01\x55\x00\x80\x01" + bytes(MAX_DIGEST_BYTES))):
        text = cid.encode(base)
        assert Cid.parse(text) == cid
        assert text == multiformats.CID.decode(bytes(cid)).encode(base).rstrip("=" if base == "base8" else "")


def test_a_cid_v0_has_one_text_alone() -> None:
    assert V0.encode("base58btc") == str(V0)
    with pytest.raises(InvalidCid, match="CIDv1"):
        V0.encode("base32")
    with pytest.raises(InvalidCid, match="base31"):
        V1.encode("base31")


@pytest.mark.parametrize("hash_code", sorted(HASHES))
def test_every_accepted_hash_has_the_name_and_digest_of_another_library(hash_code: int) -> None:
    cid = Cid.of(b"data", RAW, hash_code)
    other = multiformats.CID.decode(bytes(cid))
    assert other.hashfun.name == HASHES[hash_code].name
    assert cid.matches(b"data")


@pytest.mark.parametrize("hash_code", [SHA2_256, SHA2_512, BLAKE3, BLAKE2B_256])
@pytest.mark.parametrize("codec", [RAW, DAG_PB, DAG_CBOR, 0x0129])
def test_text_and_fields_agree_with_another_library(codec: int, hash_code: int) -> None:
    cid = Cid.of(b"data", codec, hash_code)
    other = multiformats.CID.decode(bytes(cid))
    assert str(cid) == other.encode("base32")
    assert (cid.version, cid.codec, cid.digest) == (1, other.codec.code, other.raw_digest)
    assert cid.hash_code == hash_code
    assert cid.matches(b"data")
    assert not cid.matches(b"Data")


def test_versions_convert_where_both_exist() -> None:
    assert str(V0.as_v1()) == "bafybeicg2rebjoofv4kbyovkw7af3rpiitvnl6i7ckcywaq6xjcxnc2mby"
    assert V0.as_v1().as_v0() == V0 == V0.as_v0()
    assert V1.as_v1() == V1
    assert V0.multihash == V0.as_v1().multihash
    for other in (V1, Cid.of(b"x", DAG_PB, SHA2_512)):
        with pytest.raises(InvalidCid):
            other.as_v0()


def test_an_identity_cid_holds_its_data_up_to_the_limit() -> None:
    largest = Cid(b"\x01\x55\x00\x80\x01" + bytes(MAX_DIGEST_BYTES))
    assert largest.inline == bytes(MAX_DIGEST_BYTES)
    assert largest.matches(bytes(MAX_DIGEST_BYTES))
    assert Cid.parse("bafkqaaa").inline == b""
    assert V1.inline is None
    with pytest.raises(InvalidCid):
        Cid(b"\x01\x55\x00\x81\x01" + bytes(MAX_DIGEST_BYTES + 1))


def test_a_hash_function_that_is_not_accepted_names_but_never_matches() -> None:
    sha1 = Cid.parse("z8mWaJ1dZ9fH5EetPuRsj8jj26pXsgpsr")
    assert sha1.hash_code == 0x11
    assert not sha1.matches(b"")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        b"\x02\x55" + V1[2:],  # version 2
        b"\x81\x00\x55" + V1[2:],  # overlong varints
        b"\x01\xd5\x00" + V1[2:],
        b"\x01\x55\x92\x00" + V1[3:],
        b"\x01\x55\x12\xa0\x00" + V1[4:],
        b"\x01" + b"\xff" * 10,
        bytes(V1) + b"\0",
        b"\x01\x55\x12\x1f" + V1[4:-1],  # a digest shortened
        b"\x01\x55\x00\xff\xff\xff\x7f",
        b"\x12\x21" + bytes(33),
        bytes(V0) + b"\0",
        bytes(200),
    ],
)
def test_bytes_that_are_no_cid_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidCid):
        Cid(raw)


@pytest.mark.parametrize("cid", [V0, V1])
def test_a_cid_is_refused_truncated_at_every_byte(cid: Cid) -> None:
    for end in range(len(cid)):
        with pytest.raises(InvalidCid):
            Cid(cid[:end])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Q",
        "x" + str(V1),
        str(V1)[:-1],
        str(V1) + "a",
        "z" + str(V0),
        str(V0)[:-1] + "0",
        "b",
        "f0",
        "9" * 999,
        "bé",
        "m=",
        "u=a",
    ],
)
def test_text_that_is_no_cid_is_refused(text: str) -> None:
    with pytest.raises(InvalidCid):
        Cid.parse(text)


@given(st.text(max_size=80))
def test_any_text_is_a_cid_or_refused(text: str) -> None:
    try:
        Cid.parse(text)
    except InvalidCid:
        return


@given(st.binary(max_size=60))
def test_any_bytes_are_a_cid_that_prints_and_parses_or_refused(raw: bytes) -> None:
    try:
        cid = Cid(raw)
    except InvalidCid:
        return
    assert Cid.parse(str(cid)) == cid == raw


@given(st.integers(0, (1 << 63) - 1))
def test_varints_come_back(value: int) -> None:
    data = varint_encode(value)
    assert varint_decode(b"x" + data + b"y", 1) == (value, 1 + len(data))


@pytest.mark.parametrize("bad", [b"", b"\x80", b"\x80\x00", b"\xff" * 9, b"\x80" * 9 + b"\x01"])
def test_bad_varints_are_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="varint"):
        varint_decode(bad)
