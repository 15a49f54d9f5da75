"""COSE_Sign1 (RFC 9052, section 4.2) in the one form that Covey uses.

    live     18([protected, {}, payload, signature])   tagged, the payload inside
    history  [protected, {}, nil, signature]           untagged, the payload detached

`protected` is {1: -8, 4: author's peer id}: EdDSA (RFC 9053, section 2.2), and a key id that is the key. Nothing in
that header varies but the author, so a reader compares it with the only bytes it can be and hands no unverified byte to
a CBOR decoder: another algorithm, a further header or a longer way to write the same is refused by that comparison.
"""

from typing import Final

from protocols.errors import Forged, Malformed
from protocols.message import BYTES, canonical, read_head
from storage.keys import SIGNATURE_BYTES, Identity, InvalidPeerId, PeerId

ALGORITHM: Final = 1
KEY_ID: Final = 4
EDDSA: Final = -8

_PEER_ID_BYTES: Final = 38
_LIVE_START: Final = bytes.fromhex("d284 582c a2 0127 04 5826")  # 18, [4 items, 44 bytes: {1: -8, 4: 38 bytes
_HISTORY_START: Final = _LIVE_START[1:]
_NO_UNPROTECTED: Final = b"\xa0"
_NIL: Final = b"\xf6"
_SIGNATURE_HEAD: Final = b"\x58\x40"
DETACHED_BYTES: Final = len(_HISTORY_START) + _PEER_ID_BYTES + 4 + SIGNATURE_BYTES


def sign(identity: Identity, payload: bytes, external_aad: bytes) -> bytes:
    """A tagged COSE_Sign1 that carries `payload`."""
    signature = identity.sign(signed_bytes(identity.peer_id, payload, external_aad))
    payload_item = canonical(payload)
    return _LIVE_START + identity.peer_id + _NO_UNPROTECTED + payload_item + _SIGNATURE_HEAD + signature


def sign_detached(identity: Identity, payload: bytes, external_aad: bytes) -> bytes:
    """An untagged COSE_Sign1 over `payload`, without it."""
    signature = identity.sign(signed_bytes(identity.peer_id, payload, external_aad))
    return _HISTORY_START + identity.peer_id + _NO_UNPROTECTED + _NIL + _SIGNATURE_HEAD + signature


def verify(data: bytes, external_aad: bytes) -> tuple[PeerId, bytes]:
    """The author and payload of what `sign` made. Raises: Malformed, Forged."""
    author, at = _read_author(data, _LIVE_START)
    major, length, start = read_head(data, at)
    end = start + length
    if major != BYTES or data[end : end + 2] != _SIGNATURE_HEAD or len(data) != end + 2 + SIGNATURE_BYTES:
        raise Malformed("the COSE_Sign1 is not a payload and a 64-byte signature")
    _check_signature(author, data[end + 2 :], data[start:end], external_aad)
    return author, data[start:end]


def verify_detached(data: bytes, payload: bytes, external_aad: bytes) -> PeerId:
    """The author of what `sign_detached` made over `payload`. Raises: Malformed, Forged."""
    author, at = _read_author(data, _HISTORY_START)
    if data[at : at + 3] != _NIL + _SIGNATURE_HEAD or len(data) != DETACHED_BYTES:
        raise Malformed("the COSE_Sign1 is not nil and a 64-byte signature")
    _check_signature(author, data[at + 3 :], payload, external_aad)
    return author


def signed_bytes(author: PeerId, payload: bytes, external_aad: bytes) -> bytes:
    """What the signature is over: the Sig_structure of RFC 9052, section 4.4."""
    return canonical(["Signature1", canonical({ALGORITHM: EDDSA, KEY_ID: bytes(author)}), external_aad, payload])


def _read_author(data: bytes, start: bytes) -> tuple[PeerId, int]:
    """The key id, and the offset behind the empty unprotected header."""
    end = len(start) + _PEER_ID_BYTES
    if not data.startswith(start) or data[end : end + 1] != _NO_UNPROTECTED:
        raise Malformed("the COSE_Sign1 header is not {1: -8, 4: peer id} with nothing unprotected")
    try:
        author = PeerId.of(PeerId(data[len(start) : end]).public_key)
    except InvalidPeerId as error:
        raise Malformed(f"the COSE_Sign1 key id is not the id of an Ed25519 key: {error}") from None
    return author, end + 1


def _check_signature(author: PeerId, signature: bytes, payload: bytes, external_aad: bytes) -> None:
    if not author.verifies(signature, signed_bytes(author, payload, external_aad)):
        raise Forged(f"the signature of {author} does not fit the message or its purpose")
