"""Being found and finding: provider records kept alive in the DHT, subscribers of a topic met.

A provider record lives for 48 h (IPFS Kademlia DHT specification) and is sent again after 22 h at the latest. The
schedule is for what is fresh; what is out already is kept alive by `protocols.sweep`, whose place is stored.
"""

import heapq
import math
import random
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog
import trio

from protocols.errors import DialFailed
from protocols.net import Network, PeerInfo
from protocols.topics import rendezvous_key
from storage.cid import Cid

RECORD_LIFETIME_S: Final = 48 * 3600.0
REPROVIDE_S: Final = 22 * 3600.0
REPROVIDE_JITTER_FRAC: Final = 0.1  # earlier, never later
PROVIDE_GAP_S: Final = 1.0  # stock py-libp2p takes 10 records in 10 s from a peer, and drops the rest unseen
PROVIDE_TIMEOUT_S: Final = 60.0
MAX_SCHEDULED: Final = 1 << 18

FIND_TIMEOUT_S: Final = 60.0
MAX_MET: Final = 20
MEET_ALONE_S: Final = 15.0
MEET_S: Final = 600.0
ENOUGH_PEERS: Final = 6  # of a topic, connected: the mesh of GossipSub wants no more

log = structlog.get_logger(__name__)


class Provide(NamedTuple):
    """Ask to have `cid` provided from now on, or, after a restart, from some time `within_s` on."""

    cid: Cid
    is_root: bool = True
    within_s: float = 0.0


class ProvideSchedule:
    """Which CID is to be provided next, and when: roots first, each again within 22 h, one per gap."""

    def __init__(self, rng: random.Random, gap_s: float = PROVIDE_GAP_S, reprovide_s: float = REPROVIDE_S) -> None:
        """`reprovide_s` may be infinite, where something else keeps the records alive."""
        self._rng = rng
        self._reprovide_s = reprovide_s
        self._gap_s = gap_s
        self._free_s = -math.inf
        self._entries: dict[Cid, tuple[float, bool]] = {}  # when due, and whether a root
        self._heaps: dict[bool, list[tuple[float, Cid]]] = {True: [], False: []}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, cid: Cid) -> bool:
        return cid in self._entries

    def add(self, request: Provide, now_s: float) -> bool:
        """Take up a CID, or make a known one a root. Returns: False when the schedule is full."""
        due_s = now_s + self._rng.uniform(0, request.within_s)
        if request.cid in self._entries:
            known_due_s, was_root = self._entries[request.cid]
            self._put(request.cid, min(due_s, known_due_s), was_root or request.is_root)
        elif len(self._entries) >= MAX_SCHEDULED:
            return False
        else:
            self._put(request.cid, due_s, request.is_root)
        return True

    def know(self, cid: Cid) -> None:
        """Note a CID that was provided already, if there is room."""
        if cid not in self._entries and len(self._entries) < MAX_SCHEDULED:
            self._put(cid, math.inf, True)

    def remove(self, cid: Cid) -> None:
        """Let go of a CID; the records that are out die of age."""
        self._entries.pop(cid, None)

    def take(self, now_s: float) -> Cid | None:
        """The CID to provide now, if there is one; it comes again in due time."""
        if now_s < self._free_s:
            return None
        for is_root in (True, False):
            due_s, cid = self._first(is_root)
            if cid is not None and due_s <= now_s:
                self._free_s = now_s + self._gap_s
                self._put(cid, now_s + self._reprovide_s * (1 - self._rng.uniform(0, REPROVIDE_JITTER_FRAC)), is_root)
                return cid
        return None

    def next_deadline_s(self) -> float:
        """When `take` will next have something; `math.inf` for never."""
        return max(self._free_s, min(self._first(True)[0], self._first(False)[0]))

    def _put(self, cid: Cid, due_s: float, is_root: bool) -> None:
        if self._entries.get(cid) != (due_s, is_root):
            self._entries[cid] = (due_s, is_root)
            heapq.heappush(self._heaps[is_root], (due_s, cid))

    def _first(self, is_root: bool) -> tuple[float, Cid | None]:
        heap = self._heaps[is_root]
        while heap and self._entries.get(heap[0][1]) != (heap[0][0], is_root):
            heapq.heappop(heap)  # moved or removed since
        return heap[0] if heap else (math.inf, None)


async def keep_provided(
    core: ProvideSchedule,
    requests: trio.MemoryReceiveChannel[Provide],
    network: Network,
    is_wanted: Callable[[Cid], bool] = lambda cid: True,
) -> None:
    """Provide by the schedule until `requests` closes. Without a peer it waits: a record told to nobody is lost.

    Args:
        is_wanted: Is this CID still to be provided? Asked each time; one that is not is dropped.
    """
    async with requests:
        while True:
            cid = core.take(trio.current_time()) if network.peers() else None
            if cid is not None and not is_wanted(cid):
                core.remove(cid)
            elif cid is not None:
                with trio.move_on_after(PROVIDE_TIMEOUT_S):
                    await network.provide(cid)
            wake_s = core.next_deadline_s()
            if not network.peers():
                wake_s = max(wake_s, trio.current_time() + PROVIDE_GAP_S)
            with trio.move_on_at(wake_s):
                try:
                    request = await requests.receive()
                except trio.EndOfChannel:
                    return
                if not core.add(request, trio.current_time()):
                    log.warning("provide_schedule_full", cid=str(request.cid), limit=MAX_SCHEDULED)


async def meet_subscribers(network: Network, topic: str, rng: random.Random) -> None:
    """Connect to those who, like us, provide the topic's rendezvous key; look often while there is nobody."""
    key = rendezvous_key(topic)
    provide_at_s = -math.inf
    while True:
        if network.peers():
            if trio.current_time() >= provide_at_s:
                with trio.move_on_after(PROVIDE_TIMEOUT_S):
                    await network.provide(key)
                provide_at_s = trio.current_time() + REPROVIDE_S * (1 - rng.uniform(0, REPROVIDE_JITTER_FRAC))
            if len(network.topic_peers(topic)) < ENOUGH_PEERS:
                with trio.move_on_after(FIND_TIMEOUT_S):
                    for info in await network.find_providers(key, MAX_MET):
                        if info.peer not in network.peers():
                            await _try_to_connect(network, info)
        pause_s = MEET_S if network.topic_peers(topic) else MEET_ALONE_S
        await trio.sleep(pause_s * rng.uniform(0.5, 1.0))


async def _try_to_connect(network: Network, info: PeerInfo) -> None:
    try:
        await network.connect(info)
    except DialFailed as error:
        log.info("dial_failed", peer=str(info.peer), error=str(error))
