"""A node's share of the simulated DHT: what it provides, and the records of names that it keeps.

Lookups have no steps here: who is connected, over others too, is reached.
"""

import math
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

from protocols.errors import Remote, Replayed
from protocols.ipns import read_record
from protocols.lookup import CLOSEST
from protocols.name_records import NameRecords, key_of_name
from protocols.net import PeerInfo
from protocols.routing import RECORD_LIFETIME_S
from protocols.sweep import key_of
from storage.cid import Cid
from storage.keys import PeerId


class Share:
    """What one node has."""

    def __init__(self, info: PeerInfo) -> None:
        self.info: Final = info
        self.records: Final = NameRecords(info.peer)
        self._provided: dict[Cid, float] = {}  # when the record expires

    def provide(self, cid: Cid) -> None:
        """Others find that this node has it, for as long as a record lives."""
        self._provided[cid] = trio.current_time() + RECORD_LIFETIME_S

    def provides(self, cid: Cid) -> bool:
        """Would it be found?"""
        return self._provided.get(cid, -math.inf) > trio.current_time()

    def put(self, name: PeerId, raw: bytes, source: PeerId, unix_s: float) -> None:
        """Keep a record that `source` brings. Raises: Remote."""
        self.records.put(name, raw, source, now_s=trio.current_time(), unix_s=unix_s)


class Member:
    """The part of a simulated node that takes part in the DHT; see `protocols.net.Network` for what methods promise."""

    def __init__(self, info: PeerInfo) -> None:
        self.share: Final = Share(info)

    def others(self) -> list[Share]:
        """What the nodes have that are reached from here, in an order that is always the same."""
        raise NotImplementedError

    def hop_s(self) -> float:
        """What a message takes at most."""
        raise NotImplementedError

    def chance(self) -> random.Random:
        """For a choice that is made now."""
        raise NotImplementedError

    async def provide(self, cid: Cid) -> None:
        """See `Network`."""
        await trio.sleep(2 * self.hop_s())
        self.share.provide(cid)

    async def provide_many(self, cids: Sequence[Cid]) -> int:
        """See `Network`."""
        for cid in cids:
            await self.provide(cid)
        return len(cids)

    async def find_providers(self, cid: Cid, limit: int) -> list[PeerInfo]:
        """See `Network`."""
        await trio.sleep(4 * self.hop_s())
        found = [share.info for share in self.others() if share.provides(cid)]
        return self.chance().sample(found, limit) if len(found) > limit else found

    async def publish_record(self, name: PeerId, raw: bytes, unix_s: float) -> int:
        """See `Network`."""
        own, place = self.share.info.peer, key_of(key_of_name(name))
        await trio.sleep(2 * self.hop_s())
        known = await self.find_record(name, unix_s)
        if known and read_record(known, name, unix_s).rank > read_record(raw, name, unix_s).rank:
            raise Replayed("the DHT has a better record")
        self.share.put(name, raw, own, unix_s)
        n_taken = 0
        for share in sorted(self.others(), key=lambda share: key_of(share.info.peer) ^ place)[:CLOSEST]:
            with suppress(Remote):
                share.put(name, raw, own, unix_s)
                n_taken += 1
        return n_taken

    async def find_record(self, name: PeerId, unix_s: float) -> bytes | None:
        """See `Network`."""
        await trio.sleep(4 * self.hop_s())
        shares = [self.share, *self.others()]
        records = [record for share in shares if (record := share.records.get(name, unix_s))]
        return max(records, key=lambda record: record.rank).raw if records else None
