"""Tell the DHT which public content is here: soon after it is published, and again before the records run out."""

from typing import Final

import trio

from daemon.lifecycle import log
from protocols.net import Network
from storage.blockstore import Visibility
from storage.cid import Cid
from storage.roots import Roots

AGAIN_S: Final = 12 * 3600.0  # provider records live for 48 h, some nodes keep them for 24
FIRST_S: Final = 30.0  # the node has met its peers by then
PROVIDE_LIMIT_S: Final = 60.0
MAX_WAITING: Final = 1024


class Provider:
    """Roots on their way to the DHT. `run` provides them one after another: each takes dozens of requests."""

    def __init__(self, network: Network, roots: Roots) -> None:
        self._network = network
        self._roots = roots
        self._asked, self._waiting = trio.open_memory_channel[Cid](MAX_WAITING)

    def provide_soon(self, cid: Cid) -> None:
        """Provide a root that was just made public. One too many waits for its next turn."""
        try:
            self._asked.send_nowait(cid)
        except trio.WouldBlock:
            log.warning("provide_postponed", cid=str(cid))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Provide what is asked for, and every public root in turn, until cancelled."""
        task_status.started()
        next_round_s = trio.current_time() + FIRST_S
        while True:
            with trio.move_on_at(next_round_s):
                await self._provide(await self._waiting.receive())
                continue
            for root in self._roots.list():
                if root.level is Visibility.PUBLIC:
                    await self._provide(root.cid)
            next_round_s = trio.current_time() + AGAIN_S

    async def _provide(self, cid: Cid) -> None:
        with trio.move_on_after(PROVIDE_LIMIT_S):
            await self._network.provide(cid)
