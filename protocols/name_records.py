"""Records of names that this node keeps for others, as a peer of the DHT: verified, the better of two, for a while.

Anybody may put records here, and names cost nothing to make: each peer that brings them has its share of the room, and
when all of it is full, whoever holds most gives way. So who floods pushes out itself.
"""

from collections import Counter, OrderedDict
from typing import Final, NamedTuple

from protocols.bucket import Bucket
from protocols.errors import Malformed, Replayed, TooBig
from protocols.ipns import Record, read_record
from storage.keys import InvalidPeerId, PeerId

NAMESPACE: Final = b"/ipns/"
MAX_NAME_KEY_BYTES: Final = len(NAMESPACE) + 64

MAX_RECORDS: Final = 4096
MAX_BYTES: Final = 8 << 20
MAX_RECORDS_OF_PEER: Final = 256
MAX_BYTES_OF_PEER: Final = 1 << 20
KEPT_S: Final = 48 * 3600.0  # after it came, as the DHT's specification has it; its own end may be sooner
PUTS: Final = 100  # by one peer, at once
PUTS_REFILL_S: Final = 60.0
MAX_BUCKETS: Final = 1024


def key_of_name(name: PeerId) -> bytes:
    """The key under which the DHT has a name's record."""
    return NAMESPACE + name


def name_of_key(key: bytes) -> PeerId:
    """The name that a key of the DHT is of. Raises: Malformed."""
    if not key.startswith(NAMESPACE) or len(key) > MAX_NAME_KEY_BYTES:
        raise Malformed("the key is not that of a name")
    try:
        return PeerId(key.removeprefix(NAMESPACE))
    except InvalidPeerId as error:
        raise Malformed(f"the key is not that of a name: {error}") from None


class TooFast(TooBig):
    """Somebody brings more records than this node takes of one; honest peers with many names do."""


Source = PeerId | str
"""Who brings records: a peer, or whatever a client over HTTP is told by."""


class _Kept(NamedTuple):
    record: Record
    source: Source
    unix_s: float

    def has_ended(self, unix_s: float) -> bool:
        return self.record.has_expired(unix_s) or unix_s - self.unix_s > KEPT_S


class NameRecords:
    """Records by name, the longest unchanged first. `own` is this node: its own records give way to nobody's."""

    def __init__(self, own: PeerId) -> None:
        self.own: Final = own
        self._kept: OrderedDict[PeerId, _Kept] = OrderedDict()
        self._n_records = Counter[Source]()  # by source
        self._n_bytes = Counter[Source]()
        self._buckets: OrderedDict[Source, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def n_bytes(self) -> int:
        """What they take."""
        return self._n_bytes.total()

    def get(self, name: PeerId, unix_s: float) -> Record | None:
        """The record of a name, while its time lasts."""
        kept = self._kept.get(name)
        if kept is not None and kept.has_ended(unix_s):
            self.drop(name)
            return None
        return kept.record if kept else None

    def put(self, name: PeerId, raw: bytes, source: Source, *, now_s: float, unix_s: float) -> Record:
        """Keep a record that `source` brings, if it is good and no worse than the one here.

        Raises: TooBig, TooFast, Malformed, Forged, Expired, Replayed: there is a better one.
        """
        if source != self.own and not self._bucket(source, now_s).may_take(1, now_s):
            raise TooFast(f"over {PUTS} records in {PUTS_REFILL_S:g} s")
        record = read_record(raw, name, unix_s)
        before = self.get(name, unix_s)
        if before is not None and before.rank > record.rank:
            raise Replayed(f"there is a record of sequence {before.sequence}; this one has {record.sequence}")
        kept = self._kept.get(name)
        if kept is not None and kept.record.raw == raw:
            source = kept.source  # who repeats another's record, then floods, shall not push it out with its own
        self.drop(name)
        self._kept[name] = _Kept(record, source, unix_s)
        self._n_records[source] += 1
        self._n_bytes[source] += len(raw)
        self._make_room(source, unix_s)
        return record

    def drop(self, name: PeerId) -> None:
        """Keep a name's record no more."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            self._n_records[kept.source] -= 1
            self._n_bytes[kept.source] -= len(kept.record.raw)
            if not self._n_records[kept.source]:
                del self._n_records[kept.source], self._n_bytes[kept.source]

    def _make_room(self, source: Source, unix_s: float) -> None:
        while source != self.own and (
            self._n_records[source] > MAX_RECORDS_OF_PEER or self._n_bytes[source] > MAX_BYTES_OF_PEER
        ):
            self._drop_oldest_of(source)
        if len(self._kept) <= MAX_RECORDS and self.n_bytes <= MAX_BYTES:
            return
        for name in [name for name, kept in self._kept.items() if kept.has_ended(unix_s)]:
            self.drop(name)
        while len(self._kept) > MAX_RECORDS or self.n_bytes > MAX_BYTES:
            others = [peer for peer in self._n_bytes if peer != self.own]
            if not others:
                return  # all is our own, which the catalog bounds
            self._drop_oldest_of(max(others, key=lambda peer: (self._n_records[peer], self._n_bytes[peer])))

    def _drop_oldest_of(self, source: Source) -> None:
        self.drop(next(name for name, kept in self._kept.items() if kept.source == source))

    def _bucket(self, source: Source, now_s: float) -> Bucket:
        bucket = self._buckets.setdefault(source, Bucket(PUTS, PUTS_REFILL_S, now_s))
        self._buckets.move_to_end(source)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return bucket
