"""Ask over a stream, and answer on one. Each wait has its limit; whatever the other side does ends one question."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, NamedTuple

import trio

from protocols.ask import wire
from protocols.ask.wire import Ask, Describe, Dialogue, Offer, Refused, Reply, Waiting
from protocols.errors import Malformed, Remote, TimedOut
from protocols.framing import read_frame, read_within, write_within
from protocols.message import Message, decode_form, encode
from protocols.net import Network, Stream
from storage.keys import PeerId

QUESTION_LIMIT_S: Final = 10.0
OFFER_LIMIT_S: Final = 15.0
SIGN_OF_LIFE_S: Final = 10.0
SILENCE_LIMIT_S: Final = 45.0
WRITE_LIMIT_S: Final = 30.0
DIAL_LIMIT_S: Final = 20.0


class PeerRefused(Remote):
    """The peer does not answer this question."""

    code = "peer_refused"

    def __init__(self, text: str, refused: Refused | None = None) -> None:
        super().__init__(text)
        self.refused = refused


class Refusal(Exception):
    """For those who answer: this is why there is no answer. Becomes `Refused`."""

    def __init__(self, code: str, text: str, retry_s: float | None = None) -> None:
        super().__init__(text)
        self.refused = Refused(
            code=code, text=text[:1024], retry_s=None if retry_s is None else min(retry_s, wire.MAX_RETRY_S)
        )


class Answerer(NamedTuple):
    """Who answers, and how long at most. Both functions raise `Refusal`; `n_ahead` is how many questions wait."""

    offer: Callable[[PeerId], Awaitable[Offer]]
    answer: Callable[[PeerId, Ask], AsyncGenerator[Reply, None]]
    n_ahead: Callable[[], int]
    limit_s: float


async def ask(network: Network, peer: PeerId, question: Ask) -> AsyncIterator[Reply]:
    """Ask `peer`; yield its replies, up to and with `Answered`. Close the generator to take the question back.

    Raises: PeerRefused, DialFailed, ProtocolRefused, StreamBroken, TimedOut, TooBig, Malformed.
    """
    dialogue = Dialogue()
    deadline_s = trio.current_time() + question.deadline_s
    stream = await _opened(network, peer)
    try:
        await _send(stream, question, wire.MAX_ASK_BYTES)
        while not dialogue.is_over:
            limit_s = min(SILENCE_LIMIT_S, deadline_s - trio.current_time())
            frame = await _within(limit_s, stream, wire.MAX_REPLY_BYTES, peer)
            reply = dialogue.heard(frame)
            if isinstance(reply, Refused):
                raise PeerRefused(reply.text, reply)
            yield reply
    finally:
        await stream.aclose()


async def describe(network: Network, peer: PeerId) -> Offer:
    """Which model `peer` answers with. Raises: as `ask`."""
    stream = await _opened(network, peer)
    try:
        await _send(stream, Describe(), wire.MAX_ASK_BYTES)
        frame = await _within(OFFER_LIMIT_S, stream, wire.MAX_REPLY_BYTES, peer)
        reply: Offer | Refused = decode_form(frame, Offer | Refused, wire.MAX_REPLY_BYTES)
        if isinstance(reply, Refused):
            raise PeerRefused(reply.text, reply)
        return reply
    finally:
        await stream.aclose()


async def answer(stream: Stream, answerer: Answerer) -> None:
    """Answer the one question of a stream. Raises: what reading and writing raise."""
    frame = await read_within(QUESTION_LIMIT_S, stream, wire.MAX_ASK_BYTES)
    question: wire.Question | None = None if frame is None else decode_form(frame, wire.Question, wire.MAX_ASK_BYTES)
    try:
        if isinstance(question, Ask):
            await _answer(stream, answerer, question)
        elif isinstance(question, Describe):
            await _send(stream, await answerer.offer(stream.peer), wire.MAX_REPLY_BYTES)
    except Refusal as refusal:
        await _send(stream, refusal.refused, wire.MAX_REPLY_BYTES)
    if question is not None:
        await stream.finish()


async def _answer(stream: Stream, answerer: Answerer, question: Ask) -> None:
    """Say what there is to say, give signs of life, and stop when the asker goes. Raises: Refusal."""
    refusal: Refusal | None = None
    writing = trio.Lock()
    last_s = trio.current_time()

    async def say(reply: Message) -> None:
        nonlocal last_s
        async with writing:
            await _send(stream, reply, wire.MAX_REPLY_BYTES)
            last_s = trio.current_time()

    async def give_signs() -> None:
        while True:
            await trio.sleep_until(last_s + SIGN_OF_LIFE_S)
            if trio.current_time() >= last_s + SIGN_OF_LIFE_S:
                await say(Waiting(n_ahead=answerer.n_ahead()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_for_end, stream, nursery.cancel_scope)
        nursery.start_soon(give_signs)
        limit_s = min(question.deadline_s, answerer.limit_s)
        with trio.move_on_after(limit_s) as time:
            try:
                async with aclosing(answerer.answer(stream.peer, question)) as replies:
                    async for reply in replies:
                        await say(reply)
            except Refusal as error:
                refusal = error
        if time.cancelled_caught:
            refusal = Refusal("timed_out", f"no whole answer within {limit_s:g} s: ask for a shorter one")
        nursery.cancel_scope.cancel()
    if refusal is not None:
        raise refusal


async def _watch_for_end(stream: Stream, scope: trio.CancelScope) -> None:
    """Who asked says no more: bytes are against the protocol, and the end takes the question back."""
    try:
        if await stream.read(1):
            raise Malformed("an asker went on behind its question")
    finally:
        scope.cancel()


async def _opened(network: Network, peer: PeerId) -> Stream:
    with trio.move_on_after(DIAL_LIMIT_S):
        return await network.open_stream(peer, [wire.PROTOCOL])
    raise TimedOut(f"{peer} could not be reached within {DIAL_LIMIT_S:g} s")


async def _within(limit_s: float, stream: Stream, max_bytes: int, peer: PeerId) -> bytes:
    """The next frame, within its time. Raises: TimedOut, Malformed, StreamBroken."""
    with trio.move_on_after(max(0.0, limit_s)):
        frame = await read_frame(stream, max_bytes)
        if frame is None:
            raise Malformed(f"{peer} finished before its answer was complete")
        return frame
    raise TimedOut(f"{peer} said nothing for {limit_s:.0f} s, or its time was over")


async def _send(stream: Stream, message: Message, max_bytes: int) -> None:
    """Send within a time: a peer that reads nothing holds nothing. Raises: TimedOut, StreamBroken."""
    await write_within(WRITE_LIMIT_S, stream, encode(message, max_bytes), max_bytes)
