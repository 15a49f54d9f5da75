"""Connections of a private flock: below noise and everything else, all bytes are under the flock's key."""

import os
from typing import Any, Final

from libp2p.abc import IRawConnection
from libp2p.io.exceptions import ConnectionClosedError

from protocols.net_libp2p.layered import Layered
from protocols.pnet import NONCE_BYTES, FlockKey

READ_BYTES: Final = 256 << 10
GREETING: Final = b"\x13/multistream/1.0.0\n"  # what both sides begin with


class PrivateConnection(Layered, IRawConnection):  # type: ignore[misc]  # libp2p's types are not followed
    """A raw connection under a flock's key. py-libp2p's own has another cipher than the standard says (0.8.1)."""

    def __init__(self, conn: Any, key: FlockKey) -> None:
        self._conn = conn
        self._key = key
        self._sending: Any = None
        self._receiving: Any = None
        self._to_come = GREETING
        self.is_initiator = conn.is_initiator

    async def write(self, data: bytes) -> None:
        """See `IRawConnection`."""
        if self._sending is None:
            nonce = os.urandom(NONCE_BYTES)
            self._sending = self._key.cipher(nonce)
            await self._conn.write(nonce + self._sending.encrypt(data))
        else:
            await self._conn.write(self._sending.encrypt(data))

    async def read(self, n: int | None = None) -> bytes:
        """See `IRawConnection`."""
        if self._receiving is None:
            self._receiving = self._key.cipher(await self._nonce())
        data: bytes = self._receiving.decrypt(await self._conn.read(READ_BYTES if n is None else n))
        if self._to_come:
            self._greet(data)
        return data

    def _greet(self, data: bytes) -> None:
        """Under another key the first byte would be a length, and each side wait for so many from the other."""
        expected, self._to_come = self._to_come[: len(data)], self._to_come[len(data) :]
        if not data.startswith(expected):
            raise ConnectionClosedError("the peer has another key")

    async def _nonce(self) -> bytes:
        nonce = b""
        while len(nonce) < NONCE_BYTES:
            more = await self._conn.read(NONCE_BYTES - len(nonce))
            if not more:
                raise ConnectionClosedError("the peer went away before its nonce")
            nonce += more
            if nonce.startswith(GREETING):
                raise ConnectionClosedError("the peer has no key")
        return nonce
