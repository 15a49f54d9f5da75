"""Records of names that anybody put here over HTTP, where the settings let them: verified, and bounded for each client.

They are kept in memory, beside those of this node's catalog; of two records of one name the better counts. Their
content is not served for it: the gateway goes by the catalog alone.
"""

from collections.abc import Callable
from threading import Lock

from protocols.addresses import holder_of
from protocols.errors import Remote
from protocols.ipns import Record, read_record
from protocols.name_records import NameRecords
from storage.keys import PeerId


class PutRecords:
    """May be used from several threads."""

    def __init__(self, own: PeerId, kept: Callable[[PeerId], bytes | None]) -> None:
        """`kept` gives what the catalog has."""
        self._records = NameRecords(own)
        self._kept = kept
        self._lock = Lock()

    def put(self, name: PeerId, raw: bytes, client: str, unix_s: float) -> Record:
        """Keep a record that a client brings. Raises: Remote."""
        with self._lock:
            return self._records.put(name, raw, holder_of(client), now_s=unix_s, unix_s=unix_s)

    def better(self, name: PeerId, unix_s: float) -> bytes | None:
        """What was put, where that is better than what the catalog has."""
        with self._lock:
            put = self._records.get(name, unix_s)
        kept = self._kept(name)
        if put is None or kept is None:
            return put.raw if put else None
        try:
            return put.raw if put.rank > read_record(kept, name, unix_s).rank else None
        except Remote:
            return put.raw
