"""Bitswap's messages: whole, cut, and hostile."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bitswap.wire import (
    BITSWAP,
    BITSWAP_1_0,
    BITSWAP_1_1,
    MAX_ITEMS,
    MAX_MESSAGE_BYTES,
    WHOLE_BYTES,
    Entry,
    Message,
    Payload,
    WantType,
    decode,
    encode,
    framed,
    identify,
    payload_of,
)
from protocols.errors import Malformed, ProtocolError, TooBig
from protocols.framing import frame
from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import BLAKE3, DAG_PB, IDENTITY, RAW, SHA2_512, Cid, varint_encode

cids = st.builds(
    Cid.of, st.binary(max_size=8), st.sampled_from([RAW, DAG_PB]), st.sampled_from([0x12, SHA2_512, BLAKE3])
)
cids |= st.builds(lambda data: Cid.of(data, DAG_PB).as_v0(), st.binary(max_size=8))
entries = st.builds(
    Entry, cids, st.integers(-(1 << 31), (1 << 31) - 1), st.booleans(), st.sampled_from(WantType), st.booleans()
)
messages = st.builds(
    Message,
    st.lists(entries, max_size=5).map(tuple),
    st.booleans(),
    st.lists(st.builds(lambda cid, data: payload_of(cid, data), cids, st.binary(max_size=50)), max_size=4).map(tuple),
    st.lists(cids, max_size=4).map(tuple),
    st.lists(cids, max_size=4).map(tuple),
    st.integers(0, (1 << 31) - 1),
    n_passed_over=st.just(0),
)


@given(messages)
def test_a_message_survives_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


@given(messages, st.lists(st.sampled_from([0, WHOLE_BYTES - 1, WHOLE_BYTES, 2 * WHOLE_BYTES]), max_size=3))
def test_the_pieces_of_a_message_are_the_message_behind_its_length(message: Message, sizes: list[int]) -> None:
    large = tuple(payload_of(Cid.of(b"", RAW), bytes(size)) for size in sizes)
    message = message._replace(blocks=large + message.blocks)
    pieces = framed(message, BITSWAP_1_1)
    assert b"".join(pieces) == frame(encode(message, BITSWAP_1_1))
    uncopied = {id(block.data) for block in large if len(block.data) >= WHOLE_BYTES}
    assert uncopied <= set(map(id, pieces))


@given(messages)
def test_an_older_peer_hears_of_neither_presences_nor_want_have(message: Message) -> None:
    for protocol in (BITSWAP_1_1, BITSWAP_1_0, BITSWAP):
        heard = decode(encode(message, protocol))
        assert heard.haves == heard.dont_haves == () and not heard.pending_bytes
        assert [payload.data for payload in heard.blocks] == [payload.data for payload in message.blocks]
        asked = [e for e in message.entries if e.is_cancel or e.want_type is WantType.BLOCK]
        assert [(e.cid, e.priority, e.is_cancel) for e in heard.entries] == [e[:3] for e in asked]
    assert decode(encode(message, BITSWAP_1_1)).blocks == message.blocks


def test_bytes_are_those_of_the_specification() -> None:
    cid = Cid.of(b"hello")
    message = Message(
        (Entry(cid, 7, False, WantType.HAVE, True),), True, (payload_of(cid, b"hello"),), (cid,), (cid,), 300
    )
    want = b"\x0a\x24" + cid + b"\x10\x07\x20\x01\x28\x01"
    assert encode(message) == b"".join(
        (
            b"\x0a" + bytes([4 + len(want)]) + b"\x0a" + bytes([len(want)]) + want + b"\x10\x01",
            b"\x1a\x0d\x0a\x04\x01\x55\x12\x20\x12\x05hello",
            b"\x22\x26\x0a\x24" + cid,
            b"\x22\x28\x0a\x24" + cid + b"\x10\x01",
            b"\x28\xac\x02",
        )
    )


def example() -> bytes:
    cid = Cid.of(b"hello")
    return encode(Message((Entry(cid, -1),), False, (payload_of(cid, b"hello"),), (cid,), (cid,), 5))


def test_a_message_cut_anywhere_is_malformed_or_shorter() -> None:
    whole = example()
    for at in range(len(whole)):
        try:
            message = decode(whole[:at])
        except Malformed:
            continue
        assert message != decode(whole)
        assert encode(message) == whole[:at]


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\x00",  # field 0
        b"\x0b",  # a group
        b"\x0a",  # no length
        b"\x0a\x05ab",  # cut
        b"\x08\x01",  # a number for the wantlist
        b"\x28" + b"\xff" * 10,  # an endless varint
        b"\x28" + b"\xff" * 9 + b"\x7f",  # over 64 bits
        b"\x2a\x01a",  # bytes for pendingBytes
        b"\x0a\x02\x0a\x00",  # an entry without a CID
        b"\x0a\x02\x10\x02",  # full = 2
        b"\x0a\x06\x0a\x04\x0a\x02\x02\x55",  # an entry with half a CID
        b"\x22\x00",  # a presence without a CID
        b"\x0d\x01\x02",  # a cut fixed32
        b"\x1a\x29\x0a\x25" + bytes(37) + b"\x12\x00",  # an overlong prefix
    ],
)
def test_what_is_out_of_order_is_malformed(junk: bytes) -> None:
    with pytest.raises(Malformed):
        decode(junk)
    with pytest.raises(Malformed):
        decode(example() + junk)


def test_a_want_of_a_shortened_hash_is_passed_over_and_the_others_are_read() -> None:
    shortened = b"\x01\x55\x12\x14" + bytes(20)
    entry = b"\x0a" + bytes([len(shortened) + 2]) + b"\x0a" + bytes([len(shortened)]) + shortened
    odd = b"\x0a" + bytes([len(entry)]) + entry
    known = Message((Entry(Cid.of(b"x")),), n_passed_over=2)
    assert decode(odd + encode(known) + odd) == known
    assert known.n_items == 3
    with pytest.raises(TooBig):
        decode(odd * (MAX_ITEMS + 1))


@given(st.binary(max_size=300))
def test_garbage_is_read_or_refused_and_nothing_else(junk: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode(junk)


def test_fields_that_we_do_not_know_are_skipped() -> None:
    extra = b"\x30\x05" + b"\x3a\x03abc" + b"\x45\x00\x00\x00\x00" + b"\x49" + bytes(8)
    assert decode(extra + example() + extra) == decode(example())


@pytest.mark.parametrize("tag", [b"\x12\x00", b"\x1a\x00", b"\x0a\x00", b"\x30\x00"])
def test_small_things_in_masses_are_refused(tag: bytes) -> None:
    with pytest.raises(TooBig):
        decode(tag * (8 * MAX_ITEMS + 1))


def test_fields_that_belong_to_nothing_are_few() -> None:
    item, unknown = encode(Message(haves=(Cid.of(b""),))), b"\x30\x00"
    assert decode(item * 100 + unknown * 500) == decode(item * 100)
    with pytest.raises(TooBig):
        decode(unknown * 500)


def test_sizes_are_capped() -> None:
    block = Payload(payload_of(Cid.of(b""), b"").prefix, bytes(MAX_BLOCK_BYTES))
    assert decode(encode(Message(blocks=(block,)))).blocks == (block,)
    with pytest.raises(TooBig, match="a block of"):
        decode(encode(Message(blocks=(block._replace(data=block.data + b"x"),))))
    with pytest.raises(TooBig, match="a Bitswap message of"):
        decode(bytes(MAX_MESSAGE_BYTES + 1))


@given(cids, st.binary(max_size=50))
def test_a_block_is_identified_by_its_bytes_alone(like: Cid, data: bytes) -> None:
    cid = identify(payload_of(like, data))
    assert cid is not None and cid.matches(data)
    assert (cid.version, cid.codec, cid.hash_code) == (like.version, like.codec, like.hash_code)


@pytest.mark.parametrize(
    "prefix",
    [
        b"",
        b"\x01\x55\x12",
        b"\x01\x55\x12\x1f",
        b"\x01\x55\x12\x20\x00",
        b"\x01\x55\xd5\x01\x10",
        b"\x00\x55\x12\x20",
        b"\x02\x55\x12\x20",
        b"\x01\x55" + varint_encode(IDENTITY) + b"\x05",
    ],
)
def test_a_block_with_an_unacceptable_prefix_has_no_identity(prefix: bytes) -> None:
    assert identify(Payload(prefix, b"hello")) is None
