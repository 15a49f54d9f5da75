"""The node's events on their way: noted by any part at once, written in batches, followed by any number of readers.

What peers cause goes through a gate: one for strangers and one for the peers that the user trusts, so that no stranger
crowds out what those did.
"""

import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import structlog
import trio

from daemon.gate import Gate
from protocols.sources import Giver
from storage.catalog import Catalog
from storage.catalog.events import MAX_EVENTS_READ, Event
from storage.errors import StorageError, TooLarge

MAX_UNWRITTEN: Final = 4096
MAX_UNWRITTEN_OF_PEERS: Final = MAX_UNWRITTEN // 2  # the rest of the inbox is for what the node itself does
MAX_BATCH: Final = 256
LAST_WRITE_S: Final = 0.5  # for what was noted just before the node stops
TALLY_S: Final = 60.0

log = structlog.get_logger(__name__)

Noted = tuple[str, dict[str, Any], float]


class EventFeed:
    """Note events from anywhere, also from code that cannot wait; follow them from any id on.

    `run` writes them; it must run while the feed is in use. `clock` gives unix_s. Made inside of the event loop.
    """

    def __init__(self, catalog: Catalog, clock: Callable[[], float]) -> None:
        self._catalog = catalog
        self._clock = clock
        self._inbox, self._unwritten = trio.open_memory_channel[Noted](MAX_UNWRITTEN)
        self._n_lost = 0
        self._news = trio.Event()
        self._loop = trio.lowlevel.current_trio_token()
        self._gates = {is_trusted: Gate() for is_trusted in (False, True)}
        self._at_the_gates = threading.Lock()

    def note(self, kind: str, fields: dict[str, Any]) -> None:
        """Have an event written soon, from any thread. `fields` are JSON values, small; never contents or keys."""
        self._in_loop(self._put, (kind, fields, self._clock()))

    def note_by(self, peer: Giver, kind: str, fields: dict[str, Any]) -> None:
        """Have an event written that `peer` caused (it is named in it), unless there were too many. From any thread.

        A stranger's is told once an hour for each kind and `code`, whatever else is in it.
        """
        unix_s = self._clock()
        is_trusted = peer in self._catalog.peers.flock()
        key = None if is_trusted else (peer, kind, fields.get("code"))
        with self._at_the_gates:
            is_admitted = self._gates[is_trusted].admits(key, unix_s)
        if not is_admitted:
            return
        self._in_loop(self._put_by_peer, (kind, {"peer": str(peer), **fields}, unix_s))

    def _in_loop(self, put: Callable[[Noted], None], noted: Noted) -> None:
        if trio.lowlevel.in_trio_run():
            put(noted)
        else:
            self._loop.run_sync_soon(put, noted)

    def _put(self, noted: Noted) -> None:
        try:
            self._inbox.send_nowait(noted)
        except trio.WouldBlock:
            self._n_lost += 1

    def _put_by_peer(self, noted: Noted) -> None:
        if self._inbox.statistics().current_buffer_used < MAX_UNWRITTEN_OF_PEERS:
            self._put(noted)
        else:
            self._n_lost += 1

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is noted until cancelled; then write what is left."""
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tally)
                while True:
                    await self._write([await self._unwritten.receive(), *self._waiting(MAX_BATCH - 1)])
        finally:
            self._note_left_out()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_WRITE_S):
                while batch := self._waiting(MAX_BATCH):
                    await self._write(batch)

    async def follow(self, after_id: int, *, forever: bool) -> AsyncIterator[Event]:
        """The events behind `after_id`, the oldest first; with `forever` also those to come."""
        while True:
            news = self._news
            page = await trio.to_thread.run_sync(self._catalog.events.since, after_id)
            for event in page:
                after_id = event.id
                yield event
            if len(page) == MAX_EVENTS_READ:
                continue
            if not forever:
                return
            await news.wait()

    async def _tally(self) -> None:
        """Say now and then how many events of peers were left out."""
        while True:
            await trio.sleep(TALLY_S)
            self._note_left_out()

    def _note_left_out(self) -> None:
        with self._at_the_gates:
            n_events = sum(gate.take_left_out() for gate in self._gates.values())
        if n_events:
            self.note("events_left_out", {"n_events": n_events})

    def _waiting(self, limit: int) -> list[Noted]:
        batch: list[Noted] = []
        while len(batch) < limit:
            try:
                batch.append(self._unwritten.receive_nowait())
            except trio.WouldBlock:
                break
        return batch

    async def _write(self, batch: list[Noted]) -> None:
        if self._n_lost:
            batch = [*batch, ("events_lost", {"n_events": self._n_lost}, self._clock())]
            self._n_lost = 0
        try:
            with trio.CancelScope(shield=True):  # one short transaction; what was taken out of the inbox is never lost
                await trio.to_thread.run_sync(self._append, batch)
        except StorageError as error:
            self._n_lost += len(batch)
            log.warning("events_not_written", n_events=len(batch), error=str(error))
        self._news.set()
        self._news = trio.Event()

    def _append(self, batch: list[Noted]) -> None:
        """Write a batch. What cannot be written (over its size, or not JSON) is told of in its place."""
        with self._catalog.transaction():
            for kind, fields, unix_s in batch:
                try:
                    self._catalog.events.append(kind, fields, unix_s)
                except (TooLarge, TypeError, ValueError) as error:
                    log.warning("event_not_written", kind=kind, error=str(error))
                    self._catalog.events.append("event_lost", {"kind": kind, "text": str(error)}, unix_s)
