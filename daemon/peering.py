"""Stay in touch: connect to the peers that the user named, again when they were away, and note where peers are."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from daemon.events import EventFeed
from protocols.errors import DialFailed, Remote
from protocols.net import Network, PeerInfo
from storage.catalog.peers import PeerBook
from storage.errors import StorageError
from storage.keys import PeerId

FIRST_RETRY_S: Final = 2.0
LONGEST_RETRY_S: Final = 300.0
LOOK_S: Final = 5.0  # for peers that were added meanwhile, or are due again
DIAL_LIMIT_S: Final = 30.0  # two dials and a search between them
MAX_DIALS: Final = 8  # at a time
NOTE_S: Final = 2.0  # a peer tells where it listens some time after it connected, and again when that changes

log = structlog.get_logger(__name__)


class Redial:
    """Whom to dial when? No clock, no IO. Waits double with each failure; a success forgets them."""

    def __init__(self) -> None:
        self._n_failures: dict[PeerId, int] = {}
        self._next_s: dict[PeerId, float] = {}
        self._dialling: set[PeerId] = set()

    def due(self, wanted: Sequence[PeerId], connected: Sequence[PeerId], now_s: float) -> list[PeerId]:
        """The wanted peers that are away and whose turn it is, as many as may be dialled beside those that are.

        Those that failed least come first: many that are gone for good keep none waiting that is away for a moment.
        Failures of others than the wanted are forgotten, and of those that are here, who may have come by themselves.
        Each is dialled until `reached` or `failed` is told of it.
        """
        for done in set(self._next_s).difference(wanted) | set(self._next_s).intersection(connected):
            self._forget(done)
        away = set(wanted).difference(connected, self._dialling)
        ready = [peer for peer in wanted if peer in away and self._next_s.get(peer, now_s) <= now_s]
        ready.sort(key=lambda peer: self._n_failures.get(peer, 0))
        taken = ready[: MAX_DIALS - len(self._dialling)]
        self._dialling.update(taken)
        return taken

    def reached(self, peer: PeerId, now_s: float) -> None:
        """The peer answered. One that hangs up before it is seen here is not dialled again at once."""
        self._dialling.discard(peer)
        self._forget(peer)
        self._next_s[peer] = now_s + LOOK_S

    def failed(self, peer: PeerId, now_s: float) -> None:
        """The peer did not answer."""
        self._dialling.discard(peer)
        n_failures = self._n_failures[peer] = self._n_failures.get(peer, 0) + 1
        self._next_s[peer] = now_s + min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(n_failures - 1, 16))

    def _forget(self, peer: PeerId) -> None:
        self._n_failures.pop(peer, None)
        self._next_s.pop(peer, None)


@dataclass(eq=False)
class Named:
    """The peers that the user named, as the network is told of them: whom to keep to, and whom to refuse."""

    network: Network
    book: PeerBook
    bootstrap: Sequence[PeerInfo] = ()
    turn: trio.Lock = field(default_factory=trio.Lock)
    wanted: dict[PeerId, PeerInfo] = field(default_factory=dict)  # to be connected to
    _told: object = None

    async def tell(self) -> None:
        """Tell the network what the book says. Read and told in one turn: what was read last holds."""
        async with self.turn:
            banned = await trio.to_thread.run_sync(self.book.banned)
            kept = await trio.to_thread.run_sync(self.book.kept)
            if self._told != (banned, kept):  # for a thousand peers this takes long
                self._told = banned, kept
                rows = [row for row in kept if row.peer not in banned]
                self.network.protect([*(row.peer for row in rows), *(info.peer for info in self.bootstrap)])
                self.network.refuse(banned)
                dialled = [*self.bootstrap, *(PeerInfo(row.peer, row.addresses) for row in rows if row.addresses)]
                self.wanted = {info.peer: info for info in dialled if info.peer != self.network.peer_id}


async def keep_connected(named: Named, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Dial bootstrap peers and those that the user keeps, whenever they are away, until cancelled."""
    core, network = Redial(), named.network
    ended, any_ended = trio.open_memory_channel[None](1)
    task_status.started()
    async with trio.open_nursery() as nursery:
        while True:
            await named.tell()
            with trio.move_on_after(LOOK_S):
                while True:
                    for peer in core.due(list(named.wanted), network.peers(), trio.current_time()):
                        nursery.start_soon(_dial, network, named.wanted[peer], core, ended)
                    await any_ended.receive()  # there is room for the next one


async def _dial(network: Network, info: PeerInfo, core: Redial, ended: trio.MemorySendChannel[None]) -> None:
    try:
        with trio.fail_after(DIAL_LIMIT_S):
            await _reach(network, info)
    except (Remote, trio.TooSlowError):
        core.failed(info.peer, trio.current_time())
    else:
        core.reached(info.peer, trio.current_time())
    with suppress(trio.WouldBlock):  # then that is known already
        ended.send_nowait(None)


async def _reach(network: Network, info: PeerInfo) -> None:
    """Connect where a peer was, or where the DHT has it now: it may have moved, or be behind a relay."""
    try:
        await network.connect(info)
    except DialFailed:
        found = await network.find_peer(info.peer)
        if set(found.addresses) <= set(info.addresses):
            raise
        await network.connect(found)


async def note_peers(
    network: Network,
    book: PeerBook,
    feed: EventFeed,
    clock: Callable[[], float],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Write down who came and went, and where they were, until cancelled."""
    async with network.watch_peers() as changes, trio.open_nursery() as nursery:
        nursery.start_soon(_note_addresses, network, book, clock)
        nursery.start_soon(_note_refusals, network, feed)
        task_status.started()
        async for change in changes:
            kind = "peer_connected" if change.is_connected else "peer_disconnected"
            feed.note_by(change.peer, kind, {})
            if change.is_connected:
                await _note(book, {change.peer: network.peer_addresses(change.peer)}, clock())


async def _note_addresses(network: Network, book: PeerBook, clock: Callable[[], float]) -> None:
    """Keep the book up with what connected peers say of where they are, so that they are found after a restart."""
    noted: dict[PeerId, list[str]] = {}
    while True:
        await trio.sleep(NOTE_S)
        there = {peer: network.peer_addresses(peer) for peer in network.peers()}
        news = {peer: texts for peer, texts in there.items() if texts != noted.get(peer)}
        if news:
            await _note(book, news, clock())
        noted = there


async def _note_refusals(network: Network, feed: EventFeed) -> None:
    """Tell of whom the network has begun to refuse."""
    noted: dict[PeerId, int] = {}
    while True:
        await trio.sleep(NOTE_S)
        found = {one.peer: one for one in network.conduct.offenders(trio.current_time()) if one.refused_s}
        for peer, one in found.items():
            if noted.get(peer, 0) < one.n_refusals:
                feed.note_by(peer, "peer_refused", {"code": one.code, "seconds": round(one.refused_s)})
        noted = {peer: one.n_refusals for peer, one in found.items()}


async def _note(book: PeerBook, found: dict[PeerId, list[str]], unix_s: float) -> None:
    def write() -> None:
        for peer, addresses in found.items():
            book.heard(peer, addresses, unix_s)

    try:
        await trio.to_thread.run_sync(write)
    except StorageError as error:
        log.warning("peers_not_noted", n_peers=len(found), error=str(error))
