"""The meshes: for each topic that this node listens to, the few peers with whom it exchanges messages at once.

Source: libp2p/specs, gossipsub v1.1: degrees, backoff after PRUNE, a share of connections that we dialled, and taking
in better peers where the mesh has become poor.
"""

import random
import statistics
from collections.abc import Callable, Mapping
from typing import Final

from protocols.gossipsub.peer import Peer
from protocols.gossipsub.scores import OPPORTUNISTIC_THRESHOLD
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
    ) -> None:
        """`graft` and `prune` tell a peer; the latter also whether we leave the topic."""
        self._peers = peers
        self._listeners = listeners
        self._rng = rng
        self._graft = graft
        self._prune = prune
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
        elif known.score.value() < 0 or (len(mesh) >= HIGH and not known.is_dialled):
            self._refuse(topic, peer, now_s)
        else:
            mesh.add(peer)  # even where our own stream to it does not stand yet

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
            for peer in [peer for peer in mesh if self._score(peer) < 0 or not self._peers[peer].is_open]:
                self._take_out(topic, peer, now_s)
            if len(mesh) < LOW:
                self._take_in(topic, self._candidates(topic, now_s)[: DEGREE - len(mesh)])
            elif len(mesh) > HIGH:
                self._shrink(topic, mesh, now_s)
            elif self._n_beats % OPPORTUNISTIC_BEATS == 0:
                self._improve(topic, mesh, now_s)

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
        """Those who could be taken in, in no order."""
        mesh = self._meshes[topic]
        fit = {peer for peer in self._listeners.get(topic, ()) if peer not in mesh and self._is_fit(topic, peer, now_s)}
        return self._shuffled(fit)

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
        self._back_off(topic, peer, BACKOFF_S, now_s)

    def _back_off(self, topic: str, peer: PeerId, backoff_s: float, now_s: float) -> None:
        if len(self._backoff) < MAX_BACKOFFS:
            until_s = now_s + backoff_s
            self._backoff[topic, peer] = max(until_s, self._backoff.get((topic, peer), 0.0))
