"""Noise's transport messages: many at once, each behind its length, sealed by the keys that a handshake left.

Source: the Noise protocol framework, revision 34, section 5.1 (CipherState), with ChaChaPoly; libp2p/specs, noise.
"""

from collections.abc import Iterable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocols.errors import Malformed

TAG_BYTES: Final = 16
LENGTH_BYTES: Final = 2
MAX_PLAINTEXT_BYTES: Final = (1 << 16) - 1 - TAG_BYTES
MAX_NONCE: Final = (1 << 64) - 2  # the last number is kept for rekeying


def _nonce(number: int) -> bytes:
    if number > MAX_NONCE:
        raise Malformed("a noise session of 2^64 messages: no number is left")
    return b"\0\0\0\0" + number.to_bytes(8, "little")


class Sealer:
    """The sending half of a session."""

    def __init__(self, key: bytes, number: int = 0) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._number = number

    def seal(self, messages: Iterable[bytes]) -> bytes:
        """These messages, each of at most MAX_PLAINTEXT_BYTES, as they travel."""
        parts: list[bytes] = []
        for message in messages:
            sealed = self._cipher.encrypt(_nonce(self._number), message, None)
            self._number += 1
            parts += (len(sealed).to_bytes(LENGTH_BYTES, "big"), sealed)
        return b"".join(parts)


class Opener:
    """The receiving half of a session."""

    def __init__(self, key: bytes, number: int = 0) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._number = number
        self._unread = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take what arrived; give the messages that are whole. Raises: Malformed where one was not sealed for us."""
        unread = self._unread
        unread += data
        messages: list[bytes] = []
        at, end = 0, len(unread)
        with memoryview(unread) as view:
            while end - at >= LENGTH_BYTES:
                start = at + LENGTH_BYTES
                length = unread[at] << 8 | unread[at + 1]
                if length < TAG_BYTES:
                    raise Malformed(f"a noise message of {length} bytes, less than its tag")
                if end - start < length:
                    break
                at = start + length
                try:
                    with view[start:at] as sealed:
                        messages.append(self._cipher.decrypt(_nonce(self._number), sealed, None))
                except InvalidTag:
                    raise Malformed("a noise message was not sealed by the peer's key, or came out of turn") from None
                self._number += 1
        del unread[:at]
        return messages

    @property
    def is_between(self) -> bool:
        """Is no message half read?"""
        return not self._unread
