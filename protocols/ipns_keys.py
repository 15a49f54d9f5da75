"""The public keys that sign IPNS records: Ed25519, and those that came before it or stand beside it.

Source: the libp2p peer-ids specification, section "Key Types".
"""

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from protocols.errors import Malformed
from protocols.protobuf import read_varint
from storage.keys import MAX_INLINED_BYTES, PeerId

MAX_KEY_BYTES: Final = 2 << 10
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
_ED25519_BYTES: Final = 32


class Kind(IntEnum):
    """The protobuf's key types."""

    RSA = 0
    ED25519 = 1
    SECP256K1 = 2
    ECDSA = 3


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key as libp2p writes it. `data` is 32 bytes for Ed25519, a point for secp256k1, DER (PKIX) for the others."""

    kind: Kind
    data: bytes
    raw: bytes

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Read the protobuf `{type, data}` in its one order. Raises: Malformed."""
        if len(raw) > MAX_KEY_BYTES:
            raise Malformed(f"a key of {len(raw)} bytes; the limit is {MAX_KEY_BYTES}")
        if len(raw) < 4 or raw[0] != 0x08 or raw[1] not in tuple(Kind) or raw[2] != 0x12:
            raise Malformed("not a public key as libp2p writes it")
        length, at = read_varint(raw, 3)
        if length != len(raw) - at:
            raise Malformed(f"a key of {len(raw) - at} bytes says {length}")
        key = cls(Kind(raw[1]), raw[at:], raw)
        if key.kind is Kind.ED25519 and length != _ED25519_BYTES:
            raise Malformed(f"an Ed25519 key of {length} bytes")
        return key

    @property
    def names(self) -> tuple[PeerId, ...]:
        """The names that this key may have: the hash of it, and where it is small the key itself."""
        hashed = PeerId(b"\x12\x20" + hashlib.sha256(self.raw).digest())
        if len(self.raw) > MAX_INLINED_BYTES:
            return (hashed,)
        return PeerId(bytes((0, len(self.raw))) + self.raw), hashed

    @property
    def peer_id(self) -> PeerId:
        """The name that this key has today."""
        return self.names[0]

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Did this key sign `data`? Raises: Malformed for a key that cannot be used."""
        if self.kind is Kind.ED25519:
            return PeerId.of(self.data).verifies(signature, data)
        return _verifies(self, signature, data)


def _verifies(key: PublicKey, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        public = (
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), key.data)
            if key.kind is Kind.SECP256K1
            else load_der_public_key(key.data)
        )
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Malformed(f"not a usable {key.kind.name} key: {error}") from None
    try:
        if key.kind is Kind.RSA and isinstance(public, rsa.RSAPublicKey):
            if not MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS:
                raise Malformed(f"an RSA key of {public.key_size} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are taken")
            public.verify(signature, data, padding.PKCS1v15(), SHA256())
        elif key.kind is not Kind.RSA and isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, data, ec.ECDSA(SHA256()))
        else:
            raise Malformed(f"the key says {key.kind.name} and is a {type(public).__name__}")
    except InvalidSignature:
        return False
    return True
