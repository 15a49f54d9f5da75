"""Bring in one announced adapter: its manifest alone, then its files, then the proof that they are what it says."""

from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import structlog
import trio

from agents.adapters.decide import Refuse, judge_manifest
from agents.adapters.manifests import pin, pinned_state, read_stored, row_of, unpin
from agents.adapters.passing import MAX_PROVIDERS, PASSED_ON
from agents.adapters.policy import DAY_S, Fetch, Leave, Moment, Verdict, judge_files
from agents.adapters.ports import Ports
from agents.adapters.preflight import preflight
from agents.adapters.shelf import put_on_shelf
from agents.artifacts.peek import Peek, check_kind
from agents.artifacts.rows import artifact_row
from agents.errors import AgentError, BadAdapter
from protocols import adapters as wire
from protocols.adapters import Announcement, Manifest
from protocols.entry import Entry, read_entry, stored_entry
from protocols.errors import DialFailed, Malformed, NoProviders, Remote, StreamBroken, Tampered, TimedOut
from protocols.fetch.dag import Progress, fetch_blocks, fetch_dag
from protocols.net import PeerInfo
from storage.catalog.adapters import AdapterState
from storage.cid import Cid
from storage.codecs import links as codec_links
from storage.errors import InvalidBlock, InvalidName, StorageError, TooLarge, UnknownCodec
from storage.keys import PeerId
from storage.pins import PinState

MANIFEST_TIMEOUT_S: Final = 20.0
PATIENCE_S: Final = 120.0
SLOWEST_BYTES_PER_S: Final = 16 << 10  # slower than this, files give up their place and are tried again later
MIN_BLOCKS: Final = 256
MEAN_BLOCK_BYTES: Final = 4 << 10  # files come in blocks of at least this, on average
SMALL_BYTES: Final = 64 << 20
MAX_UNPACKING: Final = 16  # one block may stand in a file many times
OVERHEAD_FRAC: Final = 0.01  # of the files' bytes, for the blocks that hold them together
OVERHEAD_BYTES: Final = 64 << 10

log = structlog.get_logger(__name__)

_BAD_CONTENT: Final = (InvalidBlock, InvalidName, TooLarge, UnknownCodec)
_MAYBE_HIDDEN: Final = ". It may be that its publisher does not trust this node: there, covey peer trust PEER"
_PASSING: Final = (NoProviders, TimedOut, DialFailed, StreamBroken)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not the publisher's lie but the network's weather: it is tried again later."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Held:
    """Nothing is wrong with it, but the settings leave it until the user asks for it."""

    code: str
    text: str


class Job(NamedTuple):
    """An adapter to be fetched: announced by `publisher` on the topic of `base`."""

    base: Cid
    publisher: PeerId
    announcement: Announcement


Outcome = Refuse | Waiting | Held | None


class Arrival:
    """How much of a transfer came, and when another tenth is here: often enough for people, seldom enough for a log."""

    def __init__(self, n_total_bytes: int) -> None:
        self._n_total_bytes = n_total_bytes
        self._last = 0
        self.n_bytes = 0

    def note(self, progress: Progress) -> bool:
        """So much is here. Returns: is this the first time that so many tenths are?"""
        self.n_bytes = progress.n_bytes
        tenth = 10 * (progress.n_bytes + progress.n_reused_bytes) // self._n_total_bytes
        is_news, self._last = tenth > self._last, max(tenth, self._last)
        return is_news


async def obtain(ports: Ports, job: Job) -> Outcome:
    """Fetch, verify and put on the shelf; tell by events how it goes. Returns: why it is not ready, if it is not."""
    cid = job.announcement.manifest
    try:
        with ports.store.lease():  # nothing that comes is swept before it is pinned
            outcome = await _obtain(ports, job)
    except _PASSING as error:
        return Waiting(error.code, f"{error}{_MAYBE_HIDDEN if isinstance(error, NoProviders) else ''}")
    except (Remote, AgentError) as error:
        outcome = Refuse(error.code, str(error))
    except _BAD_CONTENT as error:
        outcome = Refuse("bad_adapter", str(error))
    except (StorageError, OSError) as error:  # our disk's trouble: it says so and goes on when that is mended
        return Waiting("storage_failed", str(error))
    # A tampered block is its sender's doing: the adapter itself may yet come from another.
    if isinstance(outcome, Refuse) and outcome.code != Tampered.code:
        await ports.exchange.work(partial(_note_refused, ports, cid, outcome.text))
    return outcome


async def _obtain(ports: Ports, job: Job) -> Outcome:
    providers = _providers(ports, job)
    entry = await fetch_entry(ports, job.announcement.manifest, providers)
    accepted = [str(job.base)] if ports.catalog.models.accepting(str(job.base)) else []
    manifest = judge_manifest(entry, job.announcement, job.publisher, job.base, accepted)
    if isinstance(manifest, Refuse):
        return manifest
    is_news = await ports.exchange.work(partial(_note_heard, ports, entry, manifest))
    verdict, n_missing_bytes = await _let_in(ports, job, manifest)
    if is_news or isinstance(verdict, Fetch):
        _tell_heard(ports, job, entry, manifest)
    if not isinstance(verdict, Fetch):
        await ports.exchange.work(partial(_note_put_off, ports, entry.cid))
        text = f"{verdict.text}. To fetch it now: covey adapter fetch {manifest.name}"
        return Held("held", text) if isinstance(verdict, Leave) else Waiting(verdict.code, text)
    try:
        await _bring_in(ports, job, entry, manifest, providers)
    finally:
        ports.spending.n_bytes -= n_missing_bytes
    return None


def _tell_heard(ports: Ports, job: Job, entry: Entry, manifest: Manifest) -> None:
    ports.emit(
        "adapter_heard",
        manifest=str(entry.cid),
        name=manifest.name,
        version=manifest.version,
        publisher=str(job.publisher),
        n_bytes=manifest.n_bytes,
        base=str(job.base),
        by=job.publisher,
    )


async def _let_in(ports: Ports, job: Job, manifest: Manifest) -> tuple[Verdict, int]:
    """May its files come now, and how many bytes lack? These count as coming before anything else is decided."""
    async with ports.spending.turn:
        verdict, n_missing_bytes = await ports.exchange.work(
            partial(_verdict, ports, job, manifest, ports.spending.n_bytes)
        )
        if isinstance(verdict, Fetch):
            ports.spending.n_bytes += n_missing_bytes
    return verdict, n_missing_bytes


def _verdict(ports: Ports, job: Job, manifest: Manifest, n_coming_bytes: int) -> tuple[Verdict, int]:
    came = ports.catalog.adapters.came_since(ports.unix_s() - DAY_S)
    n_missing_bytes = max(0, manifest.n_bytes - came[job.announcement.manifest])  # what came is not fetched again
    known = ports.catalog.adapters.get(job.announcement.manifest)
    if known is not None and known.state is AdapterState.WANTED:
        return Fetch(), n_missing_bytes
    versions = ports.catalog.adapters.query(
        publisher=job.publisher, name=manifest.name, base=str(job.base), state=AdapterState.READY
    )
    has_older = any(row.version < manifest.version for row in versions)
    moment = Moment(has_older, came.total() + n_coming_bytes, ports.is_busy())
    return judge_files(ports.policy, n_missing_bytes, moment), n_missing_bytes


async def _bring_in(ports: Ports, job: Job, entry: Entry, manifest: Manifest, providers: list[PeerInfo]) -> None:
    started_s = trio.current_time()
    await ports.exchange.work(partial(_note_fetching, ports, entry))
    find_more = partial(ports.network.find_providers, manifest.files, MAX_PROVIDERS)
    peek = Peek(ports, providers, find_more, PASSED_ON[manifest.audience], job.publisher)
    arrival = Arrival(manifest.n_bytes)
    try:
        await preflight(peek, manifest)
        fetched = await _fetch_files(ports, job.publisher, entry.cid, manifest, providers, arrival)
    finally:  # what breaks off, or is refused, cost as much as what is good
        if n_bytes := peek.n_bytes + arrival.n_bytes:
            with trio.CancelScope(shield=True):
                await ports.exchange.work(partial(_note_came, ports, entry.cid, n_bytes))
    folder = await ports.exchange.work(partial(put_on_shelf, ports, entry.cid, manifest))
    await ports.exchange.work(partial(_note_ready, ports, entry, manifest, str(folder)))
    ports.emit(
        "adapter_ready",
        manifest=str(entry.cid),
        name=manifest.name,
        version=manifest.version,
        publisher=str(job.publisher),
        base=str(job.base),
        folder=str(folder),
        n_fetched_bytes=fetched.n_bytes,
        n_reused_bytes=fetched.n_reused_bytes,
        took_s=round(trio.current_time() - started_s, 3),
    )


async def _fetch_files(
    ports: Ports, publisher: PeerId, cid: Cid, manifest: Manifest, providers: list[PeerInfo], arrival: Arrival
) -> Progress:
    """The files' blocks. What the publisher itself gives may be passed on as it signed; what others give, by no means:
    the manifest may name content that is theirs. Raises: Remote, BadAdapter, InvalidBlock."""
    try:
        with trio.fail_after(PATIENCE_S + manifest.n_bytes / SLOWEST_BYTES_PER_S):
            fetched = await fetch_dag(
                ports.exchange,
                manifest.files,
                providers=providers,
                find_more=partial(ports.network.find_providers, manifest.files, MAX_PROVIDERS),
                on_progress=partial(_tell_progress, ports, publisher, cid, manifest, arrival),
                links=file_links,
                max_blocks=MIN_BLOCKS + manifest.n_bytes // MEAN_BLOCK_BYTES,
                max_bytes=int(manifest.n_bytes * (1 + OVERHEAD_FRAC)) + OVERHEAD_BYTES,
                show=PASSED_ON[manifest.audience],
                voucher=publisher,
            )
    except trio.TooSlowError:
        raise TimedOut(f"its files came slower than {SLOWEST_BYTES_PER_S >> 10} KiB/s") from None
    if manifest.n_bytes > SMALL_BYTES + MAX_UNPACKING * (fetched.n_bytes + fetched.n_reused_bytes):
        raise BadAdapter(f"it unpacks to more than {MAX_UNPACKING} times what it weighs on the wire")
    return fetched


def file_links(cid: Cid, data: bytes) -> list[Cid]:
    """The links of a file's or folder's block. Raises: InvalidBlock for any other kind."""
    check_kind(cid)
    return list(codec_links(cid, data))


def _providers(ports: Ports, job: Job) -> list[PeerInfo]:
    """Who may have it: its publisher, and those who listen for the same base."""
    listeners = ports.network.topic_peers(wire.topic_of(job.base))
    others = [PeerInfo(peer) for peer in listeners if peer != job.publisher]
    return [PeerInfo(job.publisher, job.announcement.addresses), *others[: MAX_PROVIDERS - 1]]


async def fetch_entry(
    ports: Ports, cid: Cid, providers: list[PeerInfo], *, idle_timeout_s: float = MANIFEST_TIMEOUT_S
) -> Entry:
    """The manifest's two blocks, alone, verified. Raises: Remote."""
    find_more = partial(ports.network.find_providers, cid, MAX_PROVIDERS)
    fetch = partial(
        fetch_blocks, ports.exchange, providers=providers, find_more=find_more, idle_timeout_s=idle_timeout_s
    )
    await fetch([cid])
    body, _ = read_entry(ports.store.get(cid))
    await fetch([body])
    entry = stored_entry(ports.store, cid)
    if entry.cid != cid:
        raise Malformed(f"its manifest was announced as {cid}, a name of {entry.cid} that no entry has")
    return entry


def _note_heard(ports: Ports, entry: Entry, manifest: Manifest) -> bool:
    """Keep what it says of itself, unless that is kept: one that waits is looked at often. Returns: was that new?"""
    if ports.catalog.adapters.get(entry.cid) and pinned_state(ports, entry, manifest) is not AdapterState.REMOVED:
        return False
    unix_s = ports.unix_s()
    pin(ports, entry, manifest, PinState.FETCHING)
    # Its author signed who may have these two; what they link to has levels of its own.
    ports.store.set_floor((entry.cid, entry.body_cid), PASSED_ON[manifest.audience])
    with ports.catalog.transaction():
        ports.catalog.artifacts.put(artifact_row(entry, is_own=False))
        return ports.catalog.adapters.upsert(row_of(entry, manifest, unix_s))


def _note_fetching(ports: Ports, entry: Entry) -> None:
    _move(ports, entry.cid, AdapterState.HEARD, AdapterState.FETCHING)


def _note_put_off(ports: Ports, cid: Cid) -> None:
    """What was begun before the settings were others is not under way any more."""
    _move(ports, cid, AdapterState.FETCHING, AdapterState.HEARD)


def _move(ports: Ports, cid: Cid, before: AdapterState, after: AdapterState) -> None:
    row = ports.catalog.adapters.get(cid)
    if row is not None and row.state is before:
        ports.catalog.adapters.set_state(cid, after, ports.unix_s())


def _note_came(ports: Ports, cid: Cid, n_bytes: int) -> None:
    """Uncounted is better than unheard: what broke it off is the error to be told."""
    try:
        ports.catalog.adapters.note_came(cid, n_bytes, ports.unix_s())
    except StorageError as error:
        log.warning("arrival_not_counted", manifest=str(cid), n_bytes=n_bytes, error=repr(error))


def _note_ready(ports: Ports, entry: Entry, manifest: Manifest, folder: str) -> None:
    pin(ports, entry, manifest, PinState.COMPLETE)
    ports.catalog.adapters.set_state(entry.cid, AdapterState.READY, ports.unix_s(), folder=folder)


def _note_refused(ports: Ports, cid: Cid, reason: str) -> None:
    """Refuse for good: what was fetched is no longer held."""
    if ports.catalog.adapters.get(cid) is not None:
        unpin(ports, *read_stored(ports.store, cid))
        ports.catalog.adapters.set_state(cid, AdapterState.REFUSED, ports.unix_s(), reason=reason)


def _tell_progress(
    ports: Ports, publisher: PeerId, cid: Cid, manifest: Manifest, arrival: Arrival, progress: Progress
) -> None:
    if arrival.note(progress):
        ports.emit(
            "adapter_progress",
            manifest=str(cid),
            name=manifest.name,
            version=manifest.version,
            n_bytes=progress.n_bytes + progress.n_reused_bytes,
            n_total_bytes=manifest.n_bytes,
            by=publisher,
        )
