"""Hear of adapters for the models that stand here, judge each announcement, and bring in what is wanted.

Announcements come over topics and, from peers that connect, by catch-up. Both take the same way: verify, ask the trust
policy, refuse replays, decide; then `obtain` fetches. Every refusal is an event with a reason.
"""

import math
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

import trio

from agents.adapters.announce import Turnstile
from agents.adapters.decide import TRUST_KIND, Accept, AlreadyKnown, Facts, Refuse, decide
from agents.adapters.obtain import Held, Job, Waiting, obtain
from agents.adapters.ports import Ports
from protocols import adapters as wire
from protocols import replay
from protocols.adapters import Announcement
from protocols.envelope import Signed
from protocols.errors import Expired, Remote, Replayed, Tampered
from protocols.net import TopicMessage
from protocols.routing import meet_subscribers
from storage.catalog.adapters import AdapterRow, AdapterState
from storage.cid import Cid
from storage.keys import PeerId

MAX_FETCHES: Final = 4
MAX_FETCHES_OF_ONE: Final = 2  # publisher
MAX_WAITING: Final = 256
MAX_ASKS: Final = 8
ASK_EVERY_S: Final = 10.0
ASK_AGAIN_S: Final = 300.0
ASK_TIMEOUT_S: Final = 30.0
MAX_RESUMED: Final = MAX_FETCHES // 2
RESUME_S: Final = 10.0
RETRY_S: Final = 30.0
LATE_S: Final = 3600.0
MAX_TOLD: Final = 4096
TOLD_S: Final = 3600.0


class Told(NamedTuple):
    """A refusal that was reported."""

    peer: PeerId
    code: str
    subject: bytes


class Refusals:
    """Which refusals were reported lately? So that who repeats a lie does not fill the log with it."""

    def __init__(self) -> None:
        self._told_s: OrderedDict[Told, float] = OrderedDict()

    def is_news(self, refusal: Told, now_s: float) -> bool:
        """Was this not reported within the last hour? Remember that it is now."""
        told_s = self._told_s.get(refusal)
        if told_s is not None and now_s - told_s < TOLD_S:
            return False
        self._told_s[refusal] = now_s
        self._told_s.move_to_end(refusal)
        if len(self._told_s) > MAX_TOLD:
            self._told_s.popitem(last=False)
        return True


class NewBase(NamedTuple):
    """A model that takes adapters for this fingerprint came."""

    fingerprint: Cid


class NewTrust(NamedTuple):
    """The user trusts this publisher now: what it announced before may be wanted."""

    peer: PeerId


class Wanted(NamedTuple):
    """The user asks for an adapter: its row says so, whatever it said before."""

    manifest: Cid


News = NewBase | NewTrust | Wanted
_KINDS: Final = {Refuse: "adapter_refused", Waiting: "adapter_waiting", Held: "adapter_held"}


class Late(NamedTuple):
    """A job that found nobody to fetch from, and since when."""

    job: Job
    since_s: float


@dataclass(eq=False)
class Intake:
    """What the tasks of one subscriber share."""

    ports: Ports
    jobs: trio.MemorySendChannel[Job]
    rng: random.Random
    on_ready: Callable[[Cid], None]
    bases: set[Cid] = field(default_factory=set)
    in_hand: set[Cid] = field(default_factory=set)
    refused: OrderedDict[Cid, None] = field(default_factory=OrderedDict)  # for good, as long as no base is added
    held: OrderedDict[Cid, None] = field(default_factory=OrderedDict)  # by the settings
    late: OrderedDict[Cid, Late] = field(default_factory=OrderedDict)
    n_fetching: Counter[PeerId] = field(default_factory=Counter)
    passed_by: list[Job] = field(default_factory=list)  # all in hand
    tried_s: dict[Cid, float] = field(default_factory=dict)
    refusals: Refusals = field(default_factory=Refusals)
    turnstile: Turnstile = field(default_factory=partial(Turnstile, ASK_EVERY_S))
    asks: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, MAX_ASKS))


async def run_subscriber(
    ports: Ports,
    news: trio.MemoryReceiveChannel[News],
    rng: random.Random,
    *,
    on_ready: Callable[[Cid], None] = lambda manifest: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Hear of adapters for every local model, for ever; `news` brings what the user changes meanwhile.

    `on_ready` is told the manifest of each adapter that was brought in.
    """
    send_jobs, receive_jobs = trio.open_memory_channel[Job](MAX_WAITING)
    intake = Intake(ports, send_jobs, rng, on_ready)
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_FETCHES):
            nursery.start_soon(_fetch_jobs, intake, receive_jobs.clone())
        for base in sorted({base for model in ports.catalog.models.list() for base in model.accepts}):
            await _add_base(intake, Cid.parse(base), nursery)
        nursery.start_soon(_catch_up, intake, nursery)
        nursery.start_soon(_resume, intake)
        nursery.start_soon(_ask_again, intake, nursery)
        task_status.started()
        async for item in news:
            for peer in await _take_up(intake, item, nursery):
                if peer in ports.network.peers():
                    nursery.start_soon(_ask, intake, peer)


async def _take_up(intake: Intake, item: News, nursery: trio.Nursery) -> Collection[PeerId]:
    """Do what the news ask for; return the peers to be asked what they announce."""
    match item:
        case NewBase(fingerprint):
            await _add_base(intake, fingerprint, nursery)
            return intake.ports.network.peers()
        case NewTrust(peer):
            return [peer]
        case Wanted(manifest):
            for left in (intake.refused, intake.held):
                left.pop(manifest, None)
            row = intake.ports.catalog.adapters.get(manifest)
            if row is None:
                return []
            _enqueue(intake, _job_of(row))
            return [row.publisher]


async def _add_base(intake: Intake, base: Cid, nursery: trio.Nursery) -> None:
    if base not in intake.bases:
        intake.bases.add(base)
        intake.refused.clear()
        is_listening = trio.Event()
        nursery.start_soon(_listen, intake, base, is_listening)
        await is_listening.wait()
        nursery.start_soon(meet_subscribers, intake.ports.network, wire.topic_of(base), intake.rng)


async def _listen(intake: Intake, base: Cid, is_listening: trio.Event) -> None:
    """Judge what comes over one topic, for ever."""

    def is_valid(message: TopicMessage) -> bool | None:
        opened = _open(intake, base, message.sender, message.data)
        if isinstance(opened, Refuse):
            return None if opened.code == Expired.code else False  # its time may have run out on the way
        return True

    async with intake.ports.network.subscribe(wire.topic_of(base), is_valid) as messages:
        is_listening.set()
        async for message in messages:
            await _hear(intake, base, message.sender, message.data)


async def _catch_up(intake: Intake, nursery: trio.Nursery) -> None:
    """Ask every peer that connects what it announces."""
    async with intake.ports.network.watch_peers() as changes:
        async for change in changes:
            if change.is_connected and intake.turnstile.admits(change.peer, trio.current_time()):
                nursery.start_soon(_ask, intake, change.peer)


async def _ask_again(intake: Intake, nursery: trio.Nursery) -> None:
    """Ask every peer now and then: what is for members is not spoken of on the topic, and gossip loses messages."""
    while True:
        await trio.sleep(ASK_AGAIN_S)
        for peer in intake.ports.network.peers():
            nursery.start_soon(_ask, intake, peer)


async def _ask(intake: Intake, peer: PeerId) -> None:
    if not intake.bases:
        return
    async with intake.asks:
        try:
            with trio.move_on_after(ASK_TIMEOUT_S):
                for base, envelope in await wire.ask(intake.ports.network, peer, intake.bases):
                    await _hear(intake, base, peer, envelope)
        except Remote:
            return  # strangers' clients speak no /covey protocol, and peers come and go


async def _resume(intake: Intake) -> None:
    """Take up what was begun and not finished, now and again, for ever; half of the fetches are left to what is new."""
    while True:
        room = max(MAX_RESUMED - len(intake.in_hand), 0)
        rows = await intake.ports.exchange.work(partial(_unfinished_rows, intake.ports))
        for job in _unfinished(intake, rows)[:room]:
            _enqueue(intake, job)
        await trio.sleep(RESUME_S)


def _unfinished_rows(ports: Ports) -> list[AdapterRow]:
    return [
        row
        for state in (AdapterState.WANTED, AdapterState.FETCHING, AdapterState.HEARD)
        for row in ports.catalog.adapters.query(state=state, is_own=False, limit=MAX_WAITING)
        if ports.catalog.peers.is_trusted(row.publisher, TRUST_KIND)
    ]


def _unfinished(intake: Intake, rows: list[AdapterRow]) -> list[Job]:
    """The jobs that failed or that a restart cut short: what the user wants first, then those untried for longest."""
    now_s = trio.current_time()
    wanted = {row.manifest for row in rows if row.state is AdapterState.WANTED}
    for manifest in wanted & intake.held.keys():
        del intake.held[manifest]  # it was asked for while it was looked at
    jobs = {row.manifest: _job_of(row) for row in rows}
    jobs |= {manifest: late.job for manifest, late in intake.late.items() if now_s - late.since_s < LATE_S}
    tried_s = {manifest: intake.tried_s.get(manifest, -math.inf) for manifest in jobs}
    intake.tried_s = {manifest: at_s for manifest, at_s in tried_s.items() if at_s > -math.inf}
    due = [manifest for manifest in jobs if manifest not in intake.held and now_s - tried_s[manifest] >= RETRY_S]
    order = sorted(due, key=lambda manifest: (manifest not in wanted, tried_s[manifest], manifest))
    return [jobs[manifest] for manifest in order]


async def _fetch_jobs(intake: Intake, jobs: trio.MemoryReceiveChannel[Job]) -> None:
    """Fetch one job after the other; a publisher that has its share of the places lets others pass."""
    async for job in jobs:
        if intake.n_fetching[job.publisher] >= MAX_FETCHES_OF_ONE:
            _pass_by(intake, job)
            continue
        intake.n_fetching[job.publisher] += 1
        try:
            await _fetch(intake, job)
        finally:
            intake.n_fetching[job.publisher] -= 1
            _call_up(intake, job.publisher)


def _pass_by(intake: Intake, job: Job) -> None:
    """Have it wait. One too many is dropped: it will be announced again."""
    if len(intake.passed_by) < MAX_WAITING:
        intake.passed_by.append(job)
    else:
        intake.in_hand.discard(job.announcement.manifest)


def _call_up(intake: Intake, publisher: PeerId) -> None:
    """A place of the publisher's is free: its jobs stand in line again, or are dropped where it is full."""
    waiting = [job for job in intake.passed_by if job.publisher == publisher]
    intake.passed_by = [job for job in intake.passed_by if job.publisher != publisher]
    for job in waiting:
        intake.in_hand.discard(job.announcement.manifest)
        _enqueue(intake, job)
    if not intake.n_fetching[publisher]:
        del intake.n_fetching[publisher]


async def _fetch(intake: Intake, job: Job) -> None:
    manifest = job.announcement.manifest
    intake.tried_s[manifest] = trio.current_time()
    try:
        known = intake.ports.catalog.adapters.get(manifest)
        is_removed = known is not None and known.state is AdapterState.REMOVED
        outcome = None if is_removed else await obtain(intake.ports, job)
        if outcome is None and not is_removed:
            _note_ready(intake, manifest)
    finally:
        intake.in_hand.discard(manifest)
    if isinstance(outcome, Waiting):
        intake.late.setdefault(manifest, Late(job, trio.current_time()))
        if len(intake.late) > MAX_WAITING:
            intake.late.popitem(last=False)
    else:
        intake.late.pop(manifest, None)
    if outcome is not None:
        _tell(intake, job.base, job.publisher, outcome, job.announcement)
    if isinstance(outcome, Held):
        _note(intake.held, manifest)
    if isinstance(outcome, Refuse) and outcome.code != Tampered.code:
        _note(intake.refused, manifest)


def _note_ready(intake: Intake, manifest: Cid) -> None:
    """It is here. What is held may be a newer version of it: that is judged again."""
    intake.held.clear()
    intake.on_ready(manifest)


def _note(manifests: OrderedDict[Cid, None], manifest: Cid) -> None:
    manifests[manifest] = None
    if len(manifests) > MAX_TOLD:
        manifests.popitem(last=False)


async def _hear(intake: Intake, base: Cid, sender: PeerId, envelope: bytes) -> None:
    """Verify, ask the trust policy, refuse replays, decide."""
    signed = _open(intake, base, sender, envelope)
    if isinstance(signed, Refuse):
        return
    try:
        decision = await intake.ports.exchange.work(partial(_judge, intake, base, signed))
    except Remote as error:
        decision = Refuse(error.code, str(error))
    if isinstance(decision, Refuse):
        _tell(intake, base, sender, decision, signed.body)
    elif isinstance(decision, Accept):
        _enqueue(intake, Job(base, sender, signed.body))


def _open(intake: Intake, base: Cid, sender: PeerId, envelope: bytes) -> Signed[Announcement] | Refuse:
    try:
        return wire.open_announcement(envelope, base, sender, intake.ports.unix_s())
    except Remote as error:
        refusal = Refuse(error.code, str(error))
        _tell(intake, base, sender, refusal)
        return refusal


def _judge(intake: Intake, base: Cid, signed: Signed[Announcement]) -> Accept | Refuse | object:
    """Raises: Replayed, TooManyAuthors."""
    catalog, announcement = intake.ports.catalog, signed.body
    facts = Facts(
        me=intake.ports.network.peer_id,
        is_trusted=catalog.peers.is_trusted(signed.author, TRUST_KIND),
        is_settled=any(announcement.manifest in each for each in (intake.in_hand, intake.refused, intake.held)),
        known=catalog.adapters.get(announcement.manifest),
        versions=tuple(
            catalog.adapters.query(publisher=signed.author, name=announcement.name, base=str(base), limit=MAX_WAITING)
        ),
    )
    if facts.is_trusted:  # strangers must not fill the table of sequences
        try:
            replay.admit(catalog.replay, signed, intake.ports.unix_s())
        except Replayed:
            if facts.known is None or facts.known.state is not AdapterState.READY:
                raise
            return AlreadyKnown()  # gossip brings old copies to whoever was restarted: no lie, and nothing to do
    return decide(announcement, signed.author, facts)


def _enqueue(intake: Intake, job: Job) -> None:
    """Have it fetched. A full queue drops it: it will be announced, or resumed, again."""
    manifest = job.announcement.manifest
    if manifest in intake.in_hand:
        return
    try:
        intake.jobs.send_nowait(job)
    except trio.WouldBlock:
        return
    intake.in_hand.add(manifest)


def _tell(
    intake: Intake, base: Cid, peer: PeerId, reason: Refuse | Waiting | Held, announcement: Announcement | None = None
) -> None:
    subject = bytes(announcement.manifest) if announcement else b""
    if intake.refusals.is_news(Told(peer, reason.code, subject), trio.current_time()):
        named = {} if announcement is None else _names(announcement)
        kind = _KINDS[type(reason)]
        intake.ports.emit(kind, by=peer, code=reason.code, text=reason.text, peer=str(peer), base=str(base), **named)


def _names(announcement: Announcement) -> dict[str, str | int]:
    return {"manifest": str(announcement.manifest), "name": announcement.name, "version": announcement.version}


def _job_of(row: AdapterRow) -> Job:
    announcement = Announcement(manifest=row.manifest, name=row.name, version=row.version, n_bytes=row.n_bytes)
    return Job(Cid.parse(row.base), row.publisher, announcement)
