"""AutoNAT over the network port: ask a peer to dial this node, and dial those who ask.

asker                       peer
  |--- DIAL: who, where ---->|
  | <== a new connection, as far as the handshake =|
  | <-- DIAL_RESPONSE -------|
"""

from contextlib import aclosing
from typing import Final

import trio

from protocols.autonat.dialbacks import Dialbacks, targets
from protocols.autonat.wire import MAX_MESSAGE_BYTES, PROTOCOL, Status, Told, read_ask, read_told, write_ask, write_told
from protocols.endpoints import Endpoint
from protocols.errors import DialFailed, Malformed
from protocols.framing import next_within, write_within
from protocols.net import Handler, Network, Stream, links_to, own_endpoints
from storage.keys import PeerId

ANSWER_TIMEOUT_S: Final = 10.0
DIALS_TIMEOUT_S: Final = 10.0  # of all dials for one question
TOLD_TIMEOUT_S: Final = 30.0  # for whoever asked, dials included
MAX_DIALS: Final = 4  # questions that are worked on at a time


async def ask(network: Network, peer: PeerId) -> bool | None:
    """Ask a connected peer to dial us. Returns: whether it reached us; None where it did not try.

    Raises: ProtocolRefused, and what streams raise.
    """
    told = own_endpoints(network)
    if not told:
        return None
    stream = await network.open_stream(peer, [PROTOCOL])
    async with aclosing(stream):
        await _say(stream, write_ask(network.peer_id, told))
        answer = read_told(await next_within(TOLD_TIMEOUT_S, stream, MAX_MESSAGE_BYTES))
    return {int(Status.OK): True, int(Status.DIAL_ERROR): False}.get(answer.status)


def answering(network: Network, dialbacks: Dialbacks) -> Handler:
    """Dials peers that ask for it: at their own address on the public internet, and seldom."""
    limiter = trio.CapacityLimiter(MAX_DIALS)

    async def answer(stream: Stream) -> None:
        try:
            asked = read_ask(await next_within(ANSWER_TIMEOUT_S, stream, MAX_MESSAGE_BYTES))
        except Malformed:
            await _say(stream, write_told(Told(Status.BAD_REQUEST)))
            raise
        if asked.peer not in (None, stream.peer):
            await _say(stream, write_told(Told(Status.BAD_REQUEST)))
            return
        found = targets(seen_at, asked.endpoints) if (seen_at := _seen_at(network, stream.peer)) else []
        is_free = limiter.available_tokens > 0
        if not found or not is_free or not dialbacks.may(stream.peer, found[0].host, trio.current_time()):
            await _say(stream, write_told(Told(Status.DIAL_REFUSED)))
            return
        async with limiter:
            reached = await _try(network, stream.peer, found)
        await _say(stream, write_told(Told(Status.OK if reached else Status.DIAL_ERROR, reached)))

    return answer


def _seen_at(network: Network, peer: PeerId) -> Endpoint | None:
    """Where a peer's connection comes from; None where one comes over a relay, which may be anybody's."""
    links = links_to(network, peer)
    if any(link.is_relayed for link in links):
        return None
    return next((endpoint for link in links if (endpoint := link.endpoint) is not None), None)


async def _try(network: Network, peer: PeerId, endpoints: list[Endpoint]) -> Endpoint | None:
    """The first of these at which the peer answers."""
    with trio.move_on_after(DIALS_TIMEOUT_S):
        for number, endpoint in enumerate(endpoints):
            with trio.move_on_after(DIALS_TIMEOUT_S / (len(endpoints) - number + 1)):
                try:
                    await network.probe(peer, endpoint.text)
                except DialFailed:
                    continue
                return endpoint
    return None


async def _say(stream: Stream, message: bytes) -> None:
    await write_within(ANSWER_TIMEOUT_S, stream, message, MAX_MESSAGE_BYTES)
