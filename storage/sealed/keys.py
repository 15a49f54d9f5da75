"""Keys of sealed content: derived, wrapped for recipients, unwrapped. Pure but for the randomness that callers bring.

Source: BLAKE2 (RFC 7693) keyed and personalised as the key derivation; X25519 (RFC 7748) on converted Ed25519 keys
(Thormarker 2021, "On using the same key pair for Ed25519 and an X25519 based KEM"); XChaCha20-Poly1305
(draft-irtf-cfrg-xchacha). What each value is for stands in storage/FORMAT.md.
"""

import hashlib
from collections.abc import Callable, Iterable
from hmac import compare_digest
from typing import Final

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from storage.codecs import dag_cbor
from storage.errors import BadRecipient, BrokenSeal, StorageError, TooLarge
from storage.keys import Identity, InvalidKey, InvalidPeerId, PeerId, agree, exchange_key_of
from storage.sealed.root import MAX_RECIPIENTS, Content, Root

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16
WRAP_BYTES: Final = KEY_BYTES + KEY_BYTES + TAG_BYTES
_NO_NONCE: Final = bytes(NONCE_BYTES)  # for a key that is used once
_STREAM, _ROSTER, _COMMITMENT, _WRAP = (
    f"covey-seal-{purpose}1".encode() for purpose in ("strm", "rstr", "cmit", "wrap")
)

Entropy = Callable[[int], bytes]
"""Gives so many random bytes: `os.urandom` but in tests."""


def encrypt(key: bytes, nonce: bytes, plaintext: bytes, bound_to: bytes) -> bytes:
    """XChaCha20-Poly1305; the tag stands at the end."""
    return crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, bound_to, nonce, key)


def decrypt(key: bytes, nonce: bytes, ciphertext: bytes, bound_to: bytes) -> bytes | None:
    """The plaintext, or None where anything does not fit."""
    if len(ciphertext) < TAG_BYTES:
        return None
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, bound_to, nonce, key)
    except CryptoError:
        return None


def derive(secret: bytes, purpose: bytes, about: bytes = b"") -> bytes:
    """A key for one purpose, from a secret of 32 bytes."""
    return hashlib.blake2b(about, key=secret, person=purpose, digest_size=KEY_BYTES).digest()


def stream_key(content_key: bytes) -> bytes:
    """The key of the chunks."""
    return derive(content_key, _STREAM)


def commitment(content_key: bytes) -> bytes:
    """What tells one content key from every other, and tells nothing else about it."""
    return derive(content_key, _COMMITMENT)


def fits(content: Content, content_key: bytes) -> bool:
    """Is this the key that the content was sealed with?"""
    return compare_digest(commitment(content_key), content.commitment)


def make_root(content: Content, content_key: bytes, recipients: Iterable[PeerId], entropy: Entropy) -> Root:
    """A root over a content, with fresh wraps for exactly these recipients. Raises: BadRecipient, TooLarge."""
    peers = sorted(set(recipients))
    if len(peers) > MAX_RECIPIENTS:
        raise TooLarge(f"{len(peers)} recipients; the limit is {MAX_RECIPIENTS}")
    wraps = tuple(sorted(wrap(content_key, peer, content.binding, entropy) for peer in peers))
    nonce = entropy(NONCE_BYTES)
    listed = dag_cbor.encode([bytes(peer) for peer in peers])
    roster = encrypt(derive(content_key, _ROSTER), nonce, listed, _roster_bound(content, wraps))
    return Root(content, wraps, nonce + roster)


def recipients_of(root: Root, content_key: bytes) -> list[PeerId]:
    """Who can open a root. This proves the whole root, too: its wraps and roster. Raises: BrokenSeal."""
    nonce, ciphertext = root.roster[:NONCE_BYTES], root.roster[NONCE_BYTES:]
    if len(nonce) != NONCE_BYTES:
        raise BrokenSeal("the roster is cut short")
    listed = decrypt(derive(content_key, _ROSTER), nonce, ciphertext, _roster_bound(root.content, root.wraps))
    if listed is None:
        raise BrokenSeal("the list of recipients was altered")
    try:
        peers = [PeerId(raw) for raw in dag_cbor.decode(listed)]
    except (StorageError, TypeError) as error:
        raise BrokenSeal(f"the list of recipients is none: {error}") from None
    if len(peers) != len(root.wraps) or peers != sorted(set(peers)):
        raise BrokenSeal("the list of recipients does not fit the wraps")
    return peers


def _roster_bound(content: Content, wraps: tuple[bytes, ...]) -> bytes:
    return content.binding + hashlib.sha256(b"".join(wraps)).digest()


def wrap(content_key: bytes, peer: PeerId, binding: bytes, entropy: Entropy) -> bytes:
    """The content key for one recipient's eyes, good for one content only. Raises: BadRecipient."""
    ephemeral_secret = entropy(KEY_BYTES)
    ephemeral = exchange_key_of(ephemeral_secret)
    try:
        public_key = peer.exchange_key
        shared = agree(ephemeral_secret, public_key)
    except (InvalidPeerId, InvalidKey) as error:
        raise BadRecipient(f"nothing can be sealed to {peer}: {error}") from None
    key = derive(shared, _WRAP, ephemeral + public_key + binding)
    return ephemeral + encrypt(key, _NO_NONCE, content_key, binding)


def is_recipient(peer: PeerId) -> bool:
    """Can anything be sealed to this peer? There are keys, of no curve or of few points, to which nothing can."""
    try:
        wrap(bytes(KEY_BYTES), peer, b"", lambda n_bytes: b"\1" * n_bytes)
    except BadRecipient:
        return False
    return True


def unwrap(root: Root, identity: Identity) -> bytes | None:
    """The content key, if a wrap was made for this identity; None where none was. Tries each."""
    for wrapped in root.wraps:
        content_key = open_wrap(wrapped, identity, root.content.binding)
        if content_key is not None and fits(root.content, content_key):
            return content_key
    return None


def open_wrap(wrapped: bytes, identity: Identity, binding: bytes) -> bytes | None:
    """The key in a wrap, if it was made for this identity and binding."""
    ephemeral, ciphertext = wrapped[:KEY_BYTES], wrapped[KEY_BYTES:]
    try:
        shared = identity.agree(ephemeral)
    except InvalidKey:
        return None
    key = derive(shared, _WRAP, ephemeral + identity.peer_id.exchange_key + binding)
    return decrypt(key, _NO_NONCE, ciphertext, binding)
