"""The blocks of a batch, as they travel."""

from protocols.bitswap.serving import Batch
from protocols.bitswap.wire import Payload, payload_of
from storage.blockstore import Blockstore
from storage.errors import StorageError


def read_batch(store: Blockstore, batch: Batch) -> list[Payload | None]:
    """Read the blocks of a batch; None for one that is gone, damaged, or not to be had just now.

    A disk may fail at one place, or no file be left to open: that is no reason to serve nobody anything.
    """
    payloads: list[Payload | None] = []
    for entry in batch.blocks:
        try:
            payloads.append(payload_of(entry.cid, store.get(entry.cid)))
        except (StorageError, OSError):
            payloads.append(None)
    return payloads
