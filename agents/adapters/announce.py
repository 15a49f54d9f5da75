"""Tell others what this node publishes: at once, again on a schedule, and to every newcomer that asks.

Gossip loses messages and partitions swallow them, so an announcement is repeated: soon at first, then ever less often.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

import trio

from agents.adapters.ports import Ports
from protocols import adapters as wire
from protocols.adapters import Announcement
from protocols.net import PeerInfo, Stream
from storage.blockstore import Visibility
from storage.catalog.adapters import AdapterOrder, AdapterRow, AdapterState
from storage.cid import Cid
from storage.keys import PeerId

FIRST_REPEAT_S: Final = 30.0
LONGEST_REPEAT_S: Final = 3600.0
BACKOFF: Final = 2.0
JITTER_FRAC: Final = 0.25
MAX_SCHEDULED: Final = 1000
NEWCOMER_S: Final = 2.0
ANSWER_EVERY_S: Final = 5.0
ANSWER_BURST: Final = 4  # connecting, being trusted, a new model: each is a reason to ask
ANSWER_TIMEOUT_S: Final = 30.0
MAX_ASKERS: Final = 4096
MAX_ADDRESS_CHARS: Final = 256


class _Due(NamedTuple):
    """When an adapter is announced next, when it was last, and the wait behind the next time."""

    at_s: float
    said_s: float
    wait_s: float


class Schedule:
    """When is which adapter to be announced? At once, then after waits that double, each with its own jitter."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._due: dict[Cid, _Due] = {}

    def add(self, manifest: Cid, now_s: float) -> None:
        """Announce this one now, and from now on. The one that waits longest goes when there are too many."""
        if manifest not in self._due and len(self._due) >= MAX_SCHEDULED:
            del self._due[max(self._due, key=lambda other: self._due[other])]
        self._due[manifest] = _Due(now_s, -math.inf, FIRST_REPEAT_S)

    def remove(self, manifest: Cid) -> None:
        """Announce this one no more."""
        self._due.pop(manifest, None)

    def hurry(self, now_s: float) -> None:
        """There are newcomers: announce everything soon, unless that was done within the shortest wait."""
        for manifest, (_, said_s, wait_s) in self._due.items():
            soon_s = max(now_s + self._jittered(NEWCOMER_S), said_s + FIRST_REPEAT_S)
            if soon_s < self._due[manifest].at_s:
                self._due[manifest] = _Due(soon_s, said_s, wait_s)

    def due(self, now_s: float) -> list[Cid]:
        """Those to be announced now, the longest overdue first; each is put off to its next time."""
        ripe = sorted((due.at_s, manifest) for manifest, due in self._due.items() if due.at_s <= now_s)
        for _, manifest in ripe:
            wait_s = self._due[manifest].wait_s
            longer_s = min(wait_s * BACKOFF, LONGEST_REPEAT_S)
            self._due[manifest] = _Due(now_s + self._jittered(wait_s), now_s, longer_s)
        return [manifest for _, manifest in ripe]

    def next_s(self) -> float:
        """When `due` will next have something to say; `math.inf` for never."""
        return min((due.at_s for due in self._due.values()), default=math.inf)

    def _jittered(self, wait_s: float) -> float:
        return wait_s * (1 + self._rng.uniform(-JITTER_FRAC, JITTER_FRAC))


class Turnstile:
    """Lets each peer through once in `every_s` on average, and at most `n_burst` times at once.

    Source: the generic cell rate algorithm (ITU-T I.371, annex A).
    """

    def __init__(self, every_s: float, n_burst: int = 1, max_peers: int = MAX_ASKERS) -> None:
        self._every_s = every_s
        self._tolerance_s = every_s * (n_burst - 1)
        self._max_peers = max_peers
        self._due_s: dict[PeerId, float] = {}  # when the peer would pass if it came evenly

    def admits(self, peer: PeerId, now_s: float) -> bool:
        """May `peer` pass now? Then it is counted."""
        due_s = max(self._due_s.get(peer, now_s), now_s)
        if due_s - now_s > self._tolerance_s:
            return False
        self._due_s.pop(peer, None)  # moves it to the end: the first is the longest away
        if len(self._due_s) >= self._max_peers:
            del self._due_s[next(iter(self._due_s))]
        self._due_s[peer] = due_s + self._every_s
        return True


def announced(ports: Ports, base: str | None = None, asker: PeerId | None = None) -> Iterator[AdapterRow]:
    """What this node announces: of each name and base the highest version that may be heard of.

    By an `asker` who may see it; without one by the whole flock.
    """
    for newest in ports.catalog.adapters.newest_own(base=base, limit=MAX_SCHEDULED):
        heard = (row for row in _versions(ports, newest) if _may_hear(ports, row, asker))
        yield from islice(heard, 1)


def _versions(ports: Ports, newest: AdapterRow) -> Iterator[AdapterRow]:
    """All versions, the highest first; the others are looked up only when they are asked for."""
    yield newest
    yield from ports.catalog.adapters.query(
        is_own=True, state=AdapterState.READY, base=newest.base, name=newest.name, order=AdapterOrder.VERSION
    )


def _may_hear(ports: Ports, row: AdapterRow, asker: PeerId | None) -> bool:
    if asker is not None:
        return bool(ports.exchange.visible(asker, [row.manifest]))
    return ports.roots.level(row.manifest) >= Visibility.FLOCK


def own_addresses(ports: Ports) -> tuple[str, ...]:
    """Where this node can be reached, as announcements say it."""
    addresses = [address for text in ports.network.addresses() for address in PeerInfo.parse(text).addresses]
    return tuple(text for text in addresses if len(text) <= MAX_ADDRESS_CHARS)[: wire.MAX_ADDRESSES]


def sealed(ports: Ports, row: AdapterRow, addresses: tuple[str, ...]) -> bytes:
    """A fresh announcement of an adapter of our own. Now and then it waits for the disk: call it in a thread."""
    unix_s = ports.unix_s()
    announcement = Announcement(
        manifest=row.manifest,
        name=row.name,
        version=row.version,
        n_bytes=row.n_bytes,
        addresses=addresses,
    )
    next_sequence = partial(ports.catalog.sequences.next, unix_s=unix_s)
    return wire.seal_announcement(ports.identity, Cid.parse(row.base), announcement, next_sequence, unix_s)


@dataclass(eq=False)
class _Outgoing:
    """What the tasks of one announcer share."""

    ports: Ports
    schedule: Schedule
    wake: trio.Event = field(default_factory=trio.Event)


async def run_announcer(
    ports: Ports,
    published: trio.MemoryReceiveChannel[Cid],
    rng: random.Random,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Announce everything that this node publishes, for ever; what comes in through `published` at once."""
    outgoing = _Outgoing(ports, Schedule(rng))
    for row in await ports.exchange.work(lambda: list(announced(ports))):
        outgoing.schedule.add(row.manifest, trio.current_time())
    serve_catch_up(ports)
    task_status.started()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_note_published, outgoing, published)
        nursery.start_soon(_note_newcomers, outgoing)
        while True:
            outgoing.wake = trio.Event()
            with trio.move_on_at(outgoing.schedule.next_s()):
                await outgoing.wake.wait()
            await _announce_due(outgoing)


async def _note_published(outgoing: _Outgoing, published: trio.MemoryReceiveChannel[Cid]) -> None:
    async for manifest in published:
        outgoing.schedule.add(manifest, trio.current_time())
        outgoing.wake.set()


async def _note_newcomers(outgoing: _Outgoing) -> None:
    """Behind a new peer may be many: after a partition heals, all of its other side."""
    async with outgoing.ports.network.watch_peers() as changes:
        async for change in changes:
            if change.is_connected:
                outgoing.schedule.hurry(trio.current_time())
                outgoing.wake.set()


async def _announce_due(outgoing: _Outgoing) -> None:
    ports, now_s = outgoing.ports, trio.current_time()
    due = outgoing.schedule.due(now_s)
    if not due:
        return
    current = await ports.exchange.work(lambda: {row.manifest: row for row in announced(ports)})
    for manifest in due:
        if manifest not in current:  # withdrawn, or a newer version took its place
            outgoing.schedule.remove(manifest)
            continue
        row = current[manifest]
        envelope = await ports.exchange.work(partial(sealed, ports, row, own_addresses(ports)))
        await ports.network.publish(wire.topic_of(Cid.parse(row.base)), envelope)


def serve_catch_up(ports: Ports) -> None:
    """Answer newcomers that ask what this node announces."""
    turnstile = Turnstile(ANSWER_EVERY_S, ANSWER_BURST)

    async def envelopes(asker: PeerId, base: Cid, n_most: int) -> list[bytes]:
        addresses = own_addresses(ports)
        return await ports.exchange.work(
            lambda: [sealed(ports, row, addresses) for row in islice(announced(ports, str(base), asker), n_most)]
        )

    async def handle(stream: Stream) -> None:
        if turnstile.admits(stream.peer, trio.current_time()):
            with trio.move_on_after(ANSWER_TIMEOUT_S):
                await wire.answer(stream, partial(envelopes, stream.peer))

    ports.network.serve(wire.PROTOCOL, handle)
