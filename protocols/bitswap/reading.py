"""The blocks of a batch, as they travel."""

from protocols.bitswap.serving import Batch
from protocols.bitswap.wire import Payload, payload_of
from storage.blockstore import Blockstore
from storage.errors import Corrupt, NotFound


def read_batch(store: Blockstore, batch: Batch) -> list[Payload | None]:
    """Read the blocks of a batch; None for one that is gone, or damaged."""
    payloads: list[Payload | None] = []
    for entry in batch.blocks:
        try:
            payloads.append(payload_of(entry.cid, store.get(entry.cid)))
        except (NotFound, Corrupt):
            payloads.append(None)
    return payloads
