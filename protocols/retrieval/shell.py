"""Blocks over HTTP: carries wants to the sources that the core of wanting chose, and brings back what comes of them."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog
import trio

from protocols.bitswap.exchange import Exchange
from protocols.bitswap.session import Arrived
from protocols.bitswap.shell import INLINE_BYTES, carry_out
from protocols.bitswap.wire import Entry, WantType
from protocols.errors import HttpFailed, Remote, TooBig
from protocols.net import PeerInfo
from protocols.retrieval.asks import MAX_CAR_BYTES, Said, arrived, arrived_in_car, ask_for, judge
from protocols.retrieval.cars import ask_for_dag, streamed
from protocols.retrieval.line import N_AT_ONCE, N_AT_ONCE_FOUND, Line, Pull
from protocols.sources import HttpSource, Streamed
from protocols.web import Reply, Send
from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import Cid

MAX_FOUND: Final = 16  # sources that nobody named, at a time
PULL_LIMIT_S: Final = 60.0  # for one block, however slowly it comes
N_ATTEMPTS: Final = 2  # a connection that was kept may be gone when it is used again

log = structlog.get_logger(__name__)


class Busy(HttpFailed):
    """The server asks to be left alone for a while; `asked_s` is for how long, where it says so."""

    def __init__(self, text: str, asked_s: float | None = None) -> None:
        super().__init__(text)
        self.asked_s = asked_s


@dataclass(eq=False)
class Retrieval:
    """The HTTP half of an exchange of blocks; fits `protocols.sources.Web`.

    Args:
        send: How servers are asked.
        sources: Those that the user named: they may be asked for whatever is looked for.
        takes_found: Ask also those that the addresses of providers lead to.
    """

    exchange: Exchange
    send: Send
    sources: Sequence[HttpSource] = ()
    takes_found: bool = False
    lines: dict[HttpSource, Line] = field(default_factory=dict)
    no_dags: set[HttpSource] = field(default_factory=set)  # those that give single blocks alone
    scopes: dict[tuple[HttpSource, int], trio.CancelScope] = field(default_factory=dict)
    nursery: trio.Nursery | None = None

    def named(self) -> Sequence[HttpSource]:
        """Those that the user named, as far as they may be asked now."""
        return [source for source in self.sources if self._may_ask(source)]

    def found(self, info: PeerInfo) -> Sequence[HttpSource]:
        """Those that a provider's addresses lead to, as far as they may be asked."""
        if not self.takes_found:
            return ()
        sources = filter(None, map(HttpSource.of_address, info.addresses))
        return [source for source in dict.fromkeys(sources) if source not in self.sources and self._may_ask(source)]

    def tell(self, source: HttpSource, entries: Iterable[Entry]) -> None:
        """Carry news of the wantlist to a source."""
        line = self._line(source)
        if line is None:
            carry_out(self.exchange, self.exchange.wants.lost(source, trio.current_time()))
            return
        self._break_off(source, line.heard(entries, trio.current_time()))
        self.begin(source, line)

    def troubles(self) -> Sequence[str]:
        """Of those that the user named, what keeps the ones from answering that failed last, one line each."""
        lines = [self.lines[source] for source in self.sources if source in self.lines]
        return [line.trouble for line in lines if line.trouble]

    def streams(self) -> Sequence[HttpSource]:
        """Of those that the user named, the ones that may give whole DAGs."""
        return [source for source in self.named() if not source.is_kubo and source not in self.no_dags]

    def dag(self, source: HttpSource, root: Cid) -> AbstractAsyncContextManager[AsyncIterator[Streamed]]:
        """Ask for all that is below `root`. Raises: Remote, also while it comes."""
        return _dag(self, source, root)

    def begin(self, source: HttpSource, line: Line) -> None:
        """Ask a source as much as it may be asked at once."""
        while self.nursery is not None and (pull := line.next()) is not None:
            self.nursery.start_soon(_pull, self, source, line, pull)

    def failed(self, source: HttpSource, line: Line, asked_s: float | None = None) -> None:
        """A source cannot be asked now: what was wanted of it is wanted of others."""
        now_s = trio.current_time()
        self._break_off(source, line.failed(now_s, asked_s))
        carry_out(self.exchange, self.exchange.wants.lost(source, now_s))

    def _break_off(self, source: HttpSource, numbers: Iterable[int]) -> None:
        for number in numbers:
            if (scope := self.scopes.get((source, number))) is not None:
                scope.cancel()

    def _may_ask(self, source: HttpSource) -> bool:
        line = self._line(source)
        return line is not None and line.may_be_asked(trio.current_time())

    def _line(self, source: HttpSource) -> Line | None:
        """What a source is wanted for; None where there is no place for one more that nobody named."""
        if self.nursery is None:
            return None
        now_s = trio.current_time()
        if source not in self.lines:
            strangers = [] if source in self.sources else [one for one in self.lines if one not in self.sources]
            if len(strangers) >= MAX_FOUND:
                unused = next((one for one in strangers if self.lines[one].is_unused(now_s)), None)
                if unused is None:
                    return None
                del self.lines[unused]
            self.lines[source] = Line(N_AT_ONCE if source in self.sources else N_AT_ONCE_FOUND, now_s)
        return self.lines[source]


async def run_retrieval(retrieval: Retrieval, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Ask sources for what is wanted of them, until cancelled."""
    async with trio.open_nursery() as nursery:
        retrieval.nursery = nursery
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            retrieval.nursery = None
            retrieval.lines.clear()


@asynccontextmanager
async def _dag(retrieval: Retrieval, source: HttpSource, root: Cid) -> AsyncIterator[AsyncIterator[Streamed]]:
    async with retrieval.send(ask_for_dag(source, root)) as reply:
        said = judge(source, reply)
        if said is Said.BUSY:
            retrieval.failed(source, retrieval.lines[source], reply.retry_after_s)
        if said is not Said.CAR:
            if said in (Said.BLOCK, Said.OTHER_FORM):
                retrieval.no_dags.add(source)
            raise HttpFailed(f"{source} answers {reply.status}, and gives no CAR")
        async with aclosing(streamed(source, reply.chunks, retrieval.exchange.work)) as batches:
            yield batches


async def _pull(retrieval: Retrieval, source: HttpSource, line: Line, pull: Pull) -> None:
    """Ask for one block, or whether it is there; whatever becomes of it, the next one has its turn."""
    scope = trio.CancelScope(deadline=trio.current_time() + PULL_LIMIT_S)
    retrieval.scopes[source, pull.number] = scope
    failure: Remote | None = None
    try:
        with scope:
            await _ask(retrieval, source, line, pull.entry)
        if scope.cancelled_caught:
            failure = HttpFailed(f"{source} did not give a block within {PULL_LIMIT_S:.0f} s")
    except Remote as error:
        failure = error
    finally:
        del retrieval.scopes[source, pull.number]
    if line.done(pull.number) and failure is not None:
        if str(failure) != line.trouble:  # a dead one is asked again and again
            log.info("http_source_failed", source=str(source), error=str(failure))
        line.trouble = str(failure)
        retrieval.failed(source, line, failure.asked_s if isinstance(failure, Busy) else None)
    retrieval.begin(source, line)


async def _ask(retrieval: Retrieval, source: HttpSource, line: Line, entry: Entry) -> None:
    """Raises: HttpFailed where the source cannot be asked now."""
    for attempt in range(1, N_ATTEMPTS + 1):
        is_answered = False
        try:
            async with retrieval.send(ask_for(source, entry, as_car=line.speaks_car)) as reply:
                is_answered = True
                said = judge(source, reply)
                if said is Said.OTHER_FORM and attempt < N_ATTEMPTS:
                    line.speaks_car = not line.speaks_car  # some know one of the two alone
                    continue
                await _take(retrieval, source, line, entry, said, reply)
                return
        except HttpFailed:
            if is_answered or attempt == N_ATTEMPTS:
                raise


async def _take(retrieval: Retrieval, source: HttpSource, line: Line, entry: Entry, said: Said, reply: Reply) -> None:
    """Tell the core of wanting what an answer is."""
    wants, is_probe = retrieval.exchange.wants, entry.want_type is WantType.HAVE
    match said:
        case Said.NO_API:
            raise HttpFailed(f"{source} answers {reply.status}: is it the RPC API, and not the gateway?")
        case Said.BUSY:
            raise Busy(f"{source} answers {reply.status}", reply.retry_after_s)
        case Said.LACKS | Said.OTHER_FORM:
            line.answered()
            _lacks(retrieval, source, entry)
        case _ if is_probe:
            line.answered()
            carry_out(retrieval.exchange, wants.received(source, [], [entry.cid], [], trio.current_time()))
        case _:
            block = await _block(retrieval, source, entry.cid, reply, is_car=said is Said.CAR)
            line.answered()
            carry_out(retrieval.exchange, wants.received(source, [block], [], [], trio.current_time()))


def _lacks(retrieval: Retrieval, source: HttpSource, entry: Entry) -> None:
    wants = retrieval.exchange.wants
    carry_out(retrieval.exchange, wants.received(source, [], [], [entry.cid], trio.current_time()))


async def _block(retrieval: Retrieval, source: HttpSource, cid: Cid, reply: Reply, *, is_car: bool) -> Arrived:
    """Read a block and hash it. What cannot be it, however it is wrong, comes out as bytes that are not."""
    limit = MAX_CAR_BYTES if is_car else MAX_BLOCK_BYTES
    try:
        data = await _body(retrieval, source, reply, limit)
        job = partial(arrived_in_car if is_car else arrived, cid, data)
        return job() if len(data) <= INLINE_BYTES else await retrieval.exchange.work(job)
    except HttpFailed:
        raise
    except Remote:
        return Arrived(None, b"")


async def _body(retrieval: Retrieval, source: HttpSource, reply: Reply, limit: int) -> bytes:
    """The body, each piece of it a sign of life."""
    parts: list[bytes] = []
    n_bytes = 0
    async for chunk in reply.chunks:
        n_bytes += len(chunk)
        retrieval.exchange.wants.progress(source, n_bytes, trio.current_time())
        if n_bytes > limit:
            raise TooBig(f"{source} sends over {limit} bytes for a block")
        parts.append(chunk)
    return b"".join(parts)
