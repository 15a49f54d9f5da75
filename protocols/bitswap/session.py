"""The core of wanting: which peer to ask for which block, when to ask another, and whom not to believe.

A session is one reader's errand (a DAG, say) with the peers that may serve it; a server that is asked over HTTP counts
as one of them. All sessions share one core, so a block is asked for once however many want it. Blocks are keyed by
multihash: peers differ in the CID version they answer with.

How a want travels: it goes as want-block to the peer that is likely to answer soonest - fewest asks in hand, weighted
by how long its blocks take - while peers that have not proved themselves yet get a want-have. DONT_HAVE, silence and
disconnection each put it back in line. A silent peer is left alone for a while; the ask is cancelled there once another
peer takes it, so duplicates are bounded by what was on the wire. A proven peer with nothing in hand takes over the last
asks of one that has many; what one is at for long is asked of another, too (`helping`).

A peer that says how much it has in hand for us, and sends none of it yet, is not silent: others have their turn first.
What only waits so is asked of whoever else has it too; the first one that says that it comes now is counted on, and the
others are told to forget it. So a place in a queue is never lost, and nothing is sent twice but what two begin at once.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Final

from protocols.bitswap.actions import Action, Arrived, Got, Misbehaved, NeedProviders, Send, sends
from protocols.bitswap.errand import Errand, Want
from protocols.bitswap.helping import lingering, waiting
from protocols.bitswap.line import Line
from protocols.bitswap.standing import LARGE_BYTES, MAX_IN_VAIN, MAX_PAUSE_S, PAUSE_S, STALL_S, Peer, quickest
from protocols.bitswap.wire import Entry, WantType
from protocols.errors import Local
from protocols.sources import Giver
from storage.cid import Cid

MAX_WANTS: Final = 256  # per session
MAX_SESSIONS: Final = 1024
MAX_PROVIDERS: Final = 64  # per session
MAX_PROBES: Final = 8  # want-haves for one block
MAX_LACKS_IN_A_ROW: Final = 16

TAMPERED: Final = "tampered"
UNWANTED: Final = "unwanted"

__all__ = ("Action", "Arrived", "Got", "Misbehaved", "NeedProviders", "Send", "Wants")


class Wants:
    """All that this node wants from others. Every method returns the actions to carry out, in order."""

    def __init__(self) -> None:
        self._peers: dict[Giver, Peer] = {}
        self._wants: dict[bytes, Want] = {}
        self._line = Line()  # wants that nobody is counted on for
        self._sessions: dict[int, Errand] = {}
        self._queued: dict[bytes, None] = {}  # wants that might be waited for in more queues, since the last look
        self._last_session = 0
        self.n_duplicates = 0

    # --- what we want

    def open(self) -> int:
        """Begin a session. Raises: Local when there are too many."""
        if len(self._sessions) >= MAX_SESSIONS:
            raise Local(f"{MAX_SESSIONS} Bitswap sessions are open, the limit")
        self._last_session += 1
        self._sessions[self._last_session] = Errand()
        return self._last_session

    def close(self, session: int, now_s: float) -> list[Action]:
        """End a session; what it alone wanted is cancelled everywhere, and others have its room."""
        errand = self._sessions.pop(session)
        cancels: dict[Giver, list[Entry]] = {}
        for key in errand.wants:
            want = self._wants[key]
            want.sessions.discard(session)
            if not want.sessions:
                self._drop(key, want, cancels)
        for name in errand.providers:
            peer = self._peers[name]
            peer.sessions.discard(session)
            peer.is_refused = peer.is_refused and bool(peer.sessions)
        self._forget_idle_peers()
        self._line.all_changed()
        return sends(cancels) + self._assign(now_s)

    def want(self, session: int, cids: Iterable[Cid], now_s: float) -> list[Action]:
        """Want blocks; ask for them at once where anybody can be asked. Raises: Local over MAX_WANTS."""
        errand = self._sessions[session]
        for cid in cids:
            if len(errand.wants) >= MAX_WANTS:
                raise Local(f"{MAX_WANTS} blocks are wanted by one session, the limit")
            key = cid.multihash
            errand.wants.add(key)
            want = self._wants.setdefault(key, Want(cid, set()))
            want.sessions.add(session)
            want.is_starving = False
            if not want.asked:
                self._line.put(key)
            self._line.changed(key)
        return self._assign(now_s)

    def add_providers(self, session: int, peers: Iterable[Giver], now_s: float) -> list[Action]:
        """Peers that may serve a session. One that is known already gets a fresh chance: whatever it lacked is asked
        again, and it no longer counts as away."""
        errand = self._sessions[session]
        for name in peers:
            if name not in errand.providers and len(errand.providers) >= MAX_PROVIDERS:
                continue
            errand.providers[name] = None
            peer = self._peers.setdefault(name, Peer())
            peer.sessions.add(session)
            peer.is_away = False
            for key in errand.wants:
                self._wants[key].lacks.discard(name)
        self._line.all_changed()
        return self._assign(now_s)

    def useful_providers(self, session: int) -> list[Giver]:
        """Peers of a session that are there and were not caught lying."""
        known = self._sessions[session].providers
        return [name for name in known if not (self._peers[name].is_away or self._peers[name].is_refused)]

    def has_hope(self, session: int) -> bool:
        """May a provider yet give something that the session wants: is it there, honest, and not known to lack it?"""
        useful = self.useful_providers(session)
        return any(name not in self._wants[key].lacks for key in self._sessions[session].wants for name in useful)

    def tamperers(self, session: int) -> list[Giver]:
        """The peers of this session that sent other bytes than they owed."""
        return list(self._sessions[session].tamperers)

    # --- what peers do

    def found(self, name: Giver, now_s: float) -> list[Action]:
        """A peer is connected (again)."""
        peer = self._peers.get(name)
        if peer is None:
            return []
        peer.is_away = False
        peer.resume_s, peer.pause_s = -math.inf, PAUSE_S
        self._line.all_changed()
        return self._assign(now_s)

    def lost(self, name: Giver, now_s: float) -> list[Action]:
        """A peer is gone, or cannot be written to; its asks go to others, and its wantlist is gone with it."""
        peer = self._peers.get(name)
        if peer is None:
            return []
        peer.is_away, peer.is_proven, peer.is_fresh = True, False, True
        for want in self._wants.values():
            want.asked.pop(name, None)
            want.told.discard(name)
            want.lacks.discard(name)
            want.has.pop(name, None)
            want.is_starving &= peer.sessions.isdisjoint(want.sessions)  # it may be found again, where it is now
        self._release(peer)
        self._line.all_changed()
        self._forget_idle_peers()
        return self._assign(now_s)

    def expects(self, name: Giver) -> bool:
        """Have we asked this peer for anything lately? Blocks from others are not even worth hashing."""
        return name in self._peers and bool(self._peers[name].remembered)

    def progress(self, name: Giver, n_bytes: int, now_s: float) -> None:
        """Bytes came from a peer, `n_bytes` of a message by now: it is not silent, whole or not as that is."""
        peer = self._peers.get(name)
        if peer is not None:
            peer.heard_s, peer.n_grown = now_s, n_bytes
            if n_bytes >= LARGE_BYTES and peer.remembered and peer.n_in_vain < MAX_IN_VAIN:
                peer.grew_s = now_s

    def took(self, name: Giver, n_bytes: int) -> None:
        """A message was taken in: behind many large ones without a block of use, that more comes says nothing."""
        if name in self._peers and n_bytes >= LARGE_BYTES:
            self._peers[name].n_in_vain += 1

    def silent(self, now_s: float) -> list[Giver]:
        """Who owes blocks, and has said nothing for so long that `tick` would count on it no more."""
        return [name for name, peer in self._peers.items() if peer.in_flight and peer.heard_s + STALL_S <= now_s]

    def grew_s(self, session: int) -> float:
        """When more of a block came for a session last, whole or not; `-math.inf` for never."""
        return max((self._peers[name].grew_s for name in self.useful_providers(session)), default=-math.inf)

    def received(
        self,
        name: Giver,
        blocks: Sequence[Arrived],
        haves: Sequence[Cid],
        dont_haves: Sequence[Cid],
        now_s: float,
        pending_bytes: int = 0,
    ) -> list[Action]:
        """A message came. Only wanted blocks come out of it.

        Args:
            pending_bytes: What the peer has in hand for us. Where it says nothing else, we wait in its queue.
        """
        peer = self._peers.get(name)
        if peer is None:
            return [Misbehaved(name, UNWANTED)] if blocks else []
        peer.heard_s = now_s
        before, n_before = (peer.is_proven, peer.resume_s), len(peer.in_flight)
        actions: list[Action] = []
        cancels: dict[Giver, list[Entry]] = {}
        is_at_fault = False
        for block in blocks:
            is_at_fault |= not self._take(name, peer, block, now_s, actions, cancels)
        for cid in haves:
            want = self._wants.get(cid.multihash)
            if want is not None and name in want.told:
                want.lacks.discard(name)
                want.has[name] = None
                self._line.changed(cid.multihash)
                peer.is_proven, peer.n_lacks_in_a_row = True, 0
                if peer.announced(cid.multihash, now_s):
                    self._withdraw(cid.multihash, want, name, cancels)
                else:
                    self._queued[cid.multihash] = None
        for cid in dont_haves:
            self._note_lack(name, peer, cid.multihash, now_s)
        if pending_bytes and not (blocks or haves or dont_haves):
            peer.queued(now_s)
            self._queued |= dict.fromkeys(peer.in_flight)
        actions += sends(cancels)
        if is_at_fault:
            owes = any(name in want.told for want in self._wants.values())
            actions.append(Misbehaved(name, TAMPERED if owes else UNWANTED))
            if owes:
                self._refuse(name, peer)
        if before != (peer.is_proven, peer.resume_s):
            self._line.all_changed()
        elif len(peer.in_flight) < n_before:
            self._line.freed(name)
        return actions + self._assign(now_s)

    def wants(self, session: int, multihash: bytes) -> bool:
        """Does a session want this block of its peers?"""
        return multihash in self._sessions[session].wants

    def came(self, giver: Giver, cid: Cid, data: bytes, now_s: float) -> list[Action]:
        """A wanted block came in another way; whoever was asked for it is told."""
        cancels: dict[Giver, list[Entry]] = {}
        key = cid.multihash
        got = self._got(key, self._wants[key], giver, data, 0.0, now_s, cancels)
        return [got, *sends(cancels), *self._assign(now_s)]

    def tick(self, now_s: float) -> list[Action]:
        """Let time pass: silent peers lose their asks, rested ones get new ones."""
        for name, peer in self._peers.items():
            if peer.stalls_at_s() <= now_s:
                if now_s < peer.heard_s + STALL_S and not self._has_quicker(name, peer, now_s):
                    peer.excused_s = now_s  # its link is slow: to ask it anew would only send the same twice
                    continue
                self._release(peer)
                peer.is_proven = False
                peer.resume_s = now_s + peer.pause_s
                peer.pause_s = min(2 * peer.pause_s, MAX_PAUSE_S)
            elif -math.inf < peer.resume_s <= now_s:
                peer.resume_s = -math.inf
                self._line.all_changed()
        return self._assign(now_s)

    def next_deadline_s(self) -> float:
        """When `tick` will next have something to do; `math.inf` for never."""
        deadline_s = min((peer.stalls_at_s() for peer in self._peers.values()), default=math.inf)
        if self._line:
            resting = (p.resume_s for p in self._peers.values() if p.sessions and not p.is_away and not p.is_refused)
            deadline_s = min([deadline_s, *(at_s for at_s in resting if at_s > -math.inf)])
        return deadline_s

    # --- inside

    def _take(
        self,
        name: Giver,
        peer: Peer,
        block: Arrived,
        now_s: float,
        actions: list[Action],
        cancels: dict[Giver, list[Entry]],
    ) -> bool:
        """Accept a wanted block. False: it was never asked for; so it is uncalled for, or a forgery of one owed."""
        key = block.cid.multihash if block.cid is not None else b""
        want = self._wants.get(key)
        if want is None:
            is_late = key in peer.remembered
            self.n_duplicates += is_late
            peer.is_proven |= is_late  # a want-have that was answered with a small block, mostly
            return is_late
        asked_s = peer.in_flight.pop(key, None)
        if asked_s is not None:
            peer.note_block(now_s - max(asked_s, peer.gave_s))
            if peer.gave_s > asked_s:
                peer.note_gap(now_s - peer.gave_s)
        peer.gave(key, now_s)
        peer.resume_s, peer.pause_s = -math.inf, PAUSE_S
        want.told.discard(name)  # who sends a block takes it off our list without being told
        wait_s = now_s - asked_s if asked_s is not None else 0.0
        actions.append(self._got(key, want, name, block.data, wait_s, now_s, cancels))
        return True

    def _got(
        self,
        key: bytes,
        want: Want,
        giver: Giver,
        data: bytes,
        wait_s: float,
        now_s: float,
        cancels: dict[Giver, list[Entry]],
    ) -> Got:
        for name in want.counted_on(self._peers):
            self._peers[name].note_late(key, now_s)
        sessions = tuple(sorted(want.sessions))
        for session in sessions:
            self._sessions[session].wants.discard(key)
        self._drop(key, want, cancels)
        return Got(sessions, giver, want.cid, data, wait_s)

    def _drop(self, key: bytes, want: Want, cancels: dict[Giver, list[Entry]]) -> None:
        del self._wants[key]
        self._line.drop(key)
        self._queued.pop(key, None)
        for name in want.told:
            self._forget(key, name)
            cancels.setdefault(name, []).append(Entry(want.cid, is_cancel=True))

    def _note_lack(self, name: Giver, peer: Peer, key: bytes, now_s: float) -> None:
        want = self._wants.get(key)
        if want is None or name not in want.told:
            return
        want.lacks.add(name)
        want.has.pop(name, None)
        self._line.changed(key)
        peer.is_partial = True
        if peer.in_flight.pop(key, None) is not None:
            peer.gave_s = now_s
            want.asked.pop(name, None)
            self._count_on_others(key, want)
        peer.n_lacks_in_a_row += 1
        if peer.n_lacks_in_a_row >= MAX_LACKS_IN_A_ROW:
            peer.is_proven = False

    def _has_quicker(self, slow: Giver, peer: Peer, now_s: float) -> bool:
        """Can anybody else be asked for what a slow peer owes, who is not as slow?"""
        others = {name for key in peer.in_flight for name in self._candidates(self._wants[key], now_s)} - {slow}
        return any(not self._peers[name].is_slow(now_s) for name in others)

    def _release(self, peer: Peer) -> None:
        """Count on this peer no longer for what it owes."""
        for key in peer.release():
            self._count_on_others(key, self._wants[key])
        self._line.all_changed()

    def _forget(self, key: bytes, name: Giver) -> None:
        """Count on this peer no longer for this block."""
        if self._peers[name].in_flight.pop(key, None) is not None:
            self._line.freed(name)

    def _count_on_others(self, key: bytes, want: Want) -> None:
        """One who was counted on for a block is no more: it is back in line, unless it is waited for elsewhere."""
        if want.counted_on(self._peers):
            self._queued[key] = None
        else:
            self._line.put(key)

    def _withdraw(self, key: bytes, want: Want, name: Giver, cancels: dict[Giver, list[Entry]]) -> None:
        """A peer says that it sends a block now: it is waited for in no other queue."""
        for other in [one for one in want.asked if one != name and key not in self._peers[one].coming]:
            self._forget(key, other)
            del want.asked[other]
            want.told.discard(other)
            cancels.setdefault(other, []).append(Entry(want.cid, is_cancel=True))

    def _refuse(self, name: Giver, peer: Peer) -> None:
        peer.is_refused = bool(peer.sessions)
        self._release(peer)
        for session in peer.sessions:
            self._sessions[session].tamperers[name] = None

    def _assign(self, now_s: float) -> list[Action]:
        """Ask somebody for every want in line, as far as there is room."""
        asks: dict[Giver, list[Entry]] = {}
        news: list[Action] = []
        for key in self._line.to_look_at(self._may_give):
            want = self._wants[key]
            candidates = self._candidates(want, now_s)
            proven = [name for name in candidates if self._peers[name].is_proven]
            able = [name for name in proven or candidates if self._peers[name].has_room()]
            if able:
                self._ask(key, want, quickest(self._peers, able, now_s), now_s, asks)
            if candidates:
                self._probe(want, [name for name in candidates if name not in proven], asks)
            elif not want.is_starving:
                want.is_starving = True
                news += [NeedProviders(session, want.cid) for session in sorted(want.sessions)]
        self._join_queues(now_s, asks)
        self._share_out(now_s, asks)
        return [*sends(asks), *news]

    def _join_queues(self, now_s: float, asks: dict[Giver, list[Entry]]) -> None:
        """Wait in the queues of all who have what only waits; in each for other blocks first, so that they differ."""
        joined: dict[Giver, list[bytes]] = {}
        for key in self._queued:
            for name in self._wants[key].queues_to_join(self._peers, now_s):
                joined.setdefault(name, []).append(key)
        self._queued.clear()
        for name, keys in joined.items():
            for key in sorted(keys, key=lambda each: zlib.crc32(each, zlib.crc32(str(name).encode()))):
                if self._peers[name].has_room():
                    self._count_on(key, self._wants[key], name, now_s, asks)

    def _share_out(self, now_s: float, asks: dict[Giver, list[Entry]]) -> None:
        """Let proven peers that have nothing in hand take over what others would come to last."""
        if self._line or not self._wants:
            return  # there is work for everybody, or for nobody
        self._sound_out(now_s, asks)
        for find in (waiting, lingering):
            for key, able in find(self._peers, self._wants, self._candidates, now_s):
                self._count_on(key, self._wants[key], quickest(self._peers, able, now_s), now_s, asks)
        idle = [name for name, peer in self._peers.items() if peer.is_idle(now_s)]
        for name in idle:
            busy = (each for each in self._peers.values() if each.in_flight and not each.is_queue(now_s))
            busiest = max(busy, key=lambda each: each.wait_s(now_s), default=None)
            if busiest is None or not busiest.is_overburdened(now_s):
                return
            keys = list(busiest.in_flight)
            for key in keys[-(len(keys) // 2) :]:
                want = self._wants[key]
                if (
                    want.may_come_of(name, self._peers[name])
                    and name in self._candidates(want, now_s)
                    and self._peers[name].has_room()
                ):
                    self._ask(key, want, name, now_s, asks)

    def _sound_out(self, now_s: float, asks: dict[Giver, list[Entry]]) -> None:
        """Ask peers of which it is not known whether they have what was asked of others that have much in hand.

        Who joins while all is asked of one slow peer could not prove itself otherwise. Who lacks a block says so, once,
        and tells of it when it comes.
        """
        known = ((name, peer) for name, peer in self._peers.items() if peer.sessions and peer.may_be_asked(now_s))
        fresh = [name for name, peer in known if peer.is_partial or peer.is_fresh]
        for peer in self._peers.values() if fresh else ():
            for key in list(peer.in_flight)[not peer.is_queue(now_s) :]:
                want = self._wants[key]
                untold = [name for name in fresh if name not in want.told] if len(want.told) < MAX_PROBES else []
                if untold:
                    providers = self._candidates(want, now_s)
                    self._probe(want, [name for name in untold if name in providers], asks)

    def _candidates(self, want: Want, now_s: float) -> list[Giver]:
        names: dict[Giver, None] = {}
        for session in sorted(want.sessions):
            names |= self._sessions[session].providers
        return [name for name in names if name not in want.lacks and self._peers[name].may_be_asked(now_s)]

    def _may_give(self, name: Giver, key: bytes) -> bool:
        want = self._wants[key]
        return name not in want.lacks and any(name in self._sessions[each].providers for each in want.sessions)

    def _ask(self, key: bytes, want: Want, name: Giver, now_s: float, asks: dict[Giver, list[Entry]]) -> None:
        """Count on this peer alone for a block."""
        for silent in want.asked.keys() - {name}:
            asks.setdefault(silent, []).append(Entry(want.cid, is_cancel=True))
            want.told.discard(silent)
            self._forget(key, silent)
        want.asked.clear()
        want.is_starving = False
        self._line.drop(key)
        if self._peers[name].is_queue(now_s):
            self._queued[key] = None
        self._count_on(key, want, name, now_s, asks)

    def _count_on(self, key: bytes, want: Want, name: Giver, now_s: float, asks: dict[Giver, list[Entry]]) -> None:
        peer = self._peers[name]
        if not peer.in_flight:
            peer.heard_s = peer.gave_s = now_s
        peer.in_flight[key] = now_s
        if not peer.has_room():
            self._line.filled(name)
        peer.remember(key)
        want.asked[name] = None
        want.told.add(name)
        asks.setdefault(name, []).append(Entry(want.cid, send_dont_have=True))

    def _probe(self, want: Want, names: Sequence[Giver], asks: dict[Giver, list[Entry]]) -> None:
        room = max(0, MAX_PROBES - len(want.told))
        for name in [name for name in names if name not in want.told][:room]:
            want.told.add(name)
            self._peers[name].remember(want.cid.multihash)
            asks.setdefault(name, []).append(Entry(want.cid, want_type=WantType.HAVE, send_dont_have=True))

    def _forget_idle_peers(self) -> None:
        """Let go of peers of no session once they are away; until then a late answer of theirs is no fault."""
        in_use = {name for want in self._wants.values() for name in want.told}
        for name, peer in list(self._peers.items()):
            if peer.is_away and not peer.sessions and name not in in_use:
                del self._peers[name]
