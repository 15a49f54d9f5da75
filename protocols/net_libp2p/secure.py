"""Noise for py-libp2p: its handshake, then our framing, which takes and gives many messages at a time.

py-libp2p's own reads each message by two calls of the socket and copies it five times; bulk data cost it twice what the
cipher does. Nothing of the handshake is ours: who the peer is, py-libp2p has proved by then.
"""

from collections import deque
from typing import Any, Final

from libp2p.io.exceptions import ConnectionClosedError
from libp2p.security.base_session import BaseSession
from libp2p.security.noise.transport import Transport

from protocols.net_libp2p.layered import Layered
from protocols.noise import MAX_PLAINTEXT_BYTES, Opener, Sealer

READ_BYTES: Final = 256 << 10


class Noise(Transport):  # type: ignore[misc]  # libp2p's types are not followed
    """py-libp2p's noise, whose sessions are ours."""

    async def secure_inbound(self, conn: Any) -> "NoiseSession":
        """See `ISecureTransport`."""
        return NoiseSession(await super().secure_inbound(conn), conn)

    async def secure_outbound(self, conn: Any, peer_id: Any) -> "NoiseSession":
        """See `ISecureTransport`."""
        return NoiseSession(await super().secure_outbound(conn, peer_id), conn)


class NoiseSession(Layered, BaseSession):  # type: ignore[misc]  # libp2p's types are not followed
    """A connection behind a handshake. One reader and one writer at a time."""

    def __init__(self, session: Any, conn: Any) -> None:
        super().__init__(
            local_peer=session.local_peer,
            local_private_key=session.local_private_key,
            remote_peer=session.remote_peer,
            remote_permanent_pubkey=session.remote_permanent_pubkey,
            is_initiator=session.is_initiator,
        )
        self._conn = conn
        state = session.conn.noise_state.noise_protocol
        sending, receiving = state.cipher_state_encrypt, state.cipher_state_decrypt
        self._sealer = Sealer(sending.k, sending.n)
        self._opener = Opener(receiving.k, receiving.n)
        self._unread: deque[bytes] = deque()
        self.n_sent = self.n_received = 0  # bytes on the wire

    async def receive(self) -> list[bytes]:
        """The messages that came, as soon as there are any; none at the end. Raises: Malformed."""
        if self._unread:
            messages = list(self._unread)
            self._unread.clear()
            return messages
        while data := await self._conn.read(READ_BYTES):
            self.n_received += len(data)
            if messages := self._opener.feed(data):
                return messages
        return []

    async def send(self, messages: list[bytes]) -> None:
        """Send messages, each of at most MAX_PLAINTEXT_BYTES."""
        sealed = self._sealer.seal(messages)
        self.n_sent += len(sealed)
        await self._conn.write(sealed)

    async def read(self, n: int | None = None) -> bytes:
        """Some bytes, at most `n`. Raises: ConnectionClosedError at the end."""
        if n == 0:
            return b""
        while not self._unread:
            messages = await self.receive()
            if not messages:
                raise ConnectionClosedError("Connection closed")
            self._unread.extend(filter(None, messages))
        message = self._unread.popleft()
        if n is not None and len(message) > n:
            self._unread.appendleft(message[n:])
            return message[:n]
        return message

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        await self.send([data[at : at + MAX_PLAINTEXT_BYTES] for at in range(0, len(data), MAX_PLAINTEXT_BYTES)])
