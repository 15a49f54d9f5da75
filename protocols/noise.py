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
        messages: list[bytes] = []
        view = memoryview(data)
        if self._unread:
            view = self._complete(view, messages)
        at, end = 0, len(view)
        while end - at >= LENGTH_BYTES:
            length = self._length(view[at : at + LENGTH_BYTES])
            if end - at < length:
                break
            messages.append(self._open(view[at + LENGTH_BYTES : at + length]))
            at += length
        self._unread += view[at:]
        return messages

    def _complete(self, view: memoryview, messages: list[bytes]) -> memoryview:
        """Put the message in hand together, without copying those behind it. Returns: what is behind."""
        for n_wanted in (LENGTH_BYTES, 0):
            n_wanted = n_wanted or self._length(self._unread[:LENGTH_BYTES])
            n_lacking = max(0, n_wanted - len(self._unread))
            self._unread += view[:n_lacking]
            view = view[n_lacking:]
            if len(self._unread) < n_wanted:
                return view
        with memoryview(self._unread) as whole:
            messages.append(self._open(whole[LENGTH_BYTES:]))
        self._unread = bytearray()
        return view

    def _length(self, head: bytearray | memoryview) -> int:
        """How long a message is, its length included."""
        length = int.from_bytes(head, "big")
        if length < TAG_BYTES:
            raise Malformed(f"a noise message of {length} bytes, less than its tag")
        return LENGTH_BYTES + length

    def _open(self, sealed: bytes | memoryview) -> bytes:
        try:
            message = self._cipher.decrypt(_nonce(self._number), sealed, None)
        except InvalidTag:
            raise Malformed("a noise message was not sealed by the peer's key, or came out of turn") from None
        self._number += 1
        return message
