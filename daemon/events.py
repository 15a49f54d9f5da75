"""The node's events on their way: noted by any part at once, written in batches, followed by any number of readers."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import structlog
import trio

from storage.catalog import Catalog
from storage.catalog.events import MAX_EVENTS_READ, Event
from storage.errors import StorageError

MAX_UNWRITTEN: Final = 4096
MAX_BATCH: Final = 256
LAST_WRITE_S: Final = 0.5  # for what was noted just before the node stops

log = structlog.get_logger(__name__)

Noted = tuple[str, dict[str, Any], float]


class EventFeed:
    """Note events from anywhere, also from code that cannot wait; follow them from any id on.

    `run` writes them; it must run while the feed is in use. `clock` gives unix_s.
    """

    def __init__(self, catalog: Catalog, clock: Callable[[], float]) -> None:
        self._catalog = catalog
        self._clock = clock
        self._inbox, self._unwritten = trio.open_memory_channel[Noted](MAX_UNWRITTEN)
        self._n_lost = 0
        self._news = trio.Event()

    def note(self, kind: str, fields: dict[str, Any]) -> None:
        """Have an event written soon. `fields` are JSON values, small; never contents or keys."""
        try:
            self._inbox.send_nowait((kind, fields, self._clock()))
        except trio.WouldBlock:
            self._n_lost += 1

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is noted until cancelled; then write what is left."""
        task_status.started()
        try:
            while True:
                await self._write([await self._unwritten.receive(), *self._waiting(MAX_BATCH - 1)])
        finally:
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
        with self._catalog.transaction():
            for kind, fields, unix_s in batch:
                self._catalog.events.append(kind, fields, unix_s)
