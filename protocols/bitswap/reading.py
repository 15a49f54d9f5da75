"""The blocks of a batch, as they travel."""

from protocols.bitswap.exchange import Exchange
from protocols.bitswap.serving import Batch
from protocols.bitswap.wire import Payload, payload_of
from storage.errors import StorageError
from storage.keys import PeerId


def read_batch(exchange: Exchange, peer: PeerId, batch: Batch) -> list[Payload | None]:
    """Read the blocks of a batch; None for one that is gone, damaged, or not to be had just now.

    Nor is one read that the peer may see no more: it was looked up when it was asked for, and may have waited since.
    A disk may fail at one place, or no file be left to open: that is no reason to serve nobody anything.
    """
    try:
        visible = exchange.visible(peer, [entry.cid for entry in batch.blocks])
    except (StorageError, OSError):
        return [None] * len(batch.blocks)
    payloads: list[Payload | None] = []
    for entry in batch.blocks:
        try:
            payloads.append(payload_of(entry.cid, exchange.store.get(entry.cid)) if entry.cid in visible else None)
        except (StorageError, OSError):
            payloads.append(None)
    return payloads
