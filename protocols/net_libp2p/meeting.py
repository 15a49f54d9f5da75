"""Dial a peer that dials us at the same moment: of both sockets one connection comes, in which nobody was called.

TCP knows that as simultaneous open (RFC 9293, 3.5): both ends send a SYN from the port at which they are seen, so the
routers before them take the other's for an answer. Who is called in the handshake is agreed on beforehand.
"""

import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio
from libp2p.transport.exceptions import OpenConnectionError

from protocols.bucket import Bucket
from protocols.endpoints import Endpoint
from protocols.net import links_to
from protocols.net_libp2p.addresses import parse, to_id
from protocols.net_libp2p.sockets import Socket, Sockets, under_key
from storage.keys import PeerId

if TYPE_CHECKING:
    from protocols.net_libp2p.network import LibP2pNetwork

MEET_S: Final = 5.0  # the kernel sends three SYNs in that time
AGAIN_S: Final = 0.1  # after a refusal, and then twice as long each time: the other end may not have dialled yet
MAX_MEETINGS: Final = 8  # at a time
MINUTES_MEETINGS: Final = 30  # who is told where to dial dials there, so not for ever

ABORT: Final = struct.pack("ii", 1, 0)  # struct linger
ORDERLY: Final = struct.pack("ii", 0, 0)

log = structlog.get_logger(__name__)


class Meetings:
    """The dials of a node that somebody else's dials meet."""

    def __init__(self, network: "LibP2pNetwork", swarm: Any, sockets: Sockets) -> None:
        self._network, self._swarm, self._sockets = network, swarm, sockets
        self._limiter = trio.CapacityLimiter(MAX_MEETINGS)
        self._room = Bucket(MINUTES_MEETINGS, 60.0, trio.current_time())

    async def meet(self, peer: PeerId, endpoints: Sequence[Endpoint], is_dialler: bool) -> bool:
        """See `protocols.dcutr.shell.Meet`."""
        own = set(self._network.observed_addresses())
        others = [endpoint for endpoint in endpoints if endpoint.text not in own]
        if not others or self._limiter.available_tokens < 1 or not self._room.may_take(1, trio.current_time()):
            return False
        async with self._limiter:
            with trio.move_on_after(MEET_S):
                async with trio.open_nursery() as nursery:
                    for endpoint in others:
                        nursery.start_soon(self._dial, peer, endpoint, is_dialler, nursery.cancel_scope)
        is_met = self._is_direct(peer)
        log.info("peer_met" if is_met else "peer_not_met", peer=str(peer), at=[each.text for each in others])
        return is_met

    async def _dial(self, peer: PeerId, endpoint: Endpoint, is_dialler: bool, all_dials: trio.CancelScope) -> None:
        rest_s = AGAIN_S
        while not self._is_direct(peer):
            try:
                stream = await self._sockets.dial_shared(endpoint)
            except OpenConnectionError:
                stream = None
            if stream is not None:
                if await self._shake(peer, endpoint, stream, is_dialler):
                    break
                return  # somebody else is there, or means to have the same part: the next attempt has it otherwise
            await trio.sleep(rest_s)
            rest_s *= 2
        all_dials.cancel()

    async def _shake(self, peer: PeerId, endpoint: Endpoint, stream: trio.SocketStream, is_dialler: bool) -> bool:
        """Make a connection of a socket. Returns: whether the peer is at its other end."""
        raw = Socket(stream, is_initiator=is_dialler, is_shared=True)
        raw.is_punched = True
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)  # else this pair of ports would rest for a minute
        try:
            if is_dialler:
                await self._swarm.upgrade_outbound_raw_conn(under_key(self._swarm, raw), to_id(peer))
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ORDERLY)
                return True
            muxed = await self._swarm.upgrade_inbound_raw_conn(raw, parse(endpoint.text))
            if muxed.peer_id == to_id(peer):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ORDERLY)
                return True
            await muxed.close()
        except Exception as error:  # noqa: BLE001 - whatever libp2p raises, nothing came of it
            log.info("meeting_failed", peer=str(peer), at=endpoint.text, error=str(error)[:300])
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.aclose()
            raise
        with trio.CancelScope(shield=True):
            await stream.aclose()
        return False

    def _is_direct(self, peer: PeerId) -> bool:
        return any(not link.is_relayed for link in links_to(self._network, peer))
