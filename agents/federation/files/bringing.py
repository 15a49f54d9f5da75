"""Bringing the tensors of an experiment here: from its members, within bounds of size and time.

Whoever gives a file gives it at a pace, or others have their turn: what came by then is here, and the next try goes on
from it.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from agents.adapters.ports import Ports
from agents.federation.events.book import Book
from agents.federation.events.grants import readers, told
from agents.federation.files.possession import claimed
from agents.federation.files.shelf import Keep, limit_of
from agents.federation.results.outcome import Document, read_document
from agents.federation.updates.tensors import MAX_TENSORS_BYTES
from protocols.errors import TimedOut
from protocols.fetch.dag import Progress, fetch_blocks, fetch_dag
from protocols.net import PeerInfo
from protocols.rounds import Plan
from storage.cid import Cid
from storage.keys import PeerId

FETCH_IDLE_S: Final = 20.0
PACE_BYTES: Final = 1 << 18  # of a file, that come within
PACE_S: Final = 30.0
LEAST_TURN_S: Final = 60.0  # of one file, before others have theirs, however short a round is
BASES_S: Final = 60.0  # of a buffer's updates, all together
SEAL_PART, SEAL_BYTES = 8, 1 << 20  # a seal is larger than what is in it by up to an eighth and a root


class Bringing:
    """A part of an experiment on a node. `_reached` are the members that answer: they are asked first."""

    plan: Plan
    book: Book
    keep: Keep
    _ports: Ports
    _scratch: Path
    _reached: set[PeerId]
    _fetched_bytes: int
    _came_bytes: Counter[tuple[Cid, int]]  # by file and sweep: of its blocks, what came from members since that began
    _fetches: dict[Cid, trio.Lock]  # by file: two fetches would each count the same block as come

    async def bring_result(self, result: Cid) -> Document:
        """A result's document, tensors and states. Raises: NoProviders, TimedOut, BadTensors, StorageError."""
        document = await self.bring_document(result)
        for cid in (document.tensors, *document.states):
            await self.fetch_file(cid)
        return document

    async def bring_base(self, number: int) -> Document:
        """The tensors and states that a round starts from, here and held; a document without updates for the first."""
        result = self.book.result(number - 1)
        if result is None or result == self.plan.initial:
            await self.fetch_file(self.plan.initial)
            return Document(self.plan.initial, self.plan.initial, (), ())
        return await self.bring_result(result)

    async def bring_document(self, result: Cid) -> Document:
        """A result's document. Raises: NoProviders, TimedOut, BadTensors, StorageError."""
        if not self._ports.store.has(result):
            await fetch_blocks(self._ports.exchange, [result], providers=self._providers(), idle_timeout_s=FETCH_IDLE_S)
        return read_document(await self._ports.exchange.work(partial(self._ports.store.get, result)))

    async def bring_bases(self, bases: Collection[Cid], results: Iterable[Cid]) -> None:
        """The documents that say which result each base is of, as far down as it takes: who came late has none of them.

        What came by the time that it takes is here, and the next try goes on from it. Raises: as `bring_document` does;
        trio.TooSlowError.
        """
        left = set(bases)
        with trio.fail_after(BASES_S):
            for result in results:
                if not left:
                    return
                left.discard((await self.bring_document(result)).tensors)

    def readers(self, number: int) -> tuple[PeerId, ...]:
        """Whom the updates of a round are sealed to, and who is shown them."""
        return readers(self.book, number)

    def told(self) -> list[PeerId]:
        """Who is asked of the experiment, and told of it, now."""
        return told(self.book, self._ports.unix_s())

    async def bring_update(self, update: Cid, sealed: Cid | None, number: int) -> None:
        """A round's update, here and held; out of its seal, where it has one.

        Raises: BadTensors, NotARecipient, BrokenSeal; as `fetch_file` does.
        """
        listed = self.readers(number)
        if await trio.to_thread.run_sync(self.keep.is_held, update):
            await trio.to_thread.run_sync(self._show_late, sealed or update, listed)
            return
        await self.fetch_file(self.plan.initial)
        n_most = await trio.to_thread.run_sync(limit_of, self._ports, self.plan)
        if sealed is None:
            await self.fetch_file(update, n_most, listed)
            return
        await self.fetch_file(sealed, n_most + n_most // SEAL_PART + SEAL_BYTES, listed)
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            open_it = partial(self.keep.open_update, sealed, update, Path(folder), n_most, listed)
            await trio.to_thread.run_sync(open_it)

    async def fetch_file(
        self, cid: Cid, max_bytes: int = MAX_TENSORS_BYTES, readers: tuple[PeerId, ...] | None = None
    ) -> None:
        """Bring a file here, hold it for the experiment, and pass it on to members where who named it has it.

        readers: to whom, where it is a round's and not for all who are members now.

        Raises: NoProviders, TimedOut, Tampered, TooBig, Malformed, BadTensors, StorageError.
        """
        async with self._fetches.setdefault(cid, trio.Lock()):
            if not await trio.to_thread.run_sync(self.keep.is_held, cid):
                await self._fetch_file(cid, max_bytes, readers)

    async def _fetch_file(self, cid: Cid, max_bytes: int, readers: tuple[PeerId, ...] | None) -> None:
        with self._ports.store.lease():
            at = cid, self._ports.store.n_sweeps
            n_came_before = self._came_bytes[at]
            fetch = partial(
                fetch_dag,
                self._ports.exchange,
                cid,
                providers=self._providers(),
                idle_timeout_s=FETCH_IDLE_S,
                max_bytes=max_bytes,
            )
            turn_s = max(self.plan.deadline_s, LEAST_TURN_S)
            progress = await at_pace(lambda on_progress: fetch(on_progress=self._counting(at, on_progress)), turn_s)
            self._fetched_bytes += progress.n_bytes
            await trio.to_thread.run_sync(self._hold, cid, claimed(self.book, cid), max_bytes, readers)
            # Nothing of it was here before but what came in other tries, and was not swept since.
            if progress.n_reused_bytes <= n_came_before:
                await trio.to_thread.run_sync(self.keep.note_own, cid)

    def _counting(self, at: tuple[Cid, int], on_progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Count what comes of a file, also where the rest does not."""
        told = 0

        def count(progress: Progress) -> None:
            nonlocal told
            self._came_bytes[at] += progress.n_bytes - told
            told = progress.n_bytes
            on_progress(progress)

        return count

    def _hold(self, cid: Cid, claims: set[bytes], max_bytes: int, readers: tuple[PeerId, ...] | None) -> None:
        self.keep.check_size(cid, max_bytes)
        if self.keep.may_pass_on(cid, claims, readers):
            self.keep.pass_on(cid, readers)
        self.keep.hold(cid)

    def _show_late(self, cid: Cid, readers: tuple[PeerId, ...]) -> None:
        """Pass on what is held, where who has it names it behind somebody who named it without a digest that fits."""
        is_hidden = not self.keep.is_shown_to_any(cid) and self.keep.is_held(cid)
        if is_hidden and self.keep.may_pass_on(cid, claimed(self.book, cid), readers):
            self.keep.pass_on(cid, readers)

    def _providers(self) -> list[PeerInfo]:
        """Members that can be reached; those that answer, first."""
        peers = [*self._reached, *(peer for peer in self.told() if peer not in self._reached)]
        return [PeerInfo(peer) for peer in peers if peer != self._ports.identity.peer_id]


async def at_pace(fetch: Callable[[Callable[[Progress], None]], Awaitable[Progress]], turn_s: float) -> Progress:
    """Have a file fetched, but give up when too little of it comes, or it takes longer than its turn.

    What it is told of counts, whether it was fetched or here before; until then there is nothing to wait for.

    Raises: TimedOut, and what `fetch` does.
    """
    last_bytes, end_s = -PACE_BYTES, trio.current_time() + turn_s

    def on_progress(progress: Progress) -> None:
        nonlocal last_bytes
        if (n_bytes := progress.n_bytes + progress.n_reused_bytes) >= last_bytes + PACE_BYTES:
            last_bytes = n_bytes
            scope.deadline = min(end_s, trio.current_time() + PACE_S)

    with trio.CancelScope(deadline=math.inf) as scope:
        return await fetch(on_progress)
    raise TimedOut(f"less than {PACE_BYTES:,} bytes came in {PACE_S:.0f} s, or not all in {turn_s:.0f} s")
