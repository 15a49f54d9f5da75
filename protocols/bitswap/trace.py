"""Where blocks came from: for each that was fetched since the start, who gave it, when, and how long it took."""

from collections import OrderedDict
from typing import Final, NamedTuple

from protocols.sources import Giver
from storage.cid import Cid

MAX_TRACED: Final = 1 << 16  # blocks; the oldest make room


class Origin(NamedTuple):
    """One block's journey. `wait_s` is the time from asking this one; 0 where another had been asked."""

    peer: Giver
    n_bytes: int
    at_s: float
    wait_s: float


class Trace:
    """The origins of blocks by multihash, and what each peer gave in all."""

    def __init__(self) -> None:
        self._origins: OrderedDict[bytes, Origin] = OrderedDict()

    def note(self, cid: Cid, origin: Origin) -> None:
        """A block came."""
        self._origins[cid.multihash] = origin
        self._origins.move_to_end(cid.multihash)
        if len(self._origins) > MAX_TRACED:
            self._origins.popitem(last=False)

    def get(self, cid: Cid) -> Origin | None:
        """Where a block came from; None for one that was here before, or made here."""
        return self._origins.get(cid.multihash)
