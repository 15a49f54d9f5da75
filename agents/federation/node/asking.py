"""Whom a member of an experiment asks for news, when, and where it is to be found."""

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from agents.federation.events.grants import is_told
from agents.federation.files.bringing import Bringing
from agents.federation.members.member import Member
from agents.federation.node.heard import forks_in, known_of
from agents.federation.node.secrets import Secrets
from agents.whereabouts import Whereabouts
from protocols import rounds_sync as sync
from protocols import telling
from protocols.entry import Entry
from protocols.errors import ProtocolError, Remote
from protocols.net import PeerInfo
from storage.cid import Cid
from storage.keys import PeerId

FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 15.0
ASK_GAP_S: Final = 0.2  # between two questions to one member
LONGEST_GAP_S: Final = 60.0  # the same where no leases go by, and for a while there has been nothing new
MEET_S: Final = 3.0  # between two questions to one member for where others are
DIALS_AT_ONCE: Final = 16  # to members: others tell where they are, and may make this node call at who knows whose door
ABSENT_GAP_S: Final = 0.05  # between two dials to all who are away together, at least


class Asking(Bringing):
    """A part of an experiment on a node."""

    cid: Cid
    secrets: Secrets
    member: Member
    _nursery: trio.Nursery | None
    _hear: Callable[[Sequence[Entry]], Awaitable[bool]]
    _heard_out: Callable[[], set[PeerId]]  # of whom no more is taken

    def __init__(self) -> None:
        self.heard: Final = trio.Event()  # some member has told what it knows
        self._followed: set[PeerId] = set()
        self._reached: set[PeerId] = set()
        self._rests: dict[PeerId, trio.Event] = {}
        self._dials: Final = trio.CapacityLimiter(DIALS_AT_ONCE)
        self._where: Final = Whereabouts()
        self._met_s: dict[PeerId, float] = {}
        self._n_stirred = 0
        self._has_begun = False
        self._proved: dict[PeerId, set[PeerId]] = {}  # by who told of it, whose history forks

    @property
    def is_over(self) -> bool:
        """Has it come to its end, been cancelled, or told all that it may?"""
        number = self.member.current()
        return self.book.cancelled() is not None or number > self.plan.n_rounds or not self.is_borne

    @property
    def is_borne(self) -> bool:
        """Does the plan's privacy budget bear the next round, if there is one, by all that is known?"""
        number = self.member.current()
        return number > self.plan.n_rounds or self.secrets.accounts.bears(self.book, number)

    def is_told(self, peer: PeerId) -> bool:
        """May this peer know of the experiment, now?"""
        return is_told(self.book, peer, self._ports.unix_s())

    def follow_members(self) -> None:
        """Ask those who are members now, each again and again."""
        for peer in self.told():
            if peer not in self._followed and peer != self._ports.identity.peer_id and self._nursery is not None:
                self._followed.add(peer)
                self._nursery.start_soon(self._follow, peer)

    def call_back(self, peer: PeerId) -> None:
        """A member asks: it is there, so it is asked in turn."""
        if peer in self._rests:
            self._rests[peer].set()

    def stir(self) -> None:
        """Something is known that was not, and it has not begun, or just has: who rests is asked, and asks in turn."""
        if not self._has_begun:
            self._has_begun = self.book.start() is not None
            self._n_stirred += 1
            for rest in self._rests.values():
                rest.set()

    @property
    def _is_hurried(self) -> bool:
        """Do leases go by? Before the start and after the end nobody waits for signs of life."""
        return self.book.start() is not None and not self.is_over

    async def _follow(self, peer: PeerId) -> None:
        """Ask one member for news, again and again; it may be away, or talk nonsense."""
        wait_s, gap_s, vain_s = FIRST_RETRY_S, ASK_GAP_S, 0.0
        while self.is_told(peer):
            began_s, n_stirred = trio.current_time(), self._n_stirred
            try:
                is_new, is_vain = await self._ask(peer)
                wait_s = FIRST_RETRY_S
                is_quiet = not self._is_hurried and not is_new and n_stirred == self._n_stirred
                gap_s = min(2 * gap_s, LONGEST_GAP_S) if is_quiet else ASK_GAP_S
                pause_s = gap_s if not self._is_hurried else max(0.0, began_s + gap_s - trio.current_time())
                # Who tells what strangers signed, which has to be verified, is not asked as fast as it answers.
                vain_s = max(ASK_GAP_S, min(2 * vain_s, self.plan.lease_s / 4)) if is_vain else 0.0
                await trio.sleep(vain_s)
            except (ProtocolError, trio.TooSlowError, OSError) as error:
                self._reached.discard(peer)
                if isinstance(error, Remote) and error.code in ("malformed", "too_big", "forged"):
                    self._ports.emit("peer_misbehaved", by=peer, code=error.code)
                n_absent = len(self._followed) - len(self._reached)
                pause_s, wait_s = max(wait_s, n_absent * ABSENT_GAP_S), min(2 * wait_s, self._longest_retry_s)
            await self._rest(peer, pause_s)
        self._followed.discard(peer)
        self._reached.discard(peer)

    @property
    def _longest_retry_s(self) -> float:
        if self._is_hurried:
            return min(LONGEST_RETRY_S, max(1.0, self.plan.lease_s))
        return LONGEST_GAP_S

    async def _rest(self, peer: PeerId, pause_s: float) -> None:
        """Return when that member is to be asked again: after the pause, or once it has asked."""
        rest = self._rests[peer] = trio.Event()
        with trio.move_on_after(pause_s):
            await rest.wait()
            await trio.sleep(ASK_GAP_S)
        del self._rests[peer]

    async def _ask(self, peer: PeerId) -> tuple[bool, bool]:
        """Did it tell anything that was taken; or nothing but what was not?

        A question is held open until there is something to tell, or the wait is over.
        """
        network = self._ports.network
        if peer not in network.peers():
            addresses = await trio.to_thread.run_sync(self._ports.catalog.peers.addresses, peer)
            async with self._dials:
                with trio.fail_after(telling.OPEN_TIMEOUT_S):
                    await network.connect(PeerInfo(peer, self._where.next_of(peer, addresses)))

        def on_here() -> None:
            self._reached.add(peer)
            self.member.alive(peer, trio.current_time())

        wait_s = min(sync.MAX_WAIT_S, self.plan.lease_s / 4) if self._is_hurried else sync.MAX_WAIT_S
        wait_s = wait_s if peer in self._reached else 0.0  # what there is by now is told at once
        proved = self._proved.setdefault(peer, set())
        known = known_of(self.book, self._heard_out(), proved)
        entries = await sync.ask(network, peer, self.cid, known, wait_s, on_here, self.book.__contains__)
        on_here()
        is_vain = bool(entries) and not await self._hear(entries)
        proved |= forks_in(self.book, entries)
        self.member.is_unsure &= bool(entries)  # it has told all that is lacking here
        self.heard.set()
        members = set(self.told())
        if len(self._reached) < len(members) - 1 and trio.current_time() >= self._met_s.get(peer, -math.inf):
            self._met_s[peer] = trio.current_time() + MEET_S
            for found in await sync.ask_members(network, peer, self.cid):
                if found.peer in members:
                    self._where.note(peer, found.peer, found.addresses)
        return bool(entries) and not is_vain, is_vain
