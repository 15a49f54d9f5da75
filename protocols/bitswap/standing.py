"""What is known of one giver of blocks: what it owes us, how quick it has been, and when it may be asked again."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocols.sources import Giver

STALL_S: Final = 1.5  # no byte from a peer that owes us a block
SLOW_S: Final = 10.0  # bytes, but no whole block, while another peer may be quicker
LARGE_BYTES: Final = 16 << 10  # a message of so much is a block that is coming, no talk
PAUSE_S: Final = 5.0  # a stalled peer rests; doubled each time, up to:
MAX_PAUSE_S: Final = 60.0
MAX_IN_FLIGHT: Final = 32  # blocks asked of one peer at a time
MAX_IN_FLIGHT_UNPROVEN: Final = 4
LONG_WAIT_S: Final = 0.75  # idle peers may take over from one that needs longer
QUEUED_STALL_S: Final = 5.0  # no word from a peer in whose queue we wait
QUEUE_S: Final = 5.0  # a peer that let us wait will again
MAX_QUEUED_S: Final = 600.0  # in its queue without a block, and to wait is no sign of life any more
MAX_IN_VAIN: Final = 32  # large messages without a block of use, and that they come is no sign of life any more
MAX_REMEMBERED: Final = 4096  # asks of one peer that a late answer may still refer to


@dataclass(slots=True)
class Peer:
    """One giver, as the core of wanting sees it. Times are of the clock that the core is given."""

    sessions: set[int] = field(default_factory=set)
    in_flight: dict[bytes, float] = field(default_factory=dict)  # multihash -> when it was asked
    remembered: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    is_away: bool = False
    is_fresh: bool = True  # it was asked for nothing since it came
    is_proven: bool = False
    is_partial: bool = False  # has said of some block that it lacks it: asked again for what it says it has
    is_refused: bool = False  # sent tampered bytes: no more asks while any session that saw it lasts
    heard_s: float = -math.inf
    gave_s: float = -math.inf
    grew_s: float = -math.inf  # when a large message of its grew last
    n_grown: int = 0  # bytes of the message that comes from it now
    n_in_vain: int = 0  # large messages that came whole since its last block of use
    excused_s: float = -math.inf  # found slow, and nobody quicker
    block_s: float | None = None  # moving average of what a block takes; None before the first
    gap_s: float | None = None  # moving average between blocks that follow each other
    queued_s: float = -math.inf  # when it said last that we wait in its queue
    queued_since_s: float = math.inf  # when it did so first, since it gave something
    is_waiting: bool = False  # it said so, and nothing since
    coming: set[bytes] = field(default_factory=set)  # what it says it sends now
    is_boasting: bool = False  # it said so, and did not
    pause_s: float = PAUSE_S
    resume_s: float = -math.inf
    n_lacks_in_a_row: int = 0

    def may_be_asked(self, now_s: float) -> bool:
        """Is it there, honest, and rested?"""
        return not self.is_away and not self.is_refused and now_s >= self.resume_s

    def has_room(self) -> bool:
        """May it be asked for one more block?"""
        return len(self.in_flight) < (MAX_IN_FLIGHT if self.is_proven else MAX_IN_FLIGHT_UNPROVEN)

    def is_idle(self, now_s: float) -> bool:
        """Could it give something, and owes nothing?"""
        return self.is_proven and not self.in_flight and bool(self.sessions) and self.may_be_asked(now_s)

    def wait_s(self, now_s: float) -> float:
        """How long what it has in hand will take, by the gaps between blocks: the usual one, or the one that lasts.

        What a first block takes says little here: it is latency, in which the others may be on the wire already.
        """
        return len(self.in_flight) * max(self.gap_s or 0.0, now_s - self.gave_s - LONG_WAIT_S)

    def is_overburdened(self, now_s: float) -> bool:
        """Has it so much in hand that others may take some? The first block is on the wire already."""
        return len(self.in_flight) > 1 and self.wait_s(now_s) > LONG_WAIT_S

    def note_block(self, spent_s: float) -> None:
        """A block of its took so long."""
        self.block_s = max(1e-6, spent_s if self.block_s is None else 0.8 * self.block_s + 0.2 * spent_s)

    def note_late(self, key: bytes, now_s: float) -> None:
        """Another gave what it was at: it takes so long at least."""
        spent_s = now_s - max(self.in_flight[key], self.gave_s)
        least_s = STALL_S if self.block_s is None else self.block_s  # of who gave none yet, only that it lingers
        if not self.is_queue(now_s) and spent_s >= least_s:
            self.note_block(spent_s)

    def note_gap(self, gap_s: float) -> None:
        """So long after the block before."""
        self.gap_s = gap_s if self.gap_s is None else 0.8 * self.gap_s + 0.2 * gap_s

    def stalls_at_s(self) -> float:
        """When it counts as stalled, if nothing more comes."""
        if not self.in_flight:
            return math.inf
        if self.is_waiting:
            return self.heard_s + QUEUED_STALL_S
        return min(self.heard_s + STALL_S, max(self.gave_s, self.excused_s) + SLOW_S)

    def gave(self, key: bytes, now_s: float) -> None:
        """A block of its came."""
        self.gave_s, self.is_proven, self.n_lacks_in_a_row, self.n_in_vain = now_s, True, 0, 0
        self.is_waiting, self.is_boasting, self.queued_since_s = False, False, math.inf
        self.n_grown = 0
        self.coming.discard(key)

    def queued(self, now_s: float) -> None:
        """It says that what we asked of it waits for others."""
        self.queued_s, self.is_waiting = now_s, not self.coming
        self.queued_since_s = min(self.queued_since_s, now_s)
        if now_s < self.queued_since_s + MAX_QUEUED_S:
            self.grew_s = now_s

    def announced(self, key: bytes, now_s: float) -> bool:
        """It says that it has a block. Returns: whether that is to say that it sends it now, as our turn has come."""
        if key not in self.in_flight or self.is_boasting or not self.is_queue(now_s):
            return False
        if not self.coming:
            self.gave_s = now_s  # one word after the other, and no block, gives it no more time
        self.is_waiting = False
        self.coming.add(key)
        return True

    def release(self) -> list[bytes]:
        """Count on it no longer for what it owes. Returns: that."""
        owed = list(self.in_flight)
        self.is_boasting |= bool(self.coming)
        self.in_flight.clear()
        self.coming.clear()
        return owed

    def is_queue(self, now_s: float) -> bool:
        """Does it let us wait for our turn, now or lately?"""
        return self.is_waiting or now_s < self.queued_s + QUEUE_S

    def lets_wait(self, key: bytes, now_s: float) -> bool:
        """Is this block waited for in its queue, and not on its way?"""
        return key not in self.coming and self.is_queue(now_s)

    def is_slow(self, now_s: float) -> bool:
        """Has it owed us a block for long, without saying why?"""
        return not self.is_waiting and bool(self.in_flight) and now_s >= self.gave_s + SLOW_S

    def remember(self, key: bytes) -> None:
        """It was asked for this; an answer that comes late is no fault."""
        self.is_fresh = False
        self.remembered[key] = None
        self.remembered.move_to_end(key)
        if len(self.remembered) > MAX_REMEMBERED:
            self.remembered.popitem(last=False)


def quickest(peers: Mapping[Giver, Peer], names: Sequence[Giver], now_s: float) -> Giver:
    """Who will have answered one more ask soonest; a peer of unknown speed passes for as fast as the best."""
    best_s = min((block_s for name in names if (block_s := peers[name].block_s) is not None), default=1.0)

    def wait_s(name: Giver) -> tuple[bool, float]:
        peer = peers[name]
        block_s = best_s if peer.block_s is None else peer.block_s
        return peer.is_queue(now_s), (len(peer.in_flight) + 1) * block_s

    return min(names, key=wait_s)
