"""Masks: long streams of words from short seeds, which cancel in the sum.

Two clients agree on a seed, as Diffie and Hellman do; HKDF binds it to the plan, the round, the pair and the model, so
that no seed is ever used for two things. The stream is ChaCha20's.

Source: RFC 5869 (HKDF), RFC 8439 (ChaCha20).
"""

from typing import Final

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agents.federation.secure import group
from agents.federation.secure.quantise import Words

SEED_BYTES: Final = 32
BLOCK: Final = 1 << 18  # words of a stream that are made at a time

_ZEROS: Final = bytes(4 * BLOCK)


class BadKey(ValueError):
    """A public key gives no secret, or a seed opens nothing."""


def agree(secret: bytes, public: bytes, purpose: bytes) -> bytes:
    """A seed that the owner of the other key finds too, good for this purpose alone. Raises: BadKey."""
    try:
        return derive(group.times(secret, public), purpose)
    except group.BadPoint as error:
        raise BadKey(str(error)) from None


def derive(shared: bytes, purpose: bytes) -> bytes:
    """The seed of what two have agreed on, for one purpose."""
    return HKDF(hashes.SHA256(), SEED_BYTES, salt=None, info=purpose).derive(shared)


def apply(words: Words, seed: bytes, sign: int) -> None:
    """Add the stream of a seed to `words`, or take it away, modulo 2^32; in place."""
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    buffer = bytearray(4 * min(BLOCK, len(words)))
    mask = np.frombuffer(buffer, "<u4")
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK]
        stream.update_into(_ZEROS[: 4 * len(block)], buffer)
        (np.add if sign > 0 else np.subtract)(block, mask[: len(block)], out=block)


def hide(seed: bytes, text: bytes, about: bytes) -> bytes:
    """Encrypt a message for who agreed on this seed; a seed hides one message only, so its nonce is zero."""
    return ChaCha20Poly1305(seed).encrypt(bytes(12), text, about)


def reveal(seed: bytes, data: bytes, about: bytes) -> bytes:
    """The message. Raises: BadKey when it was made with another seed, for something else, or changed."""
    from cryptography.exceptions import InvalidTag

    try:
        return ChaCha20Poly1305(seed).decrypt(bytes(12), data, about)
    except InvalidTag:
        raise BadKey("what was sent cannot be opened: it was made for somebody or something else") from None
