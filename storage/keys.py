"""A node's identity: an Ed25519 key on disk, and the peer id that names it.

Source: libp2p peer-ids specification. An id is the multihash of the public key's protobuf form: the identity multihash
where that has at most 42 bytes (Ed25519: the key can be read back from the id), else sha2-256 (RSA).
"""

import os
from hashlib import blake2b
from pathlib import Path
from typing import Final, Self

from nacl.bindings import (
    crypto_scalarmult,
    crypto_scalarmult_base,
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_ed25519_sk_to_curve25519,
)
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.signing import SigningKey, VerifyKey

from storage.durable import create_file
from storage.errors import StorageError
from storage.multibase import base58_decode, base58_encode

SEED_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
MAX_INLINED_BYTES: Final = 42
MAX_PEER_ID_TEXT: Final = 64
_PREFIX: Final = bytes.fromhex("002408011220")  # identity multihash, 36 bytes: {type: Ed25519, data: 32 bytes}
_ED25519: Final = _PREFIX[2:4]
_KEY_START: Final = b"\x08"  # the field that holds the type of a key
_SHA2_256: Final = bytes.fromhex("1220")


class InvalidPeerId(StorageError, ValueError):
    """That is not a peer id, or not of an Ed25519 key. Ask the peer for the output of `covey id`: 12D3KooW..."""


class InvalidKey(StorageError):
    """The identity key cannot be used. Restore it from a backup, or make a new node with `covey init`."""


class PeerId(bytes):
    """The libp2p id of a peer, in binary form; `str()` gives the text.

    Covey's own identities are Ed25519 keys (12D3KooW...), and only those sign its messages. Strangers may have others
    (Qm... for RSA): they are proven by the handshake, and nothing else of theirs is verified here.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        """Raises: InvalidPeerId."""
        if not (_is_inlined_key(raw) or (len(raw) == 34 and raw.startswith(_SHA2_256))):
            raise InvalidPeerId("neither a key of at most 42 bytes nor the sha2-256 of one")
        return super().__new__(cls, raw)

    @classmethod
    def of(cls, public_key: bytes) -> Self:
        """The id of a 32-byte public key."""
        return cls(_PREFIX + public_key)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form. Raises: InvalidPeerId."""
        if len(text) > MAX_PEER_ID_TEXT:
            raise InvalidPeerId(f"{text[:60]!r}... is not a peer id: it has over {MAX_PEER_ID_TEXT} characters")
        try:
            return cls(base58_decode(text))
        except ValueError as error:
            raise InvalidPeerId(f"{text!r} is not a peer id: {error}") from None

    @property
    def public_key(self) -> bytes:
        """The 32 bytes of the Ed25519 public key. Raises: InvalidPeerId where the id holds none."""
        if not self.startswith(_PREFIX):
            raise InvalidPeerId(f"{self} is not the id of an Ed25519 key")
        return self[len(_PREFIX) :]

    @property
    def exchange_key(self) -> bytes:
        """The X25519 form of the Ed25519 key, to agree on secrets with (RFC 7748).

        Raises: InvalidPeerId where the id holds no such key, or one of low order or outside the prime-order group.
        """
        try:
            return crypto_sign_ed25519_pk_to_curve25519(self.public_key)
        except CryptoError:
            raise InvalidPeerId(f"the key of {self} is not a good point of its curve") from None

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Did this peer's key sign `data`? False for keys other than Ed25519."""
        if len(signature) != SIGNATURE_BYTES:
            return False
        try:
            VerifyKey(self.public_key).verify(data, signature)
        except (BadSignatureError, ValueError):  # InvalidPeerId among them
            return False
        return True

    def __str__(self) -> str:
        return base58_encode(self)

    def __repr__(self) -> str:
        return f"PeerId({self})"


def _is_inlined_key(raw: bytes) -> bool:
    if not 2 < len(raw) <= 2 + MAX_INLINED_BYTES or raw[:3] != bytes([0, len(raw) - 2]) + _KEY_START:
        return False
    return raw[2:4] != _ED25519 or (raw.startswith(_PREFIX) and len(raw) == len(_PREFIX) + 32)


class Identity:
    """An Ed25519 key pair: it signs, and its public half is the node's name."""

    def __init__(self, seed: bytes) -> None:
        """Take the 32-byte seed. Raises: InvalidKey."""
        if len(seed) != SEED_BYTES:
            raise InvalidKey(f"the key has {len(seed)} bytes, not {SEED_BYTES}")
        self._key = SigningKey(seed)
        self.peer_id: Final = PeerId.of(bytes(self._key.verify_key))

    @classmethod
    def generate(cls) -> Self:
        """A new identity from the system's randomness."""
        return cls(os.urandom(SEED_BYTES))

    @property
    def seed(self) -> bytes:
        """The secret: for the network adapter and for backups only."""
        return bytes(self._key)

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature (RFC 8032) of `data`."""
        return self._key.sign(data).signature

    def derived(self, label: str) -> "Identity":
        """Another identity, of the same holder: for one label always the same, and nobody else can tell that it is."""
        return Identity(
            blake2b(label.encode(), key=self.seed, digest_size=SEED_BYTES, person=b"covey name key").digest()
        )

    def agree(self, public_key: bytes) -> bytes:
        """The X25519 secret (RFC 7748) shared with the holder of a key. Raises: InvalidKey for one of low order."""
        return agree(crypto_sign_ed25519_sk_to_curve25519(self.seed + self.peer_id.public_key), public_key)

    def save(self, path: Path) -> None:
        """Write the key, durably, readable by its owner alone. Raises: FileExistsError: a key is never overwritten."""
        create_file(path, self.seed)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved key. Raises: InvalidKey when it is damaged or readable by others."""
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise InvalidKey(f"{path} may be read by others (mode {mode:o}): run chmod 600 on it")
        return cls(path.read_bytes())


def exchange_key_of(secret: bytes) -> bytes:
    """The X25519 public key of a 32-byte secret."""
    return crypto_scalarmult_base(secret)


def agree(secret: bytes, public_key: bytes) -> bytes:
    """X25519 (RFC 7748). Raises: InvalidKey for a key of low order, which would make the result known to everybody."""
    try:
        return crypto_scalarmult(secret, public_key)
    except CryptoError:
        raise InvalidKey("that key is of low order") from None
