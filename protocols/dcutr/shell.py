"""DCUtR over the network port: two ends of a relayed connection agree when to dial each other.

    who was brought by the relay       who came over it
      |--- CONNECT: where I am seen -------->|
      |<-- CONNECT: where I am seen ---------|   a round trip, measured
      |--- SYNC ---------------------------->|
      | half a round trip later              | at once
      |=== both dial: their routers let the other's packets in ===|

In the handshake over what they make, who came over the relay is the one that dialled, says the standard; go-libp2p, and
Kubo with it, has it the other way round. So the second of three attempts is made as they do it.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

import trio

from protocols.dcutr.wire import MAX_ENDPOINTS, MAX_MESSAGE_BYTES, PROTOCOL, Kind, Message, read, write
from protocols.endpoints import Endpoint
from protocols.errors import Malformed
from protocols.framing import read_within, write_within
from protocols.net import Handler, Network, Stream, links_to, own_endpoints
from storage.keys import PeerId

ATTEMPTS: Final = 3
ANSWER_TIMEOUT_S: Final = 10.0
TURNS_S: Final = 30.0  # attempts that follow each other within so long belong together
MAX_ROUND_TRIP_S: Final = 4.0  # of a relayed connection; who takes longer is not waited for

Meet = Callable[[PeerId, Sequence[Endpoint], bool], Awaitable[bool]]
"""Dial a peer at all these addresses at once; the last argument says whether we are the dialler in the handshake.

Returns: whether there is a direct connection now.
"""


def _public_endpoints(network: Network) -> list[Endpoint]:
    return [endpoint for endpoint in own_endpoints(network) if endpoint.is_public][:MAX_ENDPOINTS]


async def punch(network: Network, peer: PeerId, meet: Meet) -> bool:
    """Meet a peer that a relay brought. Returns: whether that worked.

    Raises: ProtocolRefused, and what streams raise.
    """
    for number in range(ATTEMPTS):
        own = _public_endpoints(network)
        if not own:
            return False
        stream = await network.open_stream(peer, [PROTOCOL])  # a new one each time: some close it after the first
        async with aclosing(stream):
            began_s = trio.current_time()
            await _say(stream, write(Kind.CONNECT, own))
            told = _of(Kind.CONNECT, await _hear(stream))
            trip_s = min(trio.current_time() - began_s, MAX_ROUND_TRIP_S)
            if told is None or not told.endpoints:
                return False
            await _say(stream, write(Kind.SYNC))
            await stream.finish()
            await trio.sleep(trip_s / 2)
            if await meet(peer, told.endpoints, number % 2 == 1):
                return True
    return False


def answering(network: Network, meet: Meet) -> Handler:
    """Meets peers that this node has reached over a relay, and no others."""
    turns: dict[PeerId, _Turns] = {}

    async def answer(stream: Stream) -> None:
        for gone in [peer for peer, each in turns.items() if each.is_over(trio.current_time())]:
            del turns[gone]
        turn = turns.setdefault(stream.peer, _Turns())
        async with turn.lock:  # a next attempt may come before this end has given up the last
            for _ in range(ATTEMPTS):
                told = _of(Kind.CONNECT, await _hear(stream))
                if told is None or not _is_reached_by_relay(network, stream.peer):
                    return
                await _say(stream, write(Kind.CONNECT, _public_endpoints(network)))
                if _of(Kind.SYNC, await _hear(stream)) is None:
                    return
                if await meet(stream.peer, told.endpoints, turn.next(trio.current_time()) % 2 == 0):
                    return

    return answer


class _Turns:
    """How many attempts a peer has made of late, each perhaps on a stream of its own."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self._n_attempts = 0
        self._at_s = -math.inf

    def next(self, now_s: float) -> int:
        """The number of the attempt that begins, from 0."""
        self._n_attempts = self._n_attempts + 1 if now_s < self._at_s + TURNS_S else 0
        self._at_s = now_s
        return self._n_attempts

    def is_over(self, now_s: float) -> bool:
        """Will the next attempt be a first one?"""
        return not self.lock.locked() and now_s >= self._at_s + TURNS_S


def _is_reached_by_relay(network: Network, peer: PeerId) -> bool:
    links = links_to(network, peer)
    return bool(links) and all(link.is_relayed for link in links) and any(link.is_dialled for link in links)


def _of(kind: Kind, message: Message | None) -> Message | None:
    """The message, which has to be of that kind; None at the end of the stream. Raises: Malformed."""
    if message is not None and message.kind is not kind:
        raise Malformed(f"{message.kind.name} came where {kind.name} belongs")
    return message


async def _say(stream: Stream, message: bytes) -> None:
    await write_within(ANSWER_TIMEOUT_S, stream, message, MAX_MESSAGE_BYTES)


async def _hear(stream: Stream) -> Message | None:
    """The next message; None at the end of the stream. Raises: TimedOut, StreamBroken, Malformed, TooBig."""
    data = await read_within(ANSWER_TIMEOUT_S, stream, MAX_MESSAGE_BYTES)
    return None if data is None else read(data)
