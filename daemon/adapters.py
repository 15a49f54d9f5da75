"""The adapter services of a node, as operations use them."""

import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from agents.adapters.bases import base_of
from agents.adapters.decide import TRUST_KIND
from agents.adapters.fits import read_layers
from agents.adapters.inspect import inspect_folder
from agents.adapters.manifests import hide, read_stored, unpin_files
from agents.adapters.policy import Policy
from agents.adapters.ports import Ports
from agents.adapters.publish import Release, publish
from agents.adapters.subscribe import NewBase, News, NewTrust, Wanted
from agents.errors import BadAdapter, Untrusted
from agents.models import card_of
from daemon.api.faults import fault_of
from daemon.config import Config
from daemon.errors import DaemonError
from daemon.naming import Names, label_of
from daemon.provide import Provider
from protocols.errors import ProtocolError, Remote
from storage.blockstore import Visibility
from storage.catalog.adapters import AdapterRow, AdapterState
from storage.cid import Cid
from storage.errors import CorruptBlock, InvalidName, NotFound, StorageError, TooLarge
from storage.keys import PeerId

log = structlog.get_logger(__name__)


def policy_of(config: Config) -> Policy:
    """What the settings say of adapters that nobody asked for."""
    wish = config.adapters
    return Policy(
        unasked=wish.unasked,
        max_bytes_per_day=1e6 * wish.mb_per_day or math.inf,
        is_metered=config.network.is_metered,
        only_idle=wish.only_idle,
    )


@dataclass(frozen=True, slots=True)
class Adapters:
    """`published` takes manifests that are to be announced, `news` what the subscriber should know."""

    ports: Ports
    published: trio.MemorySendChannel[Cid]
    news: trio.MemorySendChannel[News]
    provider: Provider
    names: Names | None = None

    async def listen(self) -> None:
        """Hear of adapters for every model that is here by now; those that are known already cost nothing."""
        models = await trio.to_thread.run_sync(self.ports.catalog.models.list)
        for base in sorted({base for model in models for base in model.accepts}):
            await self.news.send(NewBase(Cid.parse(base)))

    async def trusts(self, peer: PeerId) -> None:
        """Ask a publisher that is trusted from now on what it announces."""
        await self.news.send(NewTrust(peer))

    async def publish(
        self,
        folder: Path,
        *,
        name: str,
        version: int | None = None,
        model: str | None = None,
        tags: Sequence[str] = (),
        licence: str | None = None,
        visibility: Visibility = Visibility.FLOCK,
        members: Sequence[PeerId] = (),
    ) -> AdapterRow:
        """Publish the PEFT folder for the model that it was trained on. Raises: BadAdapter, WrongBase, StoreFull."""
        inspection = await trio.to_thread.run_sync(inspect_folder, folder)
        base = base_of(inspection, self.ports.catalog.models.list(), model)
        losses = {key: inspection.training.get(key) for key in ("loss_before", "loss_after")}
        release = Release(
            name=name,
            base=card_of(base),
            layers=await trio.to_thread.run_sync(read_layers, Path(base.folder)),
            version=version,
            tags=tags,
            metrics={key: float(value) for key, value in losses.items() if isinstance(value, int | float)},
            licence=licence,
            visibility=visibility,
            members=members,
        )
        row = await publish(self.ports, folder, release, self.published)
        self.provider.provide_adapter_soon(row)
        if visibility is Visibility.PUBLIC and self.names is not None:
            await self._name(self.names, row)
        return row

    async def _name(self, names: Names, row: AdapterRow) -> None:
        """Let the adapter's IPNS name stand for this version; it is published, whatever becomes of that."""
        try:
            await self.ports.exchange.work(partial(names.point, label_of(row.name), row.manifest))
        except (DaemonError, ProtocolError, StorageError) as error:
            log.warning("adapter_not_named", name=row.name, error=str(error))
        names.tell_soon()

    async def publish_found(self, folder: Path) -> None:
        """Publish what a watcher found, named after its folder; a damaged block under it is told of by an event.

        Raises: BadAdapter, WrongBase, StoreFull.
        """
        try:
            await self.publish(folder, name=folder.name)
        except (CorruptBlock, NotFound, TooLarge, InvalidName) as error:  # no later attempt would fare better
            fault = fault_of(error)
            self.ports.emit("adapter_skipped", folder=str(folder), code=fault.code, text=fault.text)

    async def fetch(self, row: AdapterRow) -> None:
        """Bring in an adapter that waits, was refused or removed. Raises: Untrusted, BadAdapter."""
        if row.is_own:
            raise BadAdapter("it is your own: publish its folder again: covey adapter publish")
        if not self.ports.catalog.peers.is_trusted(row.publisher, TRUST_KIND):
            raise Untrusted(
                f"its publisher is not trusted. To trust it: covey peer trust {row.publisher} --kinds adapters"
            )
        self.ports.catalog.adapters.set_state(row.manifest, AdapterState.WANTED, self.ports.unix_s())
        await self.news.send(Wanted(row.manifest))

    def became_ready(self, manifest: Cid) -> None:
        """An adapter was brought in: where its publisher lets everybody have it, the DHT hears so now."""
        row = self.ports.catalog.adapters.get(manifest)
        if row is not None:
            self.provider.provide_adapter_soon(row)

    async def forget(self, row: AdapterRow) -> None:
        """Show and announce it no more, let go of its blocks, delete its files here; fetch it only when asked to."""
        await self.ports.exchange.work(partial(self._forget, row))
        self.ports.emit("adapter_removed", manifest=str(row.manifest), name=row.name, version=row.version)

    def _forget(self, row: AdapterRow) -> None:
        with suppress(StorageError, Remote):  # it never came as far as blocks, or they are no DAG
            entry, manifest = read_stored(self.ports.store, row.manifest)
            hide(self.ports, entry)  # first: whoever is killed in between may ask for all of it once more
            unpin_files(self.ports, entry, manifest)
        if row.is_own and self.names is not None:
            self.names.let_go(label_of(row.name), row.manifest)
        self.ports.catalog.adapters.set_state(row.manifest, AdapterState.REMOVED, self.ports.unix_s())
        if row.folder is not None:
            shutil.rmtree(row.folder, ignore_errors=True)
