"""Relays over the network port: serve as one, reserve at one, reach a peer over one, and be reached.

asker                      relay                      target
  |                          | <------- hop: RESERVE ----|
  |                          |------- STATUS OK, until ->|
  |--- hop: CONNECT target ->|                           |
  |                          |-- stop: CONNECT asker --->|
  |                          | <------------ STATUS OK --|
  | <------------ STATUS OK -|                           |
  | <========= bytes, which both ends make a connection ========>
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final, NamedTuple

import trio

from protocols.errors import Malformed, ProtocolError, RelayRefused, Remote
from protocols.framing import next_within, write_within
from protocols.net import Handler, Network, PeerInfo, Stream, links_to
from protocols.relay.circuits import Circuit, Relay, Terms
from protocols.relay.wire import (
    HOP,
    HOP_FORM,
    MAX_MESSAGE_BYTES,
    STOP,
    STOP_FORM,
    Form,
    Kind,
    Limit,
    Message,
    Status,
    read,
    write,
)
from storage.keys import PeerId

ANSWER_TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 15.0  # of a relay's answer, which asks another first
PIECE_BYTES: Final = 64 << 10
MIN_HOLD_S, MAX_HOLD_S = 60.0, 3600.0  # clocks differ: what a relay calls its end is read within these


class Reservation(NamedTuple):
    """How long a relay brings us others, and what each may then send and get."""

    hold_s: float
    limit: Limit | None


Take = Callable[[Stream, PeerId], Awaitable[None]]
"""Makes a connection of a circuit, which the named peer is said to have asked for; returns when it is over."""


def is_relayed(network: Network, peer: PeerId) -> bool:
    """Do we speak with this peer over a relay alone?"""
    links = links_to(network, peer)
    return bool(links) and all(link.is_relayed for link in links)


def relaying(
    network: Network, relay: Relay, terms_of: Callable[[PeerId], Terms | None], unix_s: Callable[[], float]
) -> Handler:
    """Answers peers that ask this node to be their relay (protocol HOP)."""

    async def answer(stream: Stream) -> None:
        try:
            asked = await _hear(stream, HOP_FORM)
        except Malformed:
            await _say(stream, HOP_FORM, Message(Kind.STATUS, status=Status.MALFORMED_MESSAGE))
            raise
        terms = None if is_relayed(network, stream.peer) else terms_of(stream.peer)
        place = _place_of(network, stream.peer)
        relay.keep(network.peers())
        if asked.kind is Kind.RESERVE:
            status = relay.reserve(stream.peer, terms, trio.current_time(), place)
            expire = int(unix_s() + MAX_HOLD_S) if status is Status.OK else None
            limit = terms.limit if terms and status is Status.OK else None
            await _say(stream, HOP_FORM, Message(Kind.STATUS, None, expire, limit, status))
        elif asked.kind is Kind.CONNECT and asked.peer is not None:
            found = relay.connect(stream.peer, asked.peer, terms, trio.current_time(), place)
            if isinstance(found, Status):
                await _say(stream, HOP_FORM, Message(Kind.STATUS, status=found))
                return
            try:
                await _join(network, stream, found)
            finally:
                relay.end(found)
        else:
            await _say(stream, HOP_FORM, Message(Kind.STATUS, status=Status.UNEXPECTED_MESSAGE))

    return answer


def _place_of(network: Network, peer: PeerId) -> str:
    """The network of the public internet that a connected peer is in; empty where it is in none."""
    ends = [link.endpoint for link in links_to(network, peer)]
    return next((end.network for end in ends if end is not None and end.network), "")


async def _join(network: Network, source: Stream, circuit: Circuit) -> None:
    """Bring the source's stream to the target, and carry bytes while the circuit's terms allow it."""
    limit = circuit.terms.limit
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            target = await network.open_stream(circuit.target, [STOP])
    except (Remote, trio.TooSlowError):
        await _say(source, HOP_FORM, Message(Kind.STATUS, status=Status.CONNECTION_FAILED))
        return
    async with aclosing(target):
        try:
            await _say(target, STOP_FORM, Message(Kind.CONNECT, circuit.source, limit=limit))
            answer = await _hear(target, STOP_FORM)
            is_taken = answer.kind is Kind.STATUS and answer.status == Status.OK
        except Remote:
            is_taken = False
        status = Status.OK if is_taken else Status.CONNECTION_FAILED
        await _say(source, HOP_FORM, Message(Kind.STATUS, limit=limit if is_taken else None, status=status))
        if is_taken:
            with trio.move_on_after(limit.duration_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_carry, source, target, circuit, nursery.cancel_scope)
                    nursery.start_soon(_carry, target, source, circuit, nursery.cancel_scope)


async def _carry(from_: Stream, to: Stream, circuit: Circuit, scope: trio.CancelScope) -> None:
    """Carry bytes one way. What breaks one way, or is over the limit, ends both."""
    try:
        while data := await from_.read(PIECE_BYTES):
            if not circuit.spend(len(data)):
                scope.cancel()
                return
            await to.write(data)
        await to.finish()
    except ProtocolError:
        scope.cancel()


async def reserve(network: Network, relay: PeerId, unix_s: float) -> Reservation:
    """Ask a connected relay to bring us others. Raises: RelayRefused, and what streams raise."""
    stream = await network.open_stream(relay, [HOP])
    async with aclosing(stream):
        await _say(stream, HOP_FORM, Message(Kind.RESERVE))
        answer = _granted(network, stream, await _hear(stream, HOP_FORM))
    told_s = MAX_HOLD_S if answer.expire_unix_s is None else answer.expire_unix_s - unix_s
    return Reservation(max(MIN_HOLD_S, min(MAX_HOLD_S, told_s)), answer.limit)


async def open_circuit(network: Network, relay: PeerInfo, target: PeerId) -> Stream:
    """A stream to `target` over a relay, of which both make a connection. Raises: RelayRefused, what dials raise."""
    await network.connect(relay)
    stream = await network.open_stream(relay.peer, [HOP])
    try:
        await _say(stream, HOP_FORM, Message(Kind.CONNECT, target))
        _granted(network, stream, await _hear(stream, HOP_FORM, CONNECT_TIMEOUT_S))
    except BaseException:
        await stream.aclose()
        raise
    return stream


def arriving(may_bring: Callable[[PeerId], bool], take: Take) -> Handler:
    """Answers relays that bring somebody (protocol STOP): those that we reserved at, and no others."""

    async def answer(stream: Stream) -> None:
        asked = await _hear(stream, STOP_FORM)
        if asked.kind is not Kind.CONNECT or asked.peer is None:
            await _say(stream, STOP_FORM, Message(Kind.STATUS, status=Status.UNEXPECTED_MESSAGE))
        elif not may_bring(stream.peer):
            await _say(stream, STOP_FORM, Message(Kind.STATUS, status=Status.PERMISSION_DENIED))
        else:
            await _say(stream, STOP_FORM, Message(Kind.STATUS, status=Status.OK))
            await take(stream, asked.peer)

    return answer


def _granted(network: Network, stream: Stream, answer: Message) -> Message:
    if answer.kind is not Kind.STATUS or answer.status is None:
        raise Malformed(f"the relay {stream.peer} answered with something else than a status")
    if answer.status != Status.OK:
        known = {each.value: each.name.lower().replace("_", " ") for each in Status}
        wish = ""
        if answer.status == Status.PERMISSION_DENIED:
            wish = f": it relays for peers that its user trusts. There: covey peer trust {network.peer_id}"
        elif answer.status == Status.NO_RESERVATION:
            wish = " of the peer there: each of the two has to trust the other (covey peer trust)"
        text = f"the relay {stream.peer} refused: {known.get(answer.status, answer.status)}{wish}"
        raise RelayRefused(text, is_denied=answer.status == Status.PERMISSION_DENIED)
    return answer


async def _say(stream: Stream, form: Form, message: Message) -> None:
    await write_within(ANSWER_TIMEOUT_S, stream, write(form, message), MAX_MESSAGE_BYTES)


async def _hear(stream: Stream, form: Form, timeout_s: float = ANSWER_TIMEOUT_S) -> Message:
    """The next message. Raises: TimedOut, StreamBroken, Malformed, TooBig."""
    return read(form, await next_within(timeout_s, stream, MAX_MESSAGE_BYTES))
