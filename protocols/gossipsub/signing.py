"""Whose signature is under a message: Ed25519 keys, which Covey's own peers have, and RSA keys, which Kubo's may have.

Source: libp2p/specs, peer-ids (keys as protobuf, RSA as PKCS #1 v1.5 over SHA-256) and pubsub (what is signed).
"""

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from storage.keys import InvalidPeerId, PeerId

MAX_KEY_BYTES: Final = 600  # an RSA key of 4096 bits has 558

_ED25519: Final = b"\x08\x01\x12\x20"
_RSA: Final = b"\x08\x00\x12"
_SHA2_256: Final = b"\x12\x20"


def key_of(sender: PeerId) -> bytes | None:
    """The key of a sender, as protobuf; None where its id does not hold one that we can use."""
    try:
        return _ED25519 + sender.public_key
    except InvalidPeerId:
        return None


def can_verify(sender: PeerId, key: bytes) -> bool:
    """Is there a key, of the sender's own, that we can use?"""
    own = key_of(sender)
    if own is not None:
        return key in (b"", own)
    is_rsa = key.startswith(_RSA) and len(key) <= MAX_KEY_BYTES
    return is_rsa and sender == _SHA2_256 + hashlib.sha256(key).digest()


def verifies(sender: PeerId, key: bytes, signature: bytes, data: bytes) -> bool:
    """Did the sender sign `data`? False also for keys that we cannot use."""
    if not can_verify(sender, key):
        return False
    if key_of(sender) is not None:
        return sender.verifies(signature, data)
    try:
        public = load_der_public_key(_inner(key))
        if not isinstance(public, RSAPublicKey):
            return False
        public.verify(signature, data, PKCS1v15(), SHA256())
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _inner(key: bytes) -> bytes:
    """The key itself, behind its type and a length of one or two bytes."""
    at = len(_RSA)
    while at < len(key) and key[at] & 0x80:
        at += 1
    return key[at + 1 :]
