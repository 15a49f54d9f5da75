"""Is there still a way to the other end of a connection? A machine that moves to another network leaves dead ones.

TCP tries for a quarter of an hour before it says so, and yamux waits a minute and a half, for a silent peer may be
busy. What the system knows of acknowledgements decides sooner, however busy a peer is: its own system sends them.

Source: tcp(7) and <linux/tcp.h>; other systems tell in other ways, and there yamux decides.
"""

import socket
import sys
from typing import Any, Final

import structlog
import trio

from protocols.net_libp2p.sockets import raw_of

PROVE_S: Final = 5.0  # without an acknowledgement of what was just sent
MIN_VAIN: Final = 2  # times that the system sent something again
_TCP_INFO: Final = 11
_VAIN: Final = slice(2, 4)  # of struct tcp_info: tcpi_retransmits and tcpi_probes, since the last acknowledgement
_LAST_ACK: Final = slice(56, 60)  # tcpi_last_ack_recv, in ms

log = structlog.get_logger(__name__)


async def prove(connection: Any) -> None:
    """Send something, and close the connection where nothing at all comes back, not even an acknowledgement."""
    muxed = connection.muxed_conn
    muxed.ping()
    await trio.sleep(PROVE_S)
    silent_s = unanswered_s(told_of(muxed))
    if silent_s >= PROVE_S and not connection.is_closed:
        log.info("path_lost", peer=str(muxed.peer_id), silent_s=silent_s)
        await connection.close()


def unanswered_s(told: bytes) -> float:
    """For how long the other end has acknowledged nothing, by what the system tells; 0 where it owes nothing.

    A peer that does not read acknowledges too, but is asked ever more rarely: what it has not room for is not sent.
    """
    return int.from_bytes(told[_LAST_ACK], sys.byteorder) / 1000 if sum(told[_VAIN]) >= MIN_VAIN else 0.0


def told_of(muxed: Any) -> bytes:
    """What the system tells of a connection; nothing where it tells of none such."""
    stream = getattr(getattr(raw_of(muxed), "stream", None), "stream", None)
    if not sys.platform.startswith("linux") or not isinstance(stream, trio.SocketStream):
        return b""
    try:
        return stream.socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAST_ACK.stop)
    except OSError:  # it is closed
        return b""
