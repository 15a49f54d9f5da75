"""Records of names that anybody put here over HTTP, where the settings let them: verified, and bounded for each client.

They are kept in memory, beside those of this node's catalog; of two records of one name the better counts. Their
content is not served for it: the gateway goes by the catalog alone.
"""

import ipaddress
from collections.abc import Callable
from threading import Lock
from typing import Final

from protocols.errors import Remote
from protocols.ipns import Record, read_record
from protocols.name_records import NameRecords
from storage.keys import PeerId

V6_SUBNET_BITS: Final = 64


def source_of(host: str) -> str:
    """Who a client counts as: its address, or its network, of which one machine has all addresses (IPv6)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    return str(ipaddress.ip_network((host, V6_SUBNET_BITS), strict=False)) if address.version == 6 else host


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
            return self._records.put(name, raw, source_of(client), now_s=unix_s, unix_s=unix_s)

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
