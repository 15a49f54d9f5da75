"""What an exchange of blocks consists of: the cores, and what is known of each peer and errand. `shell` drives it."""

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from protocols.bitswap.intake import Intake
from protocols.bitswap.pace import Pace
from protocols.bitswap.serving import Serving
from protocols.bitswap.session import Got, Wants
from protocols.bitswap.trace import Trace
from protocols.bitswap.wire import Entry
from protocols.bucket import Bucket
from protocols.net import Network, PeerInfo
from protocols.sources import Giver, NoWeb, Web
from storage.blockstore import Blockstore, Sight
from storage.cid import Cid
from storage.keys import PeerId

N_THREADS: Final = 4
N_GUEST_THREADS: Final = 2  # of these, at most so many work for peers that this node keeps at a time
N_STRANGER_THREADS: Final = 1  # and for others, so that those do not wait behind them

T = TypeVar("T")


class Worker(Protocol):
    """Runs a synchronous job without holding up the event loop."""

    async def __call__(self, job: Callable[[], T], /) -> T:
        """Do it; return or raise what it does."""


def in_threads(n_threads: int = N_THREADS) -> Worker:
    """Jobs run in at most `n_threads` threads."""
    limiter = trio.CapacityLimiter(n_threads)

    async def work(job: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(job, limiter=limiter)

    return work


async def in_turn(job: Callable[[], T], /) -> T:
    """Jobs run at once on the event loop: for virtual time, which must not pass while a thread works."""
    await trio.lowlevel.checkpoint()
    return job()


@dataclass(eq=False)
class Talk:
    """What we have to tell one peer, beside answers to its wants."""

    entries: dict[bytes, Entry] = field(default_factory=dict)  # multihash -> news of our wantlist
    wake: trio.Event = field(default_factory=trio.Event)
    notice_at_s: float = math.inf  # when it has to be told that it waits for blocks
    is_told: bool = False  # that it does
    is_giving: bool = False  # blocks are on their way to it
    is_lost: bool = False  # it cannot be reached
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


@dataclass(eq=False)
class Ear:
    """Where we listen to one peer, for as long as it is connected."""

    messages: Bucket
    n_streams: int = 0
    turn: trio.Lock = field(default_factory=trio.Lock)  # one message of a peer's is taken in at a time


@dataclass(eq=False)
class Exchange:
    """Everything that this node exchanges by Bitswap.

    Args:
        sight_of: What a peer may know that we have. Called in worker threads.
        report: Told of each peer that sends what it should not, with a stable code.
        pace: How fast blocks go out.
        web: What gives blocks over HTTP, beside peers.
        routers: Who is asked for providers beside the DHT.
        on_refused: Told of blocks that a peer asked for, and that are not here or out of its sight. In worker threads.
    """

    network: Network
    store: Blockstore
    sight_of: Callable[[PeerId], Sight]
    report: Callable[[Giver, str], None] = lambda peer, code: None
    work: Worker = field(default_factory=in_threads)
    wants: Wants = field(default_factory=Wants)
    serving: Serving = field(default_factory=Serving)
    pace: Pace = field(default_factory=Pace)
    trace: Trace = field(default_factory=Trace)
    web: Web = field(default_factory=NoWeb)
    routers: Callable[[Cid], Awaitable[Sequence[PeerInfo]]] | None = None
    on_refused: Callable[[PeerId, Sequence[Cid]], None] = lambda peer, cids: None
    sessions: dict[int, "Session"] = field(default_factory=dict)
    talks: dict[PeerId, Talk] = field(default_factory=dict)
    nursery: trio.Nursery | None = None
    ears: dict[PeerId, Ear] = field(default_factory=dict)
    intake: Intake[trio.CancelScope] = field(default_factory=Intake)
    guests: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, N_GUEST_THREADS))
    strangers: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, N_STRANGER_THREADS))
    counted: dict[PeerId, int] = field(default_factory=dict)  # bytes from whom we ask, when something was heard last
    armed_s: float = math.inf
    rearm: trio.Event = field(default_factory=trio.Event)

    def visible(self, peer: PeerId, cids: Sequence[Cid]) -> dict[Cid, int]:
        """The sizes of those blocks that are here and that a peer may know of, in a time that tells nothing of others.

        For worker threads.
        """
        found = self.store.visible(cids, self.sight_of(peer))
        if refused := [cid for cid in cids if cid not in found]:
            self.on_refused(peer, refused)
        return found


@dataclass(eq=False)
class Session:
    """One reader's errand. `arrived` fills up and `next_arrivals` empties it; `is_needy` is set when a block is wanted
    that nobody we know of can give."""

    exchange: Exchange
    number: int
    n_outstanding: int = 0
    arrived: list[Got] = field(default_factory=list)
    wake: trio.Event = field(default_factory=trio.Event)
    is_needy: trio.Event = field(default_factory=trio.Event)


async def work_for(exchange: Exchange, peer: PeerId, job: Callable[[], T]) -> T:
    """Work that another peer caused: it leaves threads free for our own, and strangers' leaves some for friends."""
    async with exchange.guests if exchange.network.is_protected(peer) else exchange.strangers:
        return await exchange.work(job)


async def work_in_turn(exchange: Exchange, peer: PeerId, job: Callable[[], T]) -> T:
    """The same with what takes long for what it brings: it waits for its turn, and its time is counted."""

    def timed() -> tuple[T, float]:
        began_s = time.thread_time()  # of the processor alone: to wait for a disk holds up nobody else
        return job(), time.thread_time() - began_s

    await exchange.network.rest(peer)
    done, work_s = await work_for(exchange, peer, timed)
    exchange.network.charge(peer, work_s)
    return done
