"""The router: who gets which message, and whose word counts. No IO, no clock: the shell brings bytes and the time.

Source: libp2p/specs, gossipsub v1.1 and v1.2. Where it leaves a choice:

- A message is named by its content (topic, sender, data), so one that is sent again under a new number is no news.
  Peers that do so too have a protocol id of their own; with others the usual names are spoken, sender and number.
- Direct peers (whom the user named) get every message of their topics, and may be in the mesh as well: the agreement
  need not be mutual.
- A mesh that lacks peers takes in whoever subscribes at once, and who subscribes is told of the newest messages, so
  that two nodes which meet need wait for no heartbeat.
- Peers are not exchanged on PRUNE: whom a node connects to, it does not learn from strangers.
- Whoever is not in the mesh is told of the newest messages in turn, and all of them while a message is still told of:
  so each message reaches everybody to whom a path of connections leads, also around a node with many peers.
- A message is looked at in the order of what it costs: its name, its forwarder's rate, its author's rate, its
  signature, the topic's validators. Only what passes all of them is delivered, kept, or passed on.
"""

import math
import random
from collections.abc import Callable, Iterable
from typing import Final

from protocols.bucket import Bucket
from protocols.errors import Malformed, TooBig
from protocols.gossipsub import scores, wire
from protocols.gossipsub.memory import TOLD_WINDOWS, Name, Recent, Seen
from protocols.gossipsub.mesh import BACKOFF_S, DEGREE, LEAVE_BACKOFF_S, Meshes
from protocols.gossipsub.peer import Peer
from protocols.gossipsub.trials import Trials
from protocols.net import TopicMessage
from storage.keys import Identity, PeerId

MAX_PEERS: Final = 1024
MAX_TOPICS_PER_PEER: Final = 512
HEARTBEAT_S: Final = 1.0
FANOUT_S: Final = 60.0
FLOOD_PEERS: Final = 20  # to whom a message of our own goes at most, beside direct peers
GOSSIP_PEERS: Final = 6  # to whom a topic's messages are told of in a heartbeat, if the turns do not ask for more
MAX_TOLD_IDS: Final = 1000  # in one IHAVE
MAX_HAVE_PER_HEARTBEAT: Final = 10  # IHAVEs of one peer that are read
MAX_WANT_PER_HEARTBEAT: Final = 1000  # ids that a peer can make us ask it for, and that it can ask us for
PROMISE_S: Final = 3.0  # within which a message that we asked for has to come
RPC_FIELDS: Final = 4  # an RPC costs as much as so many fields, beside its own
MIN_NOTED_BYTES: Final = 1 << 10  # a smaller message costs less twice than the note that it is known

FORWARD_RATE, FORWARD_BURST = 1000.0, 2000.0  # new messages of a topic that one peer may bring in a second
AUTHOR_RATE, AUTHOR_BURST = 100.0, 400.0  # messages that one author may send on a topic in a second
MAX_BUCKETS: Final = 1 << 14


class Router:
    """GossipSub for one node.

    Attributes:
        waiting: Peers for whom something waits to be sent; see `take`.
        n_copies: How many copies of others' messages were queued for peers by now.
    """

    def __init__(
        self,
        identity: Identity,
        accepts: Callable[[TopicMessage], bool | None],
        rng: random.Random,
        first_sequence: int = 1,
    ) -> None:
        """`accepts` judges a message that its sender signed: None is no, and not its forwarder's fault.

        `first_sequence` is above all that were ever used.
        """
        self.waiting: set[PeerId] = set()
        self.n_copies = 0
        self._identity = identity
        self._me = identity.peer_id
        self._accepts = accepts
        self._rng = rng
        self._sequence = first_sequence
        self._peers: dict[PeerId, Peer] = {}
        self._gone: dict[PeerId, scores.Score] = {}
        self._direct: frozenset[PeerId] = frozenset()
        self._topics: dict[str, set[PeerId]] = {}  # who listens to what
        self._fanout: dict[str, tuple[set[PeerId], float]] = {}
        self._turns: dict[str, list[PeerId]] = {}
        self._seen = Seen()
        self._recent = Recent()
        self._authors: dict[tuple[str, PeerId], Bucket] = {}
        self._trials = Trials()
        self._meshes = Meshes(self._peers, self._topics, rng, self._send_graft, self._send_prune, self._trials)

    # --- who is there

    def add_peer(self, peer: PeerId, now_s: float) -> None:
        """A peer is connected; one that we know already changes nothing."""
        if peer in self._peers or len(self._peers) >= MAX_PEERS:
            return
        score = self._gone.pop(peer, None) or scores.Score()
        score.is_liked = peer in self._direct
        self._peers[peer] = Peer(score, now_s)

    def open_to(self, peer: PeerId, protocol: str, is_dialled: bool, now_s: float) -> None:
        """A stream to the peer stands: what it is to know first goes out."""
        self.add_peer(peer, now_s)
        known = self._peers.get(peer)
        if known is None:
            return
        known.begin(protocol != wire.MESHSUB_1_1, protocol == wire.COVEY, is_dialled)
        if self._meshes.topics():
            self._send(peer, wire.frame_subscriptions(self._meshes.topics(), True), is_vital=True)
        known.forget_told()
        self._meet_all(peer, known, now_s)

    def close_to(self, peer: PeerId) -> None:
        """The stream to the peer broke: it is in no mesh, and nothing waits for it."""
        known = self._peers.get(peer)
        if known is not None:
            known.end()
            self.waiting.discard(peer)
            self._meshes.forget(peer)

    def remove_peer(self, peer: PeerId) -> None:
        """A peer is gone. What it did badly is remembered for a while."""
        self.close_to(peer)
        known = self._peers.pop(peer, None)
        if known is None:
            return
        for topic in known.topics:
            self._unlisten(topic, peer)
        if known.score.value() < 0 and len(self._gone) < MAX_PEERS:
            self._gone[peer] = known.score

    def set_direct(self, peers: Iterable[PeerId]) -> None:
        """Name the direct peers; others are none any more."""
        self._direct = frozenset(peers)
        for peer, known in self._peers.items():
            known.score.is_liked = peer in self._direct

    def peers(self) -> list[PeerId]:
        """Those that are there."""
        return list(self._peers)

    def listeners(self, topic: str) -> set[PeerId]:
        """Who is known to listen to a topic."""
        return set(self._topics.get(topic, ()))

    def heard(self) -> set[PeerId]:
        """Who is known to listen to any topic that this node listens to."""
        return {peer for topic in self._meshes.topics() for peer in self._topics.get(topic, ())}

    def mesh(self, topic: str) -> set[PeerId]:
        """Who is in our mesh of a topic."""
        return set(self._meshes.of(topic))

    def score(self, peer: PeerId) -> float:
        """What we think of a peer; 0 of one that is not there."""
        known = self._peers.get(peer)
        return known.score.value() if known else 0.0

    def silent(self, topic: str) -> list[PeerId]:
        """Who was in our mesh of a topic and brought nothing when it was tried."""
        return self._trials.failed(topic)

    def unheard(self) -> list[PeerId]:
        """Who is thought of so badly that nothing it says is read."""
        return [peer for peer, known in self._peers.items() if known.score.value() < scores.GRAYLIST_THRESHOLD]

    # --- what the node does

    def join(self, topic: str, now_s: float) -> None:
        """Listen to a topic."""
        if topic in self._meshes.topics():
            return
        self._tell_all(topic, True)
        first = self._fanout.pop(topic, (set(), 0.0))[0]
        self._meshes.join(topic, first, now_s)

    def leave(self, topic: str, now_s: float) -> None:
        """Listen to a topic no longer."""
        if topic not in self._meshes.topics():
            return
        self._meshes.leave(topic, now_s)
        self._tell_all(topic, False)

    def publish(self, topic: str, data: bytes, now_s: float) -> None:
        """Send a message to everybody who listens to a topic."""
        message = wire.sign(self._identity, topic, self._sequence, data)
        self._sequence += 1
        name = Name(message.id, message.usual_id)
        self._see(name, now_s)
        framed = wire.frame_message(message.raw)
        self._recent.put(name, topic, framed)
        for peer in self._whom_to_tell(topic, now_s):
            self._send(peer, framed)

    def _whom_to_tell(self, topic: str, now_s: float) -> set[PeerId]:
        """Our own messages go to more than the mesh: a mesh full of liars cannot hold them back."""
        listeners = self._topics.get(topic, set())
        fit = [peer for peer in listeners if self.score(peer) >= scores.PUBLISH_THRESHOLD and self._peers[peer].is_open]
        some = set(fit if len(fit) <= FLOOD_PEERS else self._rng.sample(sorted(fit), FLOOD_PEERS))
        if topic not in self._meshes.topics():
            kept = {peer for peer in self._fanout.get(topic, (set(), 0.0))[0] if peer in listeners}
            self._fanout[topic] = (kept | some, now_s + FANOUT_S)
            some |= kept
        return some | (self._meshes.of(topic)) | {peer for peer in fit if peer in self._direct}

    # --- what comes in

    def receive(self, peer: PeerId, data: bytes, now_s: float, is_first: bool = False) -> list[TopicMessage]:
        """Take in an RPC; give the messages that are to be delivered here. Raises: Malformed, TooBig.

        `is_first`: a stream begins with it, so it names all that the peer listens to.
        """
        known = self._peers.get(peer)
        if known is None:
            return []
        known.note_read(RPC_FIELDS, now_s)
        if known.score.value() < scores.GRAYLIST_THRESHOLD:
            return []
        try:
            rpc = wire.read_rpc(data)
        except (Malformed, TooBig):
            known.score.n_rude += 1
            raise
        known.note_read(rpc.n_fields, now_s)
        if rpc.n_refused:
            known.score.n_invalid += rpc.n_refused * scores.FORGED
        if is_first:
            self._hear_anew(rpc.subscriptions, peer, known, now_s)
        for topic, is_subscribed in rpc.subscriptions:
            self._hear_subscription(topic, is_subscribed, peer, known, now_s)
        delivered = [heard for each in rpc.messages if (heard := self._hear(each, peer, known, now_s)) is not None]
        for topic in rpc.grafts:
            self._meshes.grafted(topic, peer, now_s)
        for prune in rpc.prunes:
            self._meshes.pruned(prune.topic, peer, prune.backoff_s, now_s)
        if rpc.have:
            self._hear_have(rpc.have, peer, known, now_s)
        if rpc.want:
            self._hear_want(rpc.want, peer, known)
        for name in rpc.dont_want:
            known.note_unwanted(name)
        return delivered

    def rest_s(self, peer: PeerId, now_s: float) -> float:
        """How long to leave unread what a peer says next: who says much, and little of it a message, has to wait."""
        known = self._peers.get(peer)
        return known.rest_s(now_s) if known else 0.0

    def _hear_anew(self, subscriptions: tuple[tuple[str, bool], ...], peer: PeerId, known: Peer, now_s: float) -> None:
        """The end of what went over an earlier stream may be lost: that a topic was left, or what we were asked for."""
        told = {topic for topic, is_subscribed in subscriptions if is_subscribed}
        for topic in sorted(known.topics - told):
            self._hear_subscription(topic, False, peer, known, now_s)
        known.forget_told()
        self._meet_all(peer, known, now_s)

    def _hear_subscription(self, topic: str, is_subscribed: bool, peer: PeerId, known: Peer, now_s: float) -> None:
        if not is_subscribed:
            if topic in known.topics:
                known.topics.discard(topic)
                self._unlisten(topic, peer)
                self._meshes.left(topic, peer)
        elif topic and topic not in known.topics and len(known.topics) < MAX_TOPICS_PER_PEER:
            known.topics.add(topic)
            self._topics.setdefault(topic, set()).add(peer)
            if known.is_open:
                self._meet(topic, peer, now_s)

    def _meet_all(self, peer: PeerId, known: Peer, now_s: float) -> None:
        if known.is_open:
            for topic in sorted(known.topics):
                self._meet(topic, peer, now_s)

    def _meet(self, topic: str, peer: PeerId, now_s: float) -> None:
        """A peer that listens can be told things: take it in where the mesh lacks peers, and tell it what is new.

        Once in a heartbeat: who leaves a topic and comes back all the time would have us tell it all of that each time.
        """
        self._meshes.welcome(topic, peer, now_s)
        known = self._peers[peer]
        if topic not in known.told and known.score.value() >= scores.GOSSIP_THRESHOLD:
            told = self._recent.told(topic)
            if told:
                known.told.add(topic)
                self._tell(topic, [peer], told)

    def _unlisten(self, topic: str, peer: PeerId) -> None:
        listeners = self._topics.get(topic)
        if listeners is not None:
            listeners.discard(peer)
            if not listeners:
                del self._topics[topic]

    def _hear(self, message: wire.Message, peer: PeerId, known: Peer, now_s: float) -> TopicMessage | None:
        topic = message.topic
        if topic not in self._meshes.topics() or known.score.value() < scores.GRAYLIST_THRESHOLD:
            return None  # what it forged before in the same RPC counts, too
        name = Name(message.id, message.usual_id)
        known.keep_promise(name)
        if name.own in self._seen:
            self._trials.heard(topic, peer, name)
            return None
        if not known.may_forward(topic, FORWARD_RATE, FORWARD_BURST, now_s):
            known.score.n_rude += 1
            return None
        if message.sender == self._me or message.is_foreign or not self._has_room(topic, message.sender, now_s):
            return None  # nobody hears itself; and who floods is not passed on, whoever brings it
        if not message.is_signed():
            known.score.n_invalid += scores.FORGED
            return None
        if not self._may_say(topic, message.sender, now_s):
            return None
        heard = TopicMessage(topic, message.sender, message.data)
        self._see(name, now_s)
        if not (verdict := self._accepts(heard)):
            known.score.n_invalid += scores.REFUSED if verdict is False else 0.0
            return None
        known.score.delivered_first()
        self._pass_on(name, message, peer, now_s)
        return heard

    def _see(self, name: Name, now_s: float) -> None:
        self._seen.add(name.own, now_s)
        self._seen.add(name.usual, now_s)

    def _pass_on(self, name: Name, message: wire.Message, source: PeerId, now_s: float) -> None:
        framed = wire.frame_message(message.raw)
        self._recent.put(name, message.topic, framed)
        listeners = self._topics.get(message.topic, set())
        mesh = self._meshes.of(message.topic)
        targets = mesh | (self._direct & listeners)
        others = [peer for peer in mesh - self._direct if peer not in (source, message.sender)]
        tried = self._trials.passed_on(message.topic, source, others, is_full=len(mesh) >= DEGREE)
        if tried is not None:
            self._trials.hold(message.topic, tried, name, framed, now_s)
            targets.discard(tried)
        is_noted = len(message.data) >= MIN_NOTED_BYTES
        for peer in targets:
            known = self._peers.get(peer)
            if known is None or peer in (source, message.sender):
                continue
            if is_noted and known.is_modern:
                self._send(peer, wire.frame_dont_want([name.own if known.is_kin else name.usual]))
            if name.own not in known.unwanted and name.usual not in known.unwanted:
                self._send(peer, framed)
                self.n_copies += 1

    def _has_room(self, topic: str, author: PeerId, now_s: float) -> bool:
        """May an author say more? What bears its name and not its signature takes none of that."""
        bucket = self._authors.get((topic, author))
        return bucket is None or not bucket.wait_s(1, now_s)

    def _may_say(self, topic: str, author: PeerId, now_s: float) -> bool:
        bucket = self._authors.get((topic, author))
        if bucket is None:
            if len(self._authors) >= MAX_BUCKETS:
                return False
            bucket = self._authors[topic, author] = Bucket(AUTHOR_BURST, AUTHOR_BURST / AUTHOR_RATE, now_s)
        return bucket.may_take(1, now_s)

    def _hear_have(
        self, have: tuple[tuple[str, tuple[bytes, ...]], ...], peer: PeerId, known: Peer, now_s: float
    ) -> None:
        if known.score.value() < scores.GOSSIP_THRESHOLD or not known.is_open:
            return
        wanted: list[bytes] = []
        for topic, names in have:
            known.n_have += 1
            if known.n_have > MAX_HAVE_PER_HEARTBEAT:
                break
            if topic in self._meshes.topics():
                wanted += [name for name in names if name not in self._seen and name not in known.promises]
        wanted = wanted[: max(0, MAX_WANT_PER_HEARTBEAT - known.n_asked)]
        if wanted:
            known.n_asked += len(wanted)
            known.promises |= dict.fromkeys(wanted, now_s + PROMISE_S)
            self._send(peer, wire.frame_want(wanted))

    def _hear_want(self, names: tuple[bytes, ...], peer: PeerId, known: Peer) -> None:
        if known.score.value() < scores.GOSSIP_THRESHOLD:
            return
        for name in names:
            known.n_want += 1
            if known.n_want > MAX_WANT_PER_HEARTBEAT:
                known.score.n_rude += 1
                return
            framed = self._recent.retransmit(name, peer)
            if framed is not None and name not in known.unwanted:
                self._send(peer, framed)

    # --- time

    def heartbeat(self, now_s: float) -> None:
        """Once in HEARTBEAT_S: mend the meshes, tell of messages, let what is old go."""
        for peer, known in self._peers.items():
            broken = known.heartbeat(now_s)
            known.score.n_rude += broken
            known.score.decay(HEARTBEAT_S if self._meshes.has(peer) else 0.0)
            if known.is_behind:
                known.is_behind = False
                self._meet_all(peer, known, now_s)
        for peer, score in list(self._gone.items()):
            score.decay(0.0)
            if score.is_blank:
                del self._gone[peer]
        for peer, held in self._trials.heartbeat(now_s, self._meshes.topics()):
            if peer in self._peers and not self._peers[peer].unwanted.keys() & {held.name.own, held.name.usual}:
                self._send(peer, held.framed)
        self._meshes.heartbeat(now_s)
        self._fanout = {topic: entry for topic, entry in self._fanout.items() if entry[1] > now_s}
        spoken = {*self._meshes.topics(), *self._fanout}
        self._turns = {topic: turn for topic, turn in self._turns.items() if topic in spoken}
        for topic in sorted(spoken):
            self._tell_some(topic)
        self._recent.shift()
        self._seen.expire(now_s)
        full = [key for key, bucket in self._authors.items() if bucket.is_full(now_s)]
        for key in full:
            del self._authors[key]

    def _tell_some(self, topic: str) -> None:
        """IHAVE, to some who listen and are not in the mesh."""
        told = self._recent.told(topic)
        if not told:
            return
        mesh = self._meshes.of(topic)
        others = {
            peer
            for peer in self._topics.get(topic, ())
            if peer not in mesh and self._peers[peer].is_open and self.score(peer) >= scores.GOSSIP_THRESHOLD
        }
        turn = [peer for peer in self._turns.get(topic, ()) if peer in others]
        fresh = sorted(others.difference(turn))
        self._rng.shuffle(fresh)
        turn = fresh + turn
        n_told = max(GOSSIP_PEERS, math.ceil(len(turn) / TOLD_WINDOWS))
        self._tell(topic, turn[:n_told], told)
        self._turns[topic] = turn[n_told:] + turn[:n_told]

    def _tell(self, topic: str, peers: Iterable[PeerId], told: list[Name]) -> None:
        framed: dict[bool, bytes] = {}  # to write a thousand names takes a millisecond
        for peer in peers:
            is_kin = self._peers[peer].is_kin
            if is_kin not in framed:
                names = (name.own if is_kin else name.usual for name in told[-MAX_TOLD_IDS:])
                framed[is_kin] = wire.frame_have(topic, names)
            self._send(peer, framed[is_kin])

    # --- what goes out

    def stuck(self) -> list[PeerId]:
        """Peers that leave unread what they have to know: their streams are to be broken off."""
        return [peer for peer, known in self._peers.items() if known.is_stuck]

    def take(self, peer: PeerId, max_bytes: int) -> bytes:
        """What is to be sent to a peer now: whole RPCs, about `max_bytes` of them; b"" where nothing waits."""
        known = self._peers.get(peer)
        data = known.take(max_bytes) if known else b""
        if known is None or not known.has_more:
            self.waiting.discard(peer)
        return data

    def _send(self, peer: PeerId, framed: bytes, is_vital: bool = False) -> None:
        known = self._peers.get(peer)
        if known is not None and known.put(framed, is_vital):
            self.waiting.add(peer)

    def _tell_all(self, topic: str, is_subscribed: bool) -> None:
        framed = wire.frame_subscriptions([topic], is_subscribed)
        for peer in self._peers:
            self._send(peer, framed, is_vital=True)

    def _send_graft(self, topic: str, peer: PeerId) -> None:
        self._send(peer, wire.frame_graft(topic), is_vital=True)

    def _send_prune(self, topic: str, peer: PeerId, is_leaving: bool) -> None:
        backoff_s = LEAVE_BACKOFF_S if is_leaving else BACKOFF_S
        self._send(peer, wire.frame_prune(wire.Prune(topic, int(backoff_s))), is_vital=True)
