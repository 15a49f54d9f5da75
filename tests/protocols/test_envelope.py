import dataclasses

import cbor2
import pytest
from cwt import COSE, COSEKey
from cwt.exceptions import VerifyError
from hypothesis import given
from hypothesis import strategies as st

from protocols import cose, envelope
from protocols.envelope import MAX_ENVELOPE_BYTES, MAX_SKEW_S, MAX_TTL_S, Purpose, Signed, seal
from protocols.errors import Expired, Forged, Local, Malformed, Remote, TooBig
from protocols.message import Message
from storage.cid import Cid
from storage.keys import Identity, PeerId


class Note(Message, frozen=True, tag="note"):
    text: str
    about: Cid | None = None


class Ping(Message, frozen=True, tag="ping"):
    pass


ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
PURPOSE = Purpose(protocol="/covey/adapters/1.0.0", topic="/covey/adapters/1/base")
NOW = 1_700_000_000
SEALED = seal(ALICE, PURPOSE, Note(text="hello"), sequence=7, unix_s=NOW + 0.75, ttl_s=600)


def opened(data: bytes, purpose: Purpose = PURPOSE, unix_s: float = NOW) -> Signed[Note]:
    return envelope.open(data, purpose, Note, unix_s=unix_s)


def sign_plain(plain: object, identity: Identity = ALICE) -> bytes:
    """An envelope with any payload, signed truly."""
    return cose.sign(identity, cbor2.dumps(plain, canonical=True), PURPOSE.external_aad)


def payload(**changes: object) -> dict[str, object]:
    body = {"type": "note", "text": "hello", "about": None}
    return {"body": body, "sequence": 7, "issued": NOW, "expires": NOW + 600} | changes


@given(
    st.binary(min_size=32, max_size=32).map(Identity),
    st.builds(Note, text=st.text(max_size=500), about=st.none() | st.binary(max_size=9).map(Cid.of)),
    st.integers(1, (1 << 63) - 1),
    st.floats(0, 1 << 39),
    st.integers(1, MAX_TTL_S),
)
def test_what_was_sealed_opens_to_the_same(
    author: Identity, note: Note, sequence: int, unix_s: float, ttl_s: int
) -> None:
    signed = opened(seal(author, PURPOSE, note, sequence=sequence, unix_s=unix_s, ttl_s=ttl_s), unix_s=unix_s)
    assert (signed.author, signed.purpose, signed.sequence, signed.body) == (author.peer_id, PURPOSE, sequence, note)
    assert signed.issued_unix_s <= unix_s < signed.issued_unix_s + 1
    assert signed.expires_unix_s == signed.issued_unix_s + ttl_s


def test_no_changed_byte_is_accepted() -> None:
    for at in range(len(SEALED)):
        for bit in (0x01, 0x20, 0x80):
            with pytest.raises((Malformed, Forged)):
                opened(SEALED[:at] + bytes([SEALED[at] ^ bit]) + SEALED[at + 1 :])


def test_an_envelope_cut_anywhere_or_followed_by_a_byte_is_refused() -> None:
    for end in range(len(SEALED)):
        with pytest.raises(Malformed):
            opened(SEALED[:end])
    with pytest.raises(Malformed):
        opened(SEALED + b"\0")


@given(st.binary(max_size=300), st.integers(0, len(SEALED)))
def test_garbage_is_refused_and_nothing_else_escapes(garbage: bytes, kept: int) -> None:
    if SEALED[:kept] + garbage != SEALED:
        with pytest.raises(Remote):
            opened(SEALED[:kept] + garbage)


@pytest.mark.parametrize(
    "other",
    [
        Purpose(protocol="/covey/adapters/1.1.0", topic=PURPOSE.topic),
        Purpose(protocol=PURPOSE.protocol, topic="/covey/adapters/1/other"),
        Purpose(protocol=PURPOSE.protocol),
        Purpose(protocol=PURPOSE.protocol, topic=PURPOSE.topic, recipient=BOB.peer_id),
        Purpose(protocol=PURPOSE.protocol, topic=PURPOSE.topic, experiment=Cid.of(b"plan")),
    ],
)
def test_a_signature_for_one_purpose_is_void_for_another(other: Purpose) -> None:
    with pytest.raises(Forged):
        opened(SEALED, other)


def test_a_signature_of_one_author_is_void_for_another() -> None:
    with pytest.raises(Forged):
        opened(SEALED.replace(ALICE.peer_id, BOB.peer_id))


def cose_parts() -> list[object]:
    parts: list[object] = cbor2.loads(SEALED).value
    return parts


@pytest.mark.parametrize(
    "header",
    [
        {4: bytes(ALICE.peer_id)},
        {1: -8},
        {1: -7, 4: bytes(ALICE.peer_id)},
        {1: -19, 4: bytes(ALICE.peer_id)},
        {1: -8, 4: bytes(ALICE.peer_id), 3: "application/cbor"},
        {1: -8, 2: [99], 4: bytes(ALICE.peer_id), 99: 1},
        {1: -8, 4: ALICE.peer_id.public_key},
        {1: -8, 4: bytes(38)},
        {1: -8, 4: str(ALICE.peer_id)},
    ],
)
def test_another_protected_header_is_refused_though_it_is_signed(header: dict[int, object]) -> None:
    protected = cbor2.dumps(header)
    body = cose_parts()[2]
    signature = ALICE.sign(cbor2.dumps(["Signature1", protected, PURPOSE.external_aad, body]))
    with pytest.raises(Malformed):
        opened(cbor2.dumps(cbor2.CBORTag(18, [protected, {}, body, signature])))


def test_a_header_in_another_order_or_length_is_refused() -> None:
    _, _, body, _ = cose_parts()
    for protected in (
        cbor2.dumps({4: bytes(ALICE.peer_id), 1: -8}),
        b"\xa2\x01\x38\x07" + cbor2.dumps({4: bytes(ALICE.peer_id)})[1:],
    ):
        signature = ALICE.sign(cbor2.dumps(["Signature1", protected, PURPOSE.external_aad, body]))
        with pytest.raises(Malformed):
            opened(cbor2.dumps(cbor2.CBORTag(18, [protected, {}, body, signature])))


def test_other_shapes_of_cose_are_refused() -> None:
    protected, unprotected, body, signature = cose_parts()
    for value in (
        [protected, unprotected, body, signature],
        cbor2.CBORTag(98, [protected, unprotected, body, signature]),
        cbor2.CBORTag(61, cbor2.CBORTag(18, [protected, unprotected, body, signature])),
        cbor2.CBORTag(18, [protected, {4: b"kid"}, body, signature]),
        cbor2.CBORTag(18, [protected, unprotected, None, signature]),
        cbor2.CBORTag(18, [protected, unprotected, "text", signature]),
        cbor2.CBORTag(18, [protected, unprotected, body, b"short"]),
        cbor2.CBORTag(18, [protected, unprotected, body, signature, signature]),
        cbor2.CBORTag(18, [protected, unprotected, body]),
    ):
        with pytest.raises(Malformed):
            opened(cbor2.dumps(value))


def test_a_payload_length_in_a_longer_form_is_refused() -> None:
    body = cose_parts()[2]
    assert isinstance(body, bytes) and len(body) < 256
    short = cbor2.dumps(body)
    assert SEALED.count(short) == 1
    with pytest.raises(Malformed):
        opened(SEALED.replace(short, b"\x59\x00" + bytes([len(body)]) + body))


# Points of small order: with them as a key, one signature fits many messages. RFC 7748, section 6.1, as Edwards y.
LOW_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
]


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_key_of_low_order_signs_nothing(point: str) -> None:
    key = bytes.fromhex(point)
    identity_r = bytes.fromhex(LOW_ORDER[0])
    with pytest.raises(Forged):
        opened(SEALED[:-64].replace(ALICE.peer_id, PeerId.of(key)) + identity_r + bytes(32))


def test_a_signature_with_the_group_order_added_is_refused() -> None:
    order = (1 << 252) + 27742317777372353535851937790883648493
    malleated = int.from_bytes(SEALED[-32:], "little") + order
    assert malleated < 1 << 256
    with pytest.raises(Forged):
        opened(SEALED[:-32] + malleated.to_bytes(32, "little"))


@pytest.mark.parametrize(
    "plain",
    [
        payload(extra=1),
        payload(sequence=0),
        payload(sequence=1 << 63),
        payload(sequence=-1),
        payload(sequence=1.0),
        payload(issued=-1),
        payload(issued=float(NOW)),
        payload(expires=NOW),
        payload(expires=NOW - 1),
        payload(expires=NOW + MAX_TTL_S + 1),
        payload(issued=1 << 62, expires=(1 << 62) + 1),
        payload(body={"type": "ping"}),
        payload(body={"type": "note"}),
        payload(body=None),
        {name: value for name, value in payload().items() if name != "expires"},
        [],
    ],
)
def test_a_signed_payload_outside_its_limits_is_refused(plain: object) -> None:
    assert opened(sign_plain(payload())).body == Note(text="hello")
    with pytest.raises(Malformed):
        opened(sign_plain(plain))


def test_times_are_kept_to_the_second() -> None:
    assert opened(SEALED, unix_s=NOW + 599.9)
    with pytest.raises(Expired, match="expired 1 s ago"):
        opened(SEALED, unix_s=NOW + 601)
    with pytest.raises(Expired):
        opened(SEALED, unix_s=NOW + 600)
    assert opened(SEALED, unix_s=NOW - MAX_SKEW_S)
    with pytest.raises(Expired, match="121 s in the future"):
        opened(SEALED, unix_s=NOW - MAX_SKEW_S - 1)


def test_an_envelope_may_hold_one_of_several_kinds() -> None:
    ping = seal(ALICE, PURPOSE, Ping(), sequence=1, unix_s=NOW, ttl_s=1)
    kinds: tuple[type[Note] | type[Ping], ...] = (Note, Ping)
    assert envelope.open(ping, PURPOSE, kinds, unix_s=NOW).body == Ping()
    assert envelope.open(SEALED, PURPOSE, kinds, unix_s=NOW).body == Note(text="hello")
    with pytest.raises(Malformed):
        opened(ping)


def test_sizes_are_bounded_both_ways() -> None:
    room = MAX_ENVELOPE_BYTES - len(SEALED)
    seal(ALICE, PURPOSE, Note(text="x" * (room - 9)), sequence=7, unix_s=NOW, ttl_s=600)
    for n_chars in (room + 6, MAX_ENVELOPE_BYTES):
        with pytest.raises(TooBig):
            seal(ALICE, PURPOSE, Note(text="x" * n_chars), sequence=7, unix_s=NOW, ttl_s=600)
    with pytest.raises(TooBig):
        opened(SEALED + bytes(MAX_ENVELOPE_BYTES))


@pytest.mark.parametrize(("sequence", "ttl_s"), [(0, 1), (1 << 63, 1), (1, 0), (1, MAX_TTL_S + 1)])
def test_sealing_outside_the_limits_is_our_own_mistake(sequence: int, ttl_s: int) -> None:
    with pytest.raises(Local):
        seal(ALICE, PURPOSE, Ping(), sequence=sequence, unix_s=NOW, ttl_s=ttl_s)


def test_only_open_makes_a_signed() -> None:
    signed = opened(SEALED)
    with pytest.raises(Local):
        Signed(
            author=BOB.peer_id,
            purpose=PURPOSE,
            sequence=1,
            issued_unix_s=0,
            expires_unix_s=1,
            body=Ping(),
            verified=None,
        )
    with pytest.raises(ValueError, match="verified"):
        dataclasses.replace(signed, body=Note(text="other"))  # type: ignore[call-arg]  # that is the point


def cwt_key(identity: Identity, *, is_private: bool) -> object:
    key = {1: 1, -1: 6, 2: bytes(identity.peer_id), 3: -8, -2: identity.peer_id.public_key}
    return COSEKey.new(key | {-4: identity.seed} if is_private else key)


def test_a_foreign_library_verifies_our_bytes_under_their_purpose_alone() -> None:
    foreign = COSE.new(verify_kid=True)
    key = cwt_key(ALICE, is_private=False)
    protected, unprotected, body = foreign.decode_with_headers(SEALED, key, external_aad=PURPOSE.external_aad)
    assert (protected, unprotected) == ({1: -8, 4: bytes(ALICE.peer_id)}, {})
    assert cbor2.loads(body) == payload()
    with pytest.raises(VerifyError):
        foreign.decode(SEALED, key, external_aad=b"")


def test_a_foreign_library_writes_the_very_same_bytes() -> None:
    foreign = COSE.new().encode(
        cbor2.dumps(payload(), canonical=True),
        cwt_key(ALICE, is_private=True),
        protected={1: -8, 4: bytes(ALICE.peer_id)},
        external_aad=PURPOSE.external_aad,
    )
    assert foreign == SEALED
    assert opened(foreign).author == ALICE.peer_id


def test_the_purpose_is_a_map_of_what_is_set() -> None:
    assert cbor2.loads(PURPOSE.external_aad) == {"protocol": PURPOSE.protocol, "topic": PURPOSE.topic}
    whole = Purpose(protocol="p", topic="t", recipient=BOB.peer_id, experiment=Cid.of(b"plan"))
    assert cbor2.loads(whole.external_aad) == {
        "protocol": "p",
        "topic": "t",
        "recipient": bytes(BOB.peer_id),
        "experiment": bytes(Cid.of(b"plan")),
    }


def test_an_author_with_another_kind_of_key_is_malformed() -> None:
    ed25519, secp256k1 = bytes.fromhex("002408011220"), bytes.fromhex("002408021220")
    with pytest.raises(Malformed, match="not the id of an Ed25519 key"):
        opened(SEALED.replace(ed25519, secp256k1, 1))
