"""Which of this node's content the DHT is told of: what strangers may have. All of it comes from the store and the
catalog, so nothing of it is kept, but for where the walk that keeps records alive stands."""

import math
import random
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Final

import structlog
import trio

from agents.adapters.manifests import read_stored
from agents.adapters.ports import Ports
from protocols.artifacts import KINDS
from protocols.errors import Remote
from protocols.routing import Provide, ProvideSchedule, keep_provided
from protocols.sweep import LATE_S, Arc, State, Sweep
from storage.blockstore import Store, Visibility
from storage.catalog.adapters import AdapterRow, AdapterState
from storage.cid import DAG_PB, Cid
from storage.codecs import dag_pb
from storage.errors import StorageError

SPREAD_S: Final = 600.0  # what was public before a start is provided within this time
MAX_AT_START: Final = 256  # so many are told again after every start: who kept their records may be new, too
LOOK_S: Final = 300.0  # for what became public without being told here: fetched adapters
SWEEP_LOOK_S: Final = 300.0
SWEEP_TIMEOUT_S: Final = 900.0  # for one arc
MAX_WAITING: Final = 1024
MAX_ADAPTERS: Final = 1000
MAX_NAMES: Final = 256  # of one folder, provided each by itself

log = structlog.get_logger(__name__)


class Provider:
    """Roots on their way to the DHT. Whether a stranger may still see one is asked whenever its turn comes."""

    def __init__(self, ports: Ports, rng: random.Random) -> None:
        self._ports = ports
        self._rng = rng
        self._asked, self._waiting = trio.open_memory_channel[Cid](MAX_WAITING)

    def provide_soon(self, *roots: Cid) -> None:
        """Provide roots that were just published. One too many is found by the next look."""
        for root in roots:
            try:
                self._asked.send_nowait(root)
            except trio.WouldBlock:
                log.warning("provide_postponed", cid=str(root))

    def provide_adapter_soon(self, row: AdapterRow) -> None:
        """Provide an adapter that was just published."""
        self.provide_soon(*_roots_of(self._ports.store, row))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Provide every public root, and what is asked for, until cancelled."""
        schedule = ProvideSchedule(self._rng, reprovide_s=math.inf)
        state = await self._ports.exchange.work(self._ports.catalog.sweeps.get)
        public = await self._ports.exchange.work(self._all_public)
        for request in public:
            if state is None or len(public) <= MAX_AT_START:
                schedule.add(request, trio.current_time())
            else:
                schedule.know(request.cid)
        requests, pending = trio.open_memory_channel[Provide](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_provided, schedule, pending, self._ports.network, self._is_public)
            nursery.start_soon(self._sweep, Sweep(State(*state) if state else State(0.0, self._ports.unix_s())))
            task_status.started()
            while True:
                with trio.move_on_after(LOOK_S):
                    async for root in self._waiting:
                        for request in provided_with(self._ports.store, root):
                            await requests.send(request)
                for request in await self._ports.exchange.work(self._all_public):
                    if request.cid not in schedule:
                        await requests.send(request._replace(within_s=0.0))

    async def _sweep(self, sweep: Sweep) -> None:
        """Walk round the keyspace for ever; tell the user when the walk falls behind."""
        is_late = False
        await self._keep(sweep)
        while True:
            await trio.sleep(SWEEP_LOOK_S)
            while self._ports.network.peers() and (arc := sweep.due(self._ports.unix_s())) is not None:
                if not await self._tell(arc):
                    break
                sweep.done(arc)
                await self._keep(sweep)
            lag_s = sweep.lag_s(self._ports.unix_s())
            if lag_s > LATE_S and not is_late:
                log.warning("provides_late", lag_s=round(lag_s))
                self._ports.emit("provides_late", lag_s=round(lag_s))
            is_late = lag_s > LATE_S

    async def _tell(self, arc: Arc) -> bool:
        """Tell of all that lies on an arc. Returns: whether that was done, so far as there was anybody to tell."""
        cids = await self._ports.exchange.work(partial(self._public_on, arc))
        n_told = 0
        with trio.move_on_after(SWEEP_TIMEOUT_S) as limit:
            n_told = await self._ports.network.provide_many(cids) if cids else 0
        return not limit.cancelled_caught and (n_told > 0 or not cids)

    async def _keep(self, sweep: Sweep) -> None:
        await self._ports.exchange.work(partial(self._ports.catalog.sweeps.put, *sweep.state))

    def _public_on(self, arc: Arc) -> list[Cid]:
        """What lies on an arc and is here for strangers: of a public folder not all need be."""
        cids = dict.fromkeys(request.cid for request in self._all_public())
        return [cid for cid in cids if arc.holds(cid) and self._is_public(cid)]

    def _is_public(self, cid: Cid) -> bool:
        return self._ports.roots.may_see(None, cid, is_flock=False)

    def _all_public(self) -> list[Provide]:
        """What was published as it is, and what is public of the artifacts, own and fetched."""
        roots = [root.cid for root in self._ports.roots.list() if root.level is Visibility.PUBLIC]
        for row in self._ports.catalog.adapters.query(state=AdapterState.READY, limit=MAX_ADAPTERS):
            roots += filter(self._is_public, _roots_of(self._ports.store, row))
        for kind in KINDS:
            for artifact in self._ports.catalog.artifacts.find(kind=kind, limit=MAX_ADAPTERS):
                named = [artifact.manifest, *([artifact.files] if artifact.files else [])]
                roots += filter(self._is_public, named)
        return [request for root in roots for request in provided_with(self._ports.store, root, SPREAD_S)]


def provided_with(store: Store, root: Cid, within_s: float = 0.0) -> Iterator[Provide]:
    """A root, and behind it what a folder names, since files of it are asked for by their own CIDs too."""
    yield Provide(root, within_s=within_s)
    if root.codec == DAG_PB:
        with suppress(StorageError):  # it is not here, or is no folder: the root alone
            named = [link.cid for link in dag_pb.decode(store.get(root)).links if link.name]
            yield from (Provide(cid, is_root=False, within_s=within_s) for cid in named[:MAX_NAMES])


def _roots_of(store: Store, row: AdapterRow) -> list[Cid]:
    with suppress(StorageError, Remote):  # its blocks are gone: nothing to provide
        return [row.manifest, read_stored(store, row.manifest)[1].files]
    return []
