"""One workspace on one node: what its user says is signed, kept and told; what others say is asked for and kept.

What was said or heard is in the journal before anybody else hears of it from here. Nothing that a member says can stop
this; a disk that cannot be written to does, and the next start reads the journal again.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol, TypeVar

import structlog
import trio

from agents.adapters.ports import Ports
from agents.errors import AgentError
from agents.whereabouts import Whereabouts, members_here
from agents.workspace.claims import Allowance
from agents.workspace.duties import due, rekey_due
from agents.workspace.history import Node, Unlinked
from agents.workspace.journal import Journal
from agents.workspace.pace import ASK_GAP_S, LATE_GAP_S, PATIENCE_S, RESERVE_S, Heard
from agents.workspace.pen import write
from agents.workspace.room import MAX_BYTES, Room
from agents.workspace.space import Space
from protocols import replay
from protocols.entry import Entry
from protocols.envelope import Signed
from protocols.errors import Expired, ProtocolError, Remote, Replayed
from protocols.net import PeerInfo, TopicMessage
from protocols.telling import OPEN_TIMEOUT_S, Where
from protocols.workspaces import announce, sync
from protocols.workspaces.announce import MAX_HEADS, News
from protocols.workspaces.entries import Rekey, Statement
from protocols.workspaces.sealed import SECRETS
from protocols.workspaces.sync import MAX_HEADS as MAX_KNOWN_HEADS
from protocols.workspaces.sync import Desk
from storage.cid import Cid
from storage.errors import StorageError
from storage.keys import PeerId

MAX_FOLLOWED: Final = 6  # members that are asked at a time, each for a while
FOLLOW_S: Final = 120.0
TICK_S: Final = 1.0
IDLE_S: Final = 1.0
FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 30.0
TELL_GAP_S: Final = 0.5
TELL_EACH_S: Final = 0.1  # and for each member: all hear all news
LONGEST_TELL_GAP_S: Final = 30.0
MEET_S: Final = 10.0
CONFIRM_S: Final = 10.0
TURN_HEADS: Final = MAX_KNOWN_HEADS // 2  # by so many each question goes on, where heads are more than one holds

T = TypeVar("T")
Act = Callable[[Space], tuple[Statement, PeerId | None, Cid | None]]

log = structlog.get_logger(__name__)


class Work(Protocol):
    """Runs what waits for the disk, away from the event loop."""

    async def __call__(self, function: Callable[[], T], /) -> T:
        """What `function` returns, or raises."""


class Workspace:
    """Runs one. `hosts` are asked as well as members: who invited this node."""

    def __init__(
        self,
        ports: Ports,
        root: Entry,
        entries: Iterable[Entry],
        journal: Journal,
        hosts: Iterable[PeerId] = (),
        work: Work = trio.to_thread.run_sync,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._ports = ports
        self._work = work
        self.space: Final = Space(root, ports.identity)
        self.cid: Final = self.space.history.workspace
        self.hosts: Final = set(hosts)
        title, emit = self.space.history.root.title, ports.emit
        self.room: Final = Room(max_bytes, partial(emit, "workspace_full", workspace=str(self.cid), title=title))
        self._journal = journal
        self._lock = trio.Lock()
        self._n_asked = 0
        self._unsaved: set[Cid] = set()
        self._news = trio.Event()
        self.n_news = 0  # how often something was said or heard
        self._own_news = trio.Event()
        self._failure: Exception | None = None
        self._followed: set[PeerId] = set()
        self._retry: dict[PeerId, tuple[float, float]] = {}  # not before, and the wait after the next failure
        self._where: Final = Whereabouts()
        self._met_s: dict[PeerId, float] = {}
        self._rests: dict[PeerId, trio.Event] = {}  # of who is followed and not asked just now
        self._heard_s = -math.inf
        self._asking: set[PeerId] = set()
        self._allowance = Allowance()
        self._rng = random.Random(bytes(ports.identity.peer_id) + bytes(self.cid))
        self.reached: Final[set[PeerId]] = set()
        for entry in entries:
            try:
                self.space.add(entry)
            except Remote as error:
                log.warning("entry_left_out", workspace=str(self.cid), error=str(error))
                continue
            self.room.take(entry)

    # --- what its user says

    async def say(self, says: Statement, recipient: PeerId | None = None, link_to: Cid | None = None) -> Node:
        """Sign an entry; it is durable when this returns.

        Raises: Local, TooBig, NoKey, WorkspaceFull, StorageError, OSError.
        """
        return await self.do(lambda space: (says, recipient, link_to))

    async def do(self, act: Act, then: Callable[[Space], Iterable[Statement]] = lambda space: ()) -> Node:
        """Sign what `act` makes of the state as it is now, and at once what belongs behind it.

        In a private workspace a new key follows where one is due. Raises: as `say`, and what `act` and `then` raise.
        """
        async with self._lock:
            says, recipient, link_to = act(self.space)
            self.room.check(self._ports.identity.peer_id, says)
            if says.kind in SECRETS:  # nothing is said under a key that others have
                await self._rekey_if_due()
            node = await self._sign(says, recipient, link_to)
            for more in then(self.space):
                await self._sign(more)
            await self._rekey_if_due()
        self._own_news.set()
        return node

    async def renew_key(self) -> Node | None:
        """Have a new key begin, where this node may and others than the members have the last. Raises: as `say`."""
        async with self._lock:
            node = await self._rekey_if_due()
        self._own_news.set()
        return node

    async def _rekey_if_due(self) -> Node | None:
        rekey = rekey_due(self.space, self._ports.identity.peer_id)
        return await self._sign(rekey) if rekey is not None else None

    async def _sign(self, says: Statement, recipient: PeerId | None = None, link_to: Cid | None = None) -> Node:
        entry = write(self._ports.identity, self.space, says, recipient, link_to)
        placed = self.space.add(entry)
        self._add_unsaved(entry)
        await self._save([entry])
        assert placed is not None
        return placed.node

    async def news(self, seen: int | None = None) -> None:
        """Return when something was said or heard: from now on, or since `n_news` was `seen`."""
        if seen is None or seen == self.n_news:
            await self._news.wait()
        else:
            await trio.lowlevel.checkpoint()

    async def end(self, why: AgentError) -> None:
        """Sign and keep nothing from now on: who tries is told why."""
        async with self._lock:
            self._failure = why

    @property
    def n_journal_bytes(self) -> int:
        """How long the journal is."""
        return self._journal.n_bytes

    async def _save(self, entries: Sequence[Entry]) -> None:
        if self._failure is not None:
            raise self._failure
        with trio.CancelScope(shield=True):  # they are in the space already
            try:
                await self._work(partial(self._journal.append, entries))
            except (StorageError, OSError) as error:
                self._failure = error
                raise
            finally:
                self._wake()
        for entry in entries:
            self._unsaved.discard(entry.cid)

    def _add_unsaved(self, entry: Entry) -> None:
        self._unsaved.add(entry.cid)
        self.room.take(entry)

    def _wake(self) -> None:
        self.n_news += 1
        self._news.set()
        self._news = trio.Event()

    # --- what runs

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep up with the others, for ever. Raises: what the journal fails with."""
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_FOLLOWED):
                nursery.start_soon(self._follow_somebody)
            nursery.start_soon(self._tell)
            await nursery.start(self._listen)
            task_status.started()
            while True:
                seen = self.n_news
                await self._do_duties()
                with trio.move_on_after(TICK_S):
                    await self.news(seen)
                if self._failure is not None:
                    raise self._failure

    async def _do_duties(self) -> None:
        me = self._ports.identity.peer_id

        def may_support(author: PeerId) -> bool:
            return self._allowance.may_support(author, trio.current_time())

        while (says := due(self.space, me, self._ports.unix_s(), may_support=may_support)) is not None:
            node = await (self.renew_key() if isinstance(says, Rekey) else self.say(says))
            if node is not None and self.space.code(node):
                return  # what has no effect would be due again at once

    # --- what others are told

    def desk(self, peer: PeerId) -> Desk | None:
        """What answers a member that asks; one that was a member is told how it ended, and nothing beyond."""
        if self.may_read(peer):
            return Desk(self.space.history.root_entry, self._since, self.news, self._members_here)
        if not (allowed := self.space.farewell(peer)):
            return None

        def since(known: sync.Known) -> Iterator[Entry]:
            return (entry for entry in self._since(known) if entry.body_cid in allowed)

        return Desk(self.space.history.root_entry, since, self.news, tuple)

    def may_read(self, peer: PeerId) -> bool:
        """Is this peer a member, and its time not over by the clock here?"""
        return self.space.may_read(peer, self._ports.unix_s())

    def _since(self, known: sync.Known) -> Iterator[Entry]:
        return (entry for entry in self.space.history.lacking(known) if entry.cid not in self._unsaved)

    def _members_here(self) -> Iterator[Where]:
        return members_here(self._ports.network, self._members())

    async def _tell(self) -> None:
        """Announce what was said here, a while's entries at once."""
        topic, next_sequence = announce.topic_of(self.cid), self._ports.catalog.sequences.next
        while True:
            await self._own_news.wait()
            self._own_news = trio.Event()
            heads = tuple(self.space.history.heads()[:MAX_HEADS])
            unix_s = self._ports.unix_s()
            envelope = await self._ports.exchange.work(
                partial(
                    announce.seal_news,
                    self._ports.identity,
                    self.cid,
                    News(heads=heads),
                    partial(next_sequence, unix_s=unix_s),
                    unix_s,
                )
            )
            await self._ports.network.publish(topic, envelope)
            gap_s = TELL_EACH_S * len(self._members())
            await trio.sleep(min(max(gap_s, TELL_GAP_S), LONGEST_TELL_GAP_S))

    # --- what others say

    async def _listen(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear who has news, and ask who is not asked anyway."""
        async with (
            self._ports.network.subscribe(announce.topic_of(self.cid), self._is_valid) as messages,
            trio.open_nursery() as nursery,
        ):
            task_status.started()
            async for message in messages:
                peer, signed = message.sender, await self._news_of(message)
                if signed is not None and peer not in self._asking and len(self._asking) < MAX_FOLLOWED:
                    self._asking.add(peer)
                    nursery.start_soon(self._ask_once, peer, signed.body)

    def _is_valid(self, message: TopicMessage) -> bool | None:
        """Is this live news of a member? Others may know of a member first, and have other clocks: see `Validator`."""
        try:
            return True if self._open(message) else None
        except Remote as error:
            self._ports.emit("peer_misbehaved", by=message.sender, code=error.code)
            return False

    def _open(self, message: TopicMessage) -> Signed[News] | None:
        """Live news of a member; nobody else is listened to. Raises: TooBig, Malformed, Forged."""
        with suppress(Expired):
            if self.space.is_member(message.sender):
                return announce.open_news(message.data, self.cid, message.sender, self._ports.unix_s())
        return None

    async def _news_of(self, message: TopicMessage) -> Signed[News] | None:
        is_asked = message.sender in self._followed and message.sender not in self._rests
        if is_asked or (signed := self._open(message)) is None or self._knows(signed.body):
            return None
        try:
            await self._ports.exchange.work(
                partial(replay.admit, self._ports.catalog.replay, signed, self._ports.unix_s())
            )
        except Replayed:
            return None
        except Remote as error:
            log.info("news_refused", workspace=str(self.cid), error=str(error))
            return None
        return signed

    def _knows(self, news: News) -> bool:
        return all(head in self.space.history for head in news.heads)

    async def _ask_once(self, peer: PeerId, news: News) -> None:
        """Ask who has news, unless it comes by itself."""
        try:
            if len(self._members()) > MAX_FOLLOWED and trio.current_time() < self._heard_s + LATE_GAP_S:
                await trio.sleep(PATIENCE_S)
            if self._knows(news):
                return
            if peer in self._rests:
                self._rests[peer].set()
            elif peer not in self._followed:
                await self._ask(peer, 0.0)
        except (ProtocolError, trio.TooSlowError, OSError) as error:
            self._note_failure(peer, error)
        finally:
            self._asking.discard(peer)

    def _members(self) -> list[PeerId]:
        me = self._ports.identity.peer_id
        return [member.peer for member in self.space.members() if member.peer != me]

    def _next_peer(self) -> PeerId | None:
        """Whom to follow: who is connected goes first, and of those anybody."""
        now_s = trio.current_time()
        known = {*self._members(), *self.hosts} - self._followed - {self._ports.identity.peer_id}
        ready = sorted(peer for peer in known if self._retry.get(peer, (-math.inf, 0.0))[0] <= now_s)
        if not ready:
            return None
        self._rng.shuffle(ready)
        connected = set(self._ports.network.peers())
        return min(ready, key=lambda peer: peer not in connected)

    async def _follow_somebody(self) -> None:
        while True:
            peer = self._next_peer()
            if peer is None:
                await trio.sleep(IDLE_S)
                continue
            self._followed.add(peer)
            try:
                await self._follow(peer)
            finally:
                self._followed.discard(peer)

    async def _follow(self, peer: PeerId) -> None:
        """Ask one member for news again and again, until it fails or others shall have their turn.

        Several are followed; who tells first is asked most, the others now and then, as a reserve.
        """
        until_s, gap_s = trio.current_time() + FOLLOW_S, ASK_GAP_S
        while True:
            try:
                gap_s = (await self._ask(peer, sync.MAX_WAIT_S)).gap_s(gap_s)
                self._retry.pop(peer, None)
                await self._meet(peer)
            except (ProtocolError, trio.TooSlowError, OSError) as error:
                self._note_failure(peer, error)
                return
            if trio.current_time() > until_s and len(self._members()) > MAX_FOLLOWED:
                return
            await self._rest(peer, gap_s)

    async def _rest(self, peer: PeerId, gap_s: float) -> None:
        """Return when that member is to be asked again: after the gap, or when it has told the topic of news.

        While others tell in time, who tells late is a reserve.
        """
        until_s = trio.current_time() + RESERVE_S
        rest = self._rests[peer] = trio.Event()
        try:
            while not rest.is_set():
                with trio.move_on_after(gap_s):
                    await rest.wait()
                now_s = trio.current_time()
                is_small = len(self._members()) <= MAX_FOLLOWED  # everybody is asked, and relays little
                if is_small or gap_s < LATE_GAP_S or now_s >= min(until_s, self._heard_s + LATE_GAP_S):
                    return
        finally:
            del self._rests[peer]

    def _note_failure(self, peer: PeerId, error: Exception) -> None:
        self.reached.discard(peer)
        wait_s = self._retry.get(peer, (0.0, FIRST_RETRY_S))[1]
        self._retry[peer] = (trio.current_time() + wait_s, min(2 * wait_s, LONGEST_RETRY_S))
        if isinstance(error, Remote) and error.code in ("malformed", "too_big", "forged", *_REFUSED):
            self._ports.emit("peer_misbehaved", by=peer, code=error.code)

    async def _ask(self, peer: PeerId, wait_s: float) -> Heard:
        """Ask a peer for what is not here."""
        network = self._ports.network
        if peer not in network.peers():
            addresses = await self._work(partial(self._ports.catalog.peers.addresses, peer))
            with trio.fail_after(OPEN_TIMEOUT_S):
                await network.connect(PeerInfo(peer, self._where.next_of(peer, addresses)))
        self._n_asked += 1
        known = self.space.history.known(self._n_asked * TURN_HEADS)
        is_known = self.space.history.__contains__
        told = await sync.ask(network, peer, self.cid, known, wait_s, partial(self.reached.add, peer), is_known)
        n_new = await self.take(told.entries)
        if n_new > told.n_told - n_new:
            self._heard_s = trio.current_time()
        known_by = (node.author for cid in told.known if (node := self.space.history.get(cid)) is not None)
        authors, forks = {*known_by, *(entry.author for entry in told.entries)}, self.space.history.forks()
        is_vain = bool(authors) and all(peer in forks or not self.room.has_for(peer) for peer in authors)
        return Heard(n_new, told.n_told - n_new, is_vain)

    async def catch_up(self, peer: PeerId) -> None:
        """Ask a peer until it has no more to tell. Raises: what asking raises."""
        while (await self._ask(peer, 0.0)).n_new:
            pass

    async def confirm(self) -> bool:
        """Hear all that over half of the voters know now, this node among them; False where they cannot be reached."""
        me, voters = self._ports.identity.peer_id, self.space.voters()
        n_needed = len(voters) // 2 + 1 - (me in voters)
        n_heard = 0

        async def hear(peer: PeerId) -> None:
            nonlocal n_heard
            try:
                await self.catch_up(peer)
            except (ProtocolError, trio.TooSlowError, OSError) as error:
                self._note_failure(peer, error)
                return
            n_heard += 1
            if n_heard >= n_needed:
                nursery.cancel_scope.cancel()

        if n_needed > 0:
            with trio.move_on_after(CONFIRM_S):
                async with trio.open_nursery() as nursery:
                    for peer in voters:
                        if peer != me:
                            nursery.start_soon(hear, peer)
        return n_heard >= n_needed

    async def take(self, entries: Sequence[Entry]) -> int:
        """Take in what was told, as far as it fits. Raises: the first refusal that is the teller's fault."""
        wrong: list[Remote] = []
        async with self._lock:
            taken: list[Entry] = []
            for entry in entries:
                if entry.cid in self.space.history:
                    continue
                if not self.room.admits(entry.author):
                    continue
                try:
                    self.space.add(entry)
                except Remote as error:
                    if not isinstance(error, Unlinked):
                        wrong.append(error)
                    continue
                self._add_unsaved(entry)
                taken.append(entry)
            if taken:
                await self._save(taken)
        if wrong:
            raise wrong[0]
        return len(taken)

    async def _meet(self, peer: PeerId) -> None:
        """Ask where the others are, now and then, while some are out of reach."""
        now_s = trio.current_time()
        if now_s >= self._met_s.get(peer, -math.inf) and not self.reached.issuperset(self._members()):
            self._met_s[peer] = now_s + MEET_S
            members = set(self._members())
            for found in await sync.ask_members(self._ports.network, peer, self.cid):
                if found.peer in members:
                    self._where.note(peer, found.peer, found.addresses)


_REFUSED: Final = ("foreign", "bad_links", "bad_sequence", "full")
