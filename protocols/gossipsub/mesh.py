"""The meshes: for each topic that this node listens to, the few peers with whom it exchanges messages at once.

Source: libp2p/specs, gossipsub v1.1: degrees, backoff after PRUNE, a share of connections that we dialled, and taking
in better peers where the mesh has become poor. Beyond it, peers that failed their trials (`trials.py`) make room: all
of them where the mesh has more than it wants, one a heartbeat where another stands ready. While a topic sees such, few
of those who ask to be in the mesh, and have shown nothing yet, are let in beyond what it wants.
"""

import random
import statistics
from collections.abc import Callable, Mapping
from typing import Final

from protocols.gossipsub.peer import Peer
from protocols.gossipsub.scores import OPPORTUNISTIC_THRESHOLD
from protocols.gossipsub.trials import Trials
from storage.keys import PeerId

DEGREE: Final = 6
LOW: Final = 4
HIGH: Final = 12
KEPT_BY_SCORE: Final = 4  # of a mesh that is too large
DIALLED: Final = 2  # connections that we made, at least, where there are such
BACKOFF_S: Final = 60.0
LEAVE_BACKOFF_S: Final = 10.0
MAX_BACKOFF_S: Final = 3600.0
MAX_BACKOFFS: Final = 1 << 14
MIN_UNPROVEN: Final = 1  # of those who asked, beyond DEGREE, whatever was seen of others
OPPORTUNISTIC_BEATS: Final = 60
OPPORTUNISTIC_PEERS: Final = 2


class Meshes:
    """Who is in which mesh, and who may not ask to be."""

    def __init__(
        self,
        peers: Mapping[PeerId, Peer],
        listeners: Mapping[str, set[PeerId]],
        rng: random.Random,
        graft: Callable[[str, PeerId], None],
        prune: Callable[[str, PeerId, bool], None],
        trials: Trials,
    ) -> None:
        """`graft` and `prune` tell a peer; the latter also whether we leave the topic."""
        self._peers = peers
        self._listeners = listeners
        self._rng = rng
        self._graft = graft
        self._prune = prune
        self._trials = trials
        self._meshes: dict[str, set[PeerId]] = {}
        self._backoff: dict[tuple[str, PeerId], float] = {}
        self._n_beats = 0

    def topics(self) -> dict[str, set[PeerId]]:
        """The topics that this node listens to, each with its mesh."""
        return self._meshes

    def of(self, topic: str) -> set[PeerId]:
        """The mesh of a topic."""
        return self._meshes.get(topic, set())

    def has(self, peer: PeerId) -> bool:
        """Is the peer in any mesh?"""
        return any(peer in mesh for mesh in self._meshes.values())

    def join(self, topic: str, first: set[PeerId], now_s: float) -> None:
        """Begin a mesh, with peers to whom messages went already, where there are such."""
        self._meshes[topic] = set()
        fit = self._candidates(topic, now_s)
        chosen = [peer for peer in fit if peer in first][:DEGREE]
        rest = [peer for peer in fit if peer not in chosen]
        self._take_in(topic, [*chosen, *rest[: DEGREE - len(chosen)]])

    def leave(self, topic: str, now_s: float) -> None:
        """End a mesh."""
        for peer in self._meshes.pop(topic):
            self._prune(topic, peer, True)
            self._back_off(topic, peer, LEAVE_BACKOFF_S, now_s)

    def forget(self, peer: PeerId) -> None:
        """Take a peer that is gone out of all meshes."""
        for mesh in self._meshes.values():
            mesh.discard(peer)

    def left(self, topic: str, peer: PeerId) -> None:
        """A peer listens to a topic no longer."""
        if topic in self._meshes:
            self._meshes[topic].discard(peer)

    def welcome(self, topic: str, peer: PeerId, now_s: float) -> None:
        """A peer has begun to listen: take it in where the mesh lacks peers."""
        if topic in self._meshes and len(self._meshes[topic]) < DEGREE and self._is_fit(topic, peer, now_s):
            self._take_in(topic, [peer])

    def grafted(self, topic: str, peer: PeerId, now_s: float) -> None:
        """A peer has taken us into its mesh, and asks for the same."""
        known, mesh = self._peers[peer], self._meshes.get(topic)
        if mesh is None or peer in mesh:
            return  # of topics that we do not listen to there is nothing to say
        if self._backoff.get((topic, peer), 0.0) > now_s:
            known.score.n_rude += 1
            self._refuse(topic, peer, now_s)
        elif known.score.value() < 0 or (not known.is_dialled and not self._has_room(topic, peer)):
            self._refuse(topic, peer, now_s)
        else:
            mesh.add(peer)  # even where our own stream to it does not stand yet

    def _has_room(self, topic: str, peer: PeerId) -> bool:
        """Is there room for one that asked? Those whom we dialled, and whom the user named, always find some."""
        mesh = self._meshes[topic]
        if len(mesh) < DEGREE or self._peers[peer].score.is_liked:
            return True
        n_unproven = sum(
            not (self._peers[one].is_dialled or self._peers[one].score.is_liked or self._trials.is_proven(topic, one))
            for one in mesh
        )
        n_most = max(MIN_UNPROVEN, HIGH - DEGREE - int(self._trials.suspicion(topic)))
        is_crowded = self._trials.suspicion(topic) >= 1 and n_unproven >= n_most
        return len(mesh) < HIGH and not is_crowded

    def pruned(self, topic: str, peer: PeerId, backoff_s: int, now_s: float) -> None:
        """A peer has taken us out of its mesh."""
        if topic in self._meshes:
            self._meshes[topic].discard(peer)
            self._back_off(topic, peer, min(MAX_BACKOFF_S, backoff_s or BACKOFF_S), now_s)

    def heartbeat(self, now_s: float) -> None:
        """Drop whom we think badly of, fill what lacks peers, shrink what has too many."""
        self._n_beats += 1
        self._backoff = {key: until_s for key, until_s in self._backoff.items() if until_s > now_s}
        for topic, mesh in self._meshes.items():
            mesh -= {peer for peer in mesh if not self._peers[peer].is_open}  # unblamed: again when a stream stands
            for peer in [peer for peer in mesh if self._score(peer) < 0]:
                self._take_out(topic, peer, now_s)
            self._make_room(topic, mesh, now_s)
            if len(mesh) < LOW:
                self._take_in(topic, self._candidates(topic, now_s)[: DEGREE - len(mesh)])
            elif len(mesh) > HIGH:
                self._shrink(topic, mesh, now_s)
            elif self._n_beats % OPPORTUNISTIC_BEATS == 0:
                self._improve(topic, mesh, now_s)

    def _make_room(self, topic: str, mesh: set[PeerId], now_s: float) -> None:
        """Take out who failed its trials, as far as others are there."""
        silent = [
            peer for peer in self._shuffled(mesh)
            if self._trials.is_silent(topic, peer) and not self._peers[peer].score.is_liked
        ]  # fmt: skip
        if not silent:
            return
        for peer in silent[: max(0, len(mesh) - DEGREE)]:
            self._take_out(topic, peer, now_s)
        rest = [peer for peer in silent if peer in mesh]
        others = [peer for peer in self._candidates(topic, now_s) if not self._trials.n_failed(topic, peer)]
        if rest and others:
            self._take_in(topic, others[:1])
            self._take_out(topic, rest[0], now_s)

    def _shrink(self, topic: str, mesh: set[PeerId], now_s: float) -> None:
        ranked = self._shuffled(mesh)
        ranked.sort(key=self._score, reverse=True)
        best, rest = ranked[:KEPT_BY_SCORE], ranked[KEPT_BY_SCORE:]
        self._rng.shuffle(rest)
        n_lacking = DIALLED - sum(self._peers[peer].is_dialled for peer in best)
        dialled = [peer for peer in rest if self._peers[peer].is_dialled][: max(0, n_lacking)]
        kept = [*best, *dialled, *(peer for peer in rest if peer not in dialled)][:DEGREE]
        for peer in mesh.difference(kept):
            self._take_out(topic, peer, now_s)

    def _improve(self, topic: str, mesh: set[PeerId], now_s: float) -> None:
        if not mesh:
            return
        median = statistics.median(map(self._score, mesh))
        if median < OPPORTUNISTIC_THRESHOLD:
            better = [peer for peer in self._candidates(topic, now_s) if self._score(peer) > median]
            self._take_in(topic, better[:OPPORTUNISTIC_PEERS])

    def _candidates(self, topic: str, now_s: float) -> list[PeerId]:
        """Those who could be taken in: whom we dialled and who never failed first, else in no order."""
        mesh = self._meshes[topic]
        fit = {peer for peer in self._listeners.get(topic, ()) if peer not in mesh and self._is_fit(topic, peer, now_s)}
        ordered = self._shuffled(fit)
        if self._trials.suspicion(topic) >= 1:
            ordered.sort(key=lambda peer: (self._trials.n_failed(topic, peer), not self._peers[peer].is_dialled))
        return ordered

    def _shuffled(self, peers: set[PeerId]) -> list[PeerId]:
        """In an order that the generator alone decides."""
        ordered = sorted(peers)
        self._rng.shuffle(ordered)
        return ordered

    def _is_fit(self, topic: str, peer: PeerId, now_s: float) -> bool:
        return self._peers[peer].is_open and self._score(peer) >= 0 and self._backoff.get((topic, peer), 0.0) <= now_s

    def _score(self, peer: PeerId) -> float:
        return self._peers[peer].score.value()

    def _take_in(self, topic: str, peers: list[PeerId]) -> None:
        for peer in peers:
            self._meshes[topic].add(peer)
            self._graft(topic, peer)

    def _take_out(self, topic: str, peer: PeerId, now_s: float) -> None:
        self._meshes[topic].discard(peer)
        self._refuse(topic, peer, now_s)

    def _refuse(self, topic: str, peer: PeerId, now_s: float) -> None:
        self._prune(topic, peer, False)
        again = min(6, self._trials.n_failed(topic, peer))
        self._back_off(topic, peer, min(MAX_BACKOFF_S, BACKOFF_S * 2**again), now_s)

    def _back_off(self, topic: str, peer: PeerId, backoff_s: float, now_s: float) -> None:
        if len(self._backoff) < MAX_BACKOFFS:
            until_s = now_s + backoff_s
            self._backoff[topic, peer] = max(until_s, self._backoff.get((topic, peer), 0.0))
