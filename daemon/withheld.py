"""Tells the user of peers that asked for what they may not see: later, and not while they are answered.

An answer may not tell what is not here from what is hidden, in time neither. So what was refused is noted alike, and
looked up at a pace of its own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Final

import trio

from storage.blockstore import Blockstore
from storage.cid import Cid
from storage.keys import PeerId

LOOK_S: Final = 1.0
MAX_NOTED: Final = 16  # of one peer, between two looks

Tell = Callable[[PeerId, Cid], None]
"""Tell the user that this peer asked for this block, which is here."""


class Withheld:
    """What was refused lately. `note` may be called from any thread."""

    def __init__(self, store: Blockstore, tell: Tell) -> None:
        self._store = store
        self._tell = tell
        self._lock = Lock()
        self._refused: dict[PeerId, list[Cid]] = {}

    def note(self, peer: PeerId, cids: Sequence[Cid]) -> None:
        """These are not here, or hidden from `peer`."""
        with self._lock:
            noted = self._refused.setdefault(peer, [])
            noted += cids[: MAX_NOTED - len(noted)]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look what of it is hidden, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(LOOK_S)
            with self._lock:
                refused, self._refused = self._refused, {}
            for peer, cids in refused.items():
                for cid in await trio.to_thread.run_sync(partial(self._hidden, cids)):
                    self._tell(peer, cid)

    def _hidden(self, cids: Sequence[Cid]) -> list[Cid]:
        return [cid for cid in cids if self._store.seen(cid) is not None]
