"""Bring in an artifact by the CID of its manifest: fetch that alone, verify it, ask the trust policy, register it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from agents.adapters.decide import TRUST_KIND as TRUST_ADAPTERS
from agents.adapters.manifests import read_stored, row_of
from agents.adapters.obtain import (
    MANIFEST_TIMEOUT_S,
    MEAN_BLOCK_BYTES,
    MIN_BLOCKS,
    OVERHEAD_BYTES,
    OVERHEAD_FRAC,
    fetch_entry,
    file_links,
)
from agents.adapters.passing import MAX_PROVIDERS, PASSED_ON
from agents.adapters.ports import Ports
from agents.artifacts.keep import pin_files, pin_manifest
from agents.artifacts.rows import artifact_row
from agents.errors import Untrusted
from protocols import adapters as adapter_wire
from protocols.artifacts import describe
from protocols.entry import Entry, stored_entry
from protocols.fetch.dag import IDLE_TIMEOUT_S, MAX_BLOCKS, Progress, fetch_dag
from protocols.net import PeerInfo
from storage.blockstore import Visibility
from storage.catalog.artifacts import ArtifactRow
from storage.cid import Cid
from storage.pins import PinState

# What a publisher has to be trusted with, by the kind of artifact.
TRUST_KINDS: Final[Mapping[str, str]] = {
    adapter_wire.KIND: TRUST_ADAPTERS,
    "model": "models",
    "dataset": "datasets",
    "checkpoint": "checkpoints",
}


async def register(
    ports: Ports,
    manifest: Cid,
    providers: Sequence[PeerInfo] = (),
    *,
    idle_timeout_s: float = MANIFEST_TIMEOUT_S,
) -> ArtifactRow:
    """Fetch a manifest, verify it, and put it into the catalog; its files are not fetched.

    An adapter is noted as heard of: fetching it is the subscriber's. Raises: Remote, Untrusted, TooLarge.
    """
    entry = await fetch_entry(ports, manifest, list(providers), idle_timeout_s=idle_timeout_s)
    return await ports.exchange.work(partial(_register, ports, entry))


async def fetch_files(
    ports: Ports,
    row: ArtifactRow,
    providers: Sequence[PeerInfo] = (),
    *,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Bring in, and hold, what a registered artifact consists of, no more of it than its manifest says.

    What its publisher itself gives may be passed on as it signed. Raises: as `fetch_dag`.
    """
    entry = await ports.exchange.work(partial(stored_entry, ports.store, row.manifest))
    said = describe(entry)
    show = PASSED_ON[said.audience]
    await ports.exchange.work(partial(pin_files, ports, row.manifest, said.files, PinState.FETCHING))
    fetched = await fetch_dag(
        ports.exchange,
        said.files,
        providers=[*providers, PeerInfo(row.publisher)],
        find_more=partial(ports.network.find_providers, said.files, MAX_PROVIDERS),
        on_progress=on_progress,
        idle_timeout_s=idle_timeout_s,
        links=file_links,
        max_blocks=min(MAX_BLOCKS, MIN_BLOCKS + said.n_bytes // MEAN_BLOCK_BYTES),
        max_bytes=int(said.n_bytes * (1 + OVERHEAD_FRAC)) + OVERHEAD_BYTES,
        show=show,
        voucher=row.publisher,
        announce=partial(ports.network.provide, said.files) if show is Visibility.PUBLIC else None,
    )
    await ports.exchange.work(partial(pin_files, ports, row.manifest, said.files, PinState.COMPLETE))
    return fetched


def _register(ports: Ports, entry: Entry) -> ArtifactRow:
    """Raises: Malformed, TooBig, Untrusted, TooLarge."""
    is_own = entry.author == ports.identity.peer_id
    row = artifact_row(entry, is_own=is_own)
    kind = TRUST_KINDS[row.kind]
    if not is_own and not ports.catalog.peers.is_trusted(entry.author, kind):
        raise Untrusted(
            f"its publisher is not trusted with {kind}. To trust it: covey peer trust {entry.author} --kinds {kind}"
        )
    with ports.store.lease(), ports.catalog.transaction():
        ports.store.put_many(entry.blocks)  # they may have been swept since they came
        ports.catalog.artifacts.put(row)
        if row.kind == adapter_wire.KIND:
            known = ports.catalog.adapters.get(row.manifest)
            if known is None:
                ports.catalog.adapters.upsert(row_of(*read_stored(ports.store, row.manifest), ports.unix_s()))
        else:
            pin_manifest(ports, entry)
            # Its author signed who may have these two; what they link to has levels of its own.
            if not is_own:
                ports.store.set_floor((entry.cid, entry.body_cid), PASSED_ON[describe(entry).audience])
    noted = ports.catalog.artifacts.get(row.manifest)
    assert noted is not None
    return noted
