"""Talking to one peer by Bitswap: our wants, answers to its own, and blocks when its turn has come.

Whom blocks have to wait for hears so (`pending_bytes`, and nothing else), again and again: it is not forgotten, and may
ask others meanwhile. When its turn has come, which blocks it will get is said (HAVE) before they go, so that it can
withdraw them where it waits for the same.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from protocols.bitswap.exchange import Exchange, Talk, work_for
from protocols.bitswap.pace import MIN_TURN_BYTES
from protocols.bitswap.reading import read_batch
from protocols.bitswap.serving import BATCH_BYTES, MAX_QUICK_BLOCK_BYTES, Batch
from protocols.bitswap.wire import BITSWAP_1_2, MAX_ITEMS, MAX_MESSAGE_BYTES, PROTOCOLS, Message, framed
from protocols.errors import Remote
from protocols.framing import patient, write_pieces
from protocols.net import Stream
from storage.keys import PeerId

MAX_ENTRIES_PER_MESSAGE: Final = MAX_ITEMS // 4
ENTRY_BYTES: Final = 48  # of a message, about; it goes out as blocks do
OPEN_TIMEOUT_S: Final = 15.0
WRITE_TIMEOUT_S: Final = 60.0  # for one message, and what its bytes take on a slow link: see `patient`
LINGER_S: Final = 60.0  # our stream to a peer closes after so much silence
N_ATTEMPTS: Final = 2  # a broken stream is reopened once before the peer counts as lost
NOTICE_S: Final = 0.5  # who has to wait longer for blocks is told so, and again every:
NOTICE_AGAIN_S: Final = 2.0  # well within what a fetcher that was told waits for the next word


async def talk_to(exchange: Exchange, peer: PeerId, talk: Talk) -> bool:
    """Tell one peer what there is to tell, on one stream of ours, until nothing was left to say for a while.

    Where blocks take their time, they go on a second one: a cancel that came behind them would come too late.

    Returns: False when it cannot be reached.
    """
    lines = _Lines()
    with talk.scope:
        try:
            async with trio.open_nursery() as nursery:
                await _go_on(exchange, peer, talk, lines, nursery)
                nursery.cancel_scope.cancel()
        finally:
            for stream in (lines.talk, lines.blocks):
                if stream is not None:
                    await stream.aclose()
    return not talk.is_lost


@dataclass
class _Lines:
    """The streams that we opened to a peer."""

    talk: Stream | None = None
    blocks: Stream | None = None


async def _go_on(exchange: Exchange, peer: PeerId, talk: Talk, lines: _Lines, nursery: trio.Nursery) -> None:
    try:
        while not talk.is_lost and await _has_news(exchange, peer, talk):
            message = await _compose(exchange, peer, talk)
            if message.blocks and exchange.pace.is_bounded:
                message = _apart(exchange, peer, talk, lines, message, nursery)
            await _tell(exchange, peer, talk, lines, message)
    finally:
        if exchange.talks.get(peer) is talk:  # at once: what is posted from now on is for the next talk
            del exchange.talks[peer]
            exchange.pace.leave(peer)
            pass_turn(exchange)


async def _tell(exchange: Exchange, peer: PeerId, talk: Talk, lines: _Lines, message: Message) -> None:
    """Send a message, and what follows from it at once."""
    following: Message | None = message
    while following is not None and not talk.is_lost:
        if not _says_something(following, lines.talk):
            return
        lines.talk, following = await _deliver(exchange, peer, talk, lines.talk, following)
        talk.is_lost = lines.talk is None


def _says_something(message: Message, stream: Stream | None) -> bool:
    """Has a message any meaning? A notice has none to those who do not know the newest form."""
    if message.entries or message.blocks or message.haves or message.dont_haves:
        return True
    return message.pending_bytes > 0 and (stream is None or stream.protocol == BITSWAP_1_2)


def _apart(
    exchange: Exchange, peer: PeerId, talk: Talk, lines: _Lines, message: Message, nursery: trio.Nursery
) -> Message:
    """Send the blocks of a message beside what else there is to say. Returns: what is to be said before they go."""
    talk.is_giving = True
    nursery.start_soon(_give, exchange, peer, talk, lines, Message(blocks=message.blocks))
    return message._replace(blocks=(), pending_bytes=0)


async def _give(exchange: Exchange, peer: PeerId, talk: Talk, lines: _Lines, message: Message) -> None:
    lines.blocks = await _send(exchange, peer, lines.blocks, message)
    talk.is_giving, talk.is_lost = False, talk.is_lost or lines.blocks is None
    talk.wake.set()


async def _has_news(exchange: Exchange, peer: PeerId, talk: Talk) -> bool:
    """Wait for something to say, and for our turn where that is blocks alone; False when it took too long."""

    def next_s() -> float:
        """When there is something to say, by what is known now."""
        if talk.entries or exchange.serving.has_presences(peer):
            exchange.pace.pause(peer)
            pass_turn(exchange)
            return -math.inf
        now_s = trio.current_time()
        if talk.is_giving or talk.is_lost:
            return -math.inf if talk.is_lost else math.inf
        if exchange.serving.has_answers(peer):
            if talk.notice_at_s == math.inf:
                talk.notice_at_s = now_s + NOTICE_S
            turn_s = exchange.pace.turn_s(peer, now_s, is_quick=exchange.serving.has_quick(peer))
            return min(turn_s, talk.notice_at_s)
        talk.notice_at_s = math.inf
        exchange.pace.leave(peer)  # what it waited for was cancelled
        pass_turn(exchange)
        return math.inf

    while (at_s := next_s()) > trio.current_time():
        talk.wake = trio.Event()
        has_more = talk.is_giving or exchange.serving.has_answers(peer)
        linger_s = math.inf if has_more else trio.current_time() + LINGER_S
        with trio.move_on_at(min(at_s, linger_s)) as limit:
            await talk.wake.wait()
        if limit.cancelled_caught and linger_s < math.inf:
            return next_s() <= trio.current_time()  # it may have come in the very instant in which the time was over
    return True


def pass_turn(exchange: Exchange) -> None:
    """Have whoever is next to give blocks away look at the time."""
    following = exchange.pace.next()
    if following in exchange.talks:
        exchange.talks[following].wake.set()


async def _deliver(
    exchange: Exchange, peer: PeerId, talk: Talk, stream: Stream | None, message: Message
) -> tuple[Stream | None, Message | None]:
    """Send one message, and compose the next one meanwhile where there is more to answer.

    Returns: The stream, or None when the peer cannot be reached; the next message.
    """
    following: list[Message] = []

    async def compose() -> None:
        following.append(await _compose(exchange, peer, talk))

    async with trio.open_nursery() as nursery:
        if exchange.serving.has_answers(peer) and not exchange.pace.is_bounded:
            nursery.start_soon(compose)
        stream = await _send(exchange, peer, stream, message)
        if stream is None:
            nursery.cancel_scope.cancel()
    return stream, following[0] if following else None


async def _send(exchange: Exchange, peer: PeerId, stream: Stream | None, message: Message) -> Stream | None:
    """Send one message, over a fresh stream where the old one is broken. None: the peer cannot be reached."""
    for _ in range(N_ATTEMPTS):
        try:
            if stream is None:
                with trio.fail_after(OPEN_TIMEOUT_S):
                    stream = await exchange.network.open_stream(peer, PROTOCOLS)
            with trio.fail_after(WRITE_TIMEOUT_S) as scope:
                await write_pieces(stream, framed(message, stream.protocol), patient(scope, MAX_MESSAGE_BYTES))
        except (Remote, trio.TooSlowError) as error:
            if stream is not None:
                await stream.aclose()
                stream = None
            if isinstance(error, trio.TooSlowError):
                return None
        else:
            return stream
    return None


async def _compose(exchange: Exchange, peer: PeerId, talk: Talk) -> Message:
    """The next message to a peer: news of our wantlist, and answers to its own; blocks in its turn only."""
    keys = list(talk.entries)[:MAX_ENTRIES_PER_MESSAGE]
    entries = tuple(talk.entries.pop(key) for key in keys)
    batch = _next_batch(exchange, peer)
    payloads = await work_for(exchange, peer, partial(read_batch, exchange, peer, batch)) if batch.blocks else []
    blocks = [payload for payload in payloads if payload is not None]
    exchange.pace.reserve(ENTRY_BYTES * (len(entries) + len(batch.haves) + len(batch.dont_haves)), trio.current_time())
    for entry, payload in zip(batch.blocks, payloads, strict=bool(payloads)):
        if payload is None:
            exchange.serving.vanished(peer, entry)
    haves = batch.haves
    if blocks:
        if talk.is_told:  # that it has to wait; now it has not
            haves += tuple(entry.cid for entry in batch.blocks)
        talk.is_told, talk.notice_at_s = False, math.inf
    elif trio.current_time() >= talk.notice_at_s:
        talk.is_told, talk.notice_at_s = True, trio.current_time() + NOTICE_AGAIN_S
    return Message(entries, False, tuple(blocks), haves, batch.dont_haves, batch.pending_bytes)


def _next_batch(exchange: Exchange, peer: PeerId) -> Batch:
    """What is to be told to a peer now; the next one's turn begins when its blocks have gone."""
    serving, pace, now_s = exchange.serving, exchange.pace, trio.current_time()
    if not pace.is_bounded:
        return serving.next_batch(peer, BATCH_BYTES)
    is_quick = serving.has_quick(peer)
    if not serving.ready_bytes(peer) or pace.turn_s(peer, now_s, is_quick=is_quick) > now_s:
        return serving.next_batch(peer, 0)
    before = serving.ready_bytes(peer)
    if pace.goes_first(peer):
        batch = serving.next_batch(peer, MIN_TURN_BYTES, MAX_QUICK_BLOCK_BYTES)
    else:
        batch = serving.next_batch(peer, pace.turn_bytes(len(exchange.talks), BATCH_BYTES))
    pace.take(peer, before - serving.ready_bytes(peer), now_s)
    pass_turn(exchange)
    return batch
