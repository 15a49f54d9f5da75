"""Bitswap on a network: carries out what the cores of wanting and serving decide.

A peer's messages come in on streams that it opened; each is read for as long as it lasts. Whatever we have to say, our
wants and our answers alike, goes out on one stream that we opened: Kubo and Helia never read the streams they opened.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import trio

from protocols.bitswap.exchange import Ear, Exchange, Session, Talk, Worker, in_threads, in_turn, work_in_turn
from protocols.bitswap.session import MAX_WANTS, Action, Arrived, Got, Misbehaved, NeedProviders, Send
from protocols.bitswap.standing import STALL_S
from protocols.bitswap.talking import talk_to
from protocols.bitswap.trace import Origin
from protocols.bitswap.wire import (
    MAX_MESSAGE_BYTES,
    PROTOCOLS,
    Entry,
    Message,
    decode,
    identify,
)
from protocols.bucket import Bucket
from protocols.errors import Local, Malformed, TimedOut, TooBig
from protocols.framing import MIN_BYTES_PER_S, FrameReader
from protocols.net import Stream, turn
from protocols.sources import Giver, HttpSource
from storage.cid import Cid
from storage.dag import reach
from storage.keys import PeerId

INLINE_BYTES: Final = 16 << 10  # a message up to this size is decoded and hashed on the event loop
READ_BYTES: Final = 1 << 20
MAX_ENTRIES_PER_SLICE: Final = 512  # of a wantlist, noted and looked up at a time: about 4 ms of the event loop
MAX_MESSAGES: Final = 16 << 10  # without blocks, that a peer may send before it has to wait; as many again in:
REFILL_S: Final = 8.0
ITEMS_PER_MESSAGE: Final = 8  # that are of no use cost as much again as a message

__all__ = ("Exchange", "Session", "Worker", "in_threads", "in_turn")  # what a caller needs beside the functions here

T = TypeVar("T")


async def run_exchange(exchange: Exchange, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve peers and carry our wants to them, until cancelled."""
    async with trio.open_nursery() as nursery, exchange.network.watch_peers() as changes:
        exchange.nursery = nursery
        try:
            for protocol in PROTOCOLS:
                exchange.network.serve(protocol, partial(_hear, exchange))
            nursery.start_soon(_tend, exchange)
            task_status.started()
            async for change in changes:
                if change.is_connected:
                    carry_out(exchange, exchange.wants.found(change.peer, trio.current_time()))
                else:
                    _part(exchange, change.peer)
        finally:
            exchange.nursery = None  # sessions and peers may outlive us


# --- wanting


@contextmanager
def open_session(exchange: Exchange) -> Iterator[Session]:
    """Want blocks for as long as the block lasts; what is still wanted at its end is cancelled. Raises: Local."""
    if exchange.nursery is None:
        raise Local("the exchange is not running: start run_exchange first")
    number = exchange.wants.open()
    session = exchange.sessions[number] = Session(exchange, number)
    try:
        yield session
    finally:
        del exchange.sessions[number]
        carry_out(exchange, exchange.wants.close(number, trio.current_time()))


def want(session: Session, cids: Sequence[Cid]) -> None:
    """Ask for blocks. Raises: Local when over MAX_WANTS are wanted or lie in `arrived`."""
    if session.n_outstanding + len(cids) > MAX_WANTS:
        raise Local(f"{session.n_outstanding + len(cids)} blocks at once; the limit is {MAX_WANTS}")
    session.n_outstanding += len(cids)
    exchange = session.exchange
    carry_out(exchange, exchange.wants.want(session.number, cids, trio.current_time()))


def add_providers(session: Session, peers: Iterable[Giver]) -> None:
    """Ask these peers too; those known already get a fresh chance."""
    exchange = session.exchange
    others = [peer for peer in peers if peer != exchange.network.peer_id]
    carry_out(exchange, exchange.wants.add_providers(session.number, others, trio.current_time()))


async def next_arrivals(session: Session) -> list[Got]:
    """Wait until blocks have arrived; take all of them."""
    while not session.arrived:
        session.wake = trio.Event()
        await session.wake.wait()
    arrived, session.arrived = session.arrived, []
    session.n_outstanding -= len(arrived)
    return arrived


async def offer(exchange: Exchange, cids: Sequence[Cid]) -> None:
    """Blocks are in the store, or may be seen by more peers, since now: serve those who wait for them."""
    waiting: dict[PeerId, list[Cid]] = {}
    for peer, cid in exchange.serving.waiting_for(cids):
        waiting.setdefault(peer, []).append(cid)
    if not waiting:
        return
    found = await exchange.work(lambda: {peer: exchange.visible(peer, wanted) for peer, wanted in waiting.items()})
    for peer, sizes in found.items():
        for cid, size_bytes in sizes.items():
            exchange.serving.arrived(peer, cid, size_bytes)
            _wake_talk(exchange, peer)


async def offer_below(exchange: Exchange, root: Cid) -> None:
    """More peers may see what is below `root` since now: serve those who wait for it."""
    if exchange.serving.is_anybody_waiting:
        below = await exchange.work(lambda: [reached.cid for reached in reach(exchange.store, root)])
        await offer(exchange, below)


def carry_out(exchange: Exchange, actions: Iterable[Action]) -> None:
    """Do what the core of wanting decided."""
    for action in actions:
        match action:
            case Send(HttpSource() as source, entries):
                exchange.web.tell(source, entries)
            case Send(PeerId() as peer, entries):
                exchange.counted[peer] = exchange.network.received_bytes(peer)
                _wake_talk(exchange, peer, entries)
            case Got(sessions, giver, cid, data, wait_s):
                exchange.trace.note(cid, Origin(giver, len(data), trio.current_time(), wait_s))
                for number in sessions:
                    session = exchange.sessions[number]
                    session.arrived.append(action)
                    session.wake.set()
            case NeedProviders(number):
                exchange.sessions[number].is_needy.set()
            case Misbehaved(peer, code):
                _report(exchange, peer, code)
    if exchange.wants.next_deadline_s() < exchange.armed_s:
        exchange.rearm.set()


async def _tend(exchange: Exchange) -> None:
    """Let the core of wanting see time pass."""
    while True:
        exchange.rearm = trio.Event()
        exchange.armed_s = exchange.wants.next_deadline_s()
        with trio.move_on_at(exchange.armed_s):
            await exchange.rearm.wait()
        now_s = trio.current_time()
        for peer in exchange.wants.silent(now_s):
            _look_for_bytes(exchange, peer, now_s)
        carry_out(exchange, exchange.wants.tick(now_s))


def _look_for_bytes(exchange: Exchange, peer: Giver, now_s: float) -> None:
    """On a slow link the message that comes next takes seconds, and cannot be read before it is whole."""
    if isinstance(peer, HttpSource):
        return
    n_bytes = exchange.network.received_bytes(peer)
    n_new = n_bytes - exchange.counted.get(peer, n_bytes)
    if n_new >= STALL_S * MIN_BYTES_PER_S:
        exchange.wants.progress(peer, 0, now_s)
    else:  # what little came may be the last that did
        exchange.network.doubt(peer)
    exchange.counted[peer] = n_bytes


def _part(exchange: Exchange, peer: PeerId) -> None:
    """Take leave of a peer that is gone."""
    exchange.serving.gone(peer)
    ear = exchange.ears.get(peer)
    if ear is not None and not ear.n_streams:
        del exchange.ears[peer]
    talk = exchange.talks.get(peer)
    if talk is not None:
        talk.scope.cancel()
    exchange.counted.pop(peer, None)
    carry_out(exchange, exchange.wants.lost(peer, trio.current_time()))


# --- hearing


async def _hear(exchange: Exchange, stream: Stream) -> None:
    """Read a peer's messages for as long as its stream lasts."""
    peer = stream.peer
    ear = exchange.ears.get(peer)
    if ear is None:
        ear = exchange.ears[peer] = Ear(Bucket(MAX_MESSAGES, REFILL_S, trio.current_time()))
    ear.n_streams += 1
    try:
        await _listen(exchange, stream, ear)
    except (Malformed, TooBig) as error:
        _report(exchange, peer, error.code)
    finally:
        ear.n_streams -= 1
        if not ear.n_streams and peer not in exchange.network.peers():
            del exchange.ears[peer]
            exchange.serving.gone(peer)  # what it wanted may have been noted after it left


def _report(exchange: Exchange, peer: Giver, code: str) -> None:
    """A peer sent what it should not; who goes on with it loses its connection."""
    exchange.report(peer, code)
    if not isinstance(peer, HttpSource):
        exchange.network.report(peer, code)


async def _listen(exchange: Exchange, stream: Stream, ear: Ear) -> None:
    reader = FrameReader(MAX_MESSAGE_BYTES)
    intake = exchange.intake
    with trio.CancelScope() as scope:
        try:
            while data := await stream.read(READ_BYTES):
                n_bytes = reader.n_unread + len(data)
                exchange.wants.progress(stream.peer, n_bytes, trio.current_time())
                if stream.peer in exchange.counted:
                    exchange.counted[stream.peer] = exchange.network.received_bytes(stream.peer)
                _hold(exchange, stream.peer, scope, n_bytes)
                is_any_whole = False
                for body in reader.cut(data):
                    is_any_whole, scope.deadline = True, math.inf  # to take them in is up to us
                    async with ear.turn:
                        if (wait_s := ear.messages.wait_s(1, trio.current_time())) > 0:
                            await trio.sleep(wait_s)
                        ear.messages.take(await _receive(exchange, stream.peer, body), trio.current_time())
                if is_any_whole:
                    intake.done(scope)
                    if reader.n_unread:
                        _hold(exchange, stream.peer, scope, reader.n_unread)
                scope.deadline = intake.deadline_s(scope)
        finally:
            intake.done(scope)
    if scope.cancelled_caught and scope.deadline <= trio.current_time():  # else others needed the memory more
        raise TimedOut(f"{stream.peer} did not finish a message in time")


def _hold(exchange: Exchange, peer: PeerId, scope: trio.CancelScope, n_bytes: int) -> None:
    """Keep what came of a message; the streams of others may have to give way to it, or this one to theirs."""
    is_kept = exchange.network.is_protected(peer)
    for slow in exchange.intake.holds(scope, n_bytes, trio.current_time(), is_kept=is_kept):
        slow.cancel()


async def _receive(exchange: Exchange, peer: PeerId, body: bytes) -> float:
    """Take in one message: hash its blocks, look its wants up, tell the cores.

    Returns: what it cost us for nothing, in messages: 0 where it brings blocks that are wanted. All others cost us more
    than their sender, those too that say again what was given already.
    """
    is_expected, n_of_use = exchange.wants.expects(peer), 0
    job = partial(_open, body, is_expected)
    if len(body) <= INLINE_BYTES:
        async with turn(exchange.network, peer):
            message, blocks = job()
    else:
        message, blocks = await (exchange.work(job) if is_expected else work_in_turn(exchange, peer, job))
    if message.blocks or message.haves or message.dont_haves or message.pending_bytes:
        haves, dont_haves, now_s = message.haves, message.dont_haves, trio.current_time()
        pending_bytes = 0 if message.entries else message.pending_bytes
        async with turn(exchange.network, peer):
            actions = exchange.wants.received(peer, blocks, haves, dont_haves, now_s, pending_bytes)
            n_of_use = sum(isinstance(action, Got) for action in actions)
            carry_out(exchange, actions)
    exchange.wants.took(peer, len(body))
    if message.entries or message.is_full:
        await _note_wants(exchange, peer, message)
    return float(not n_of_use) + (message.n_items - n_of_use) / ITEMS_PER_MESSAGE


async def _note_wants(exchange: Exchange, peer: PeerId, message: Message) -> None:
    """Note what a peer wants, look it up, and have it answered: a slice at a time, so that nobody waits long."""
    for at in range(0, max(1, len(message.entries)), MAX_ENTRIES_PER_SLICE):
        entries = message.entries[at : at + MAX_ENTRIES_PER_SLICE]
        async with turn(exchange.network, peer):
            exchange.serving.heard(peer, entries, message.is_full and at == 0)
        wanted = [entry for entry in entries if not entry.is_cancel]
        if wanted:
            asked = [entry.cid for entry in wanted]
            sizes = await work_in_turn(exchange, peer, partial(exchange.visible, peer, asked))
            async with turn(exchange.network, peer):
                exchange.serving.looked_up(peer, wanted, sizes)
        if exchange.serving.has_answers(peer):
            _wake_talk(exchange, peer)


def _open(body: bytes, is_expected: bool) -> tuple[Message, list[Arrived]]:
    message = decode(body)
    message = message._replace(entries=tuple(sorted(message.entries, key=lambda entry: -entry.priority)))
    return message, [Arrived(identify(block) if is_expected else None, block.data) for block in message.blocks]


# --- talking


def _wake_talk(exchange: Exchange, peer: PeerId, entries: Iterable[Entry] = ()) -> None:
    """Have these entries, and what else there is, told to a peer; while the exchange does not run, nobody is told."""
    if exchange.nursery is None:
        return
    talk = exchange.talks.get(peer)
    if talk is None or talk.scope.cancel_called:
        talk = exchange.talks[peer] = Talk()
        exchange.nursery.start_soon(_talk, exchange, peer, talk)
    talk.entries |= {entry.cid.multihash: entry for entry in entries}
    talk.wake.set()


async def _talk(exchange: Exchange, peer: PeerId, talk: Talk) -> None:
    """Talk to a peer; who cannot be reached is gone."""
    if not await talk_to(exchange, peer, talk):
        _part(exchange, peer)
