"""Provider records in the Kademlia DHT: our lookups in place of py-libp2p's, which end at a record of our own."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht import kad_dht
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.peerinfo import PeerInfo as LibP2pInfo
from libp2p.peer.peerstore import PeerStoreError, env_to_send_in_RPC

from protocols.framing import frame
from protocols.lookup import CLOSEST
from protocols.net import PeerInfo
from protocols.net_libp2p.addresses import MAX_ADDRESSES_PER_PEER, to_id, to_peer, to_texts
from protocols.net_libp2p.host import MAX_CONNECTIONS, PROVIDES_PER_WINDOW, BoundedRecords, survive
from protocols.sweep import key_of, shared_bits
from storage.cid import Cid
from storage.keys import PeerId

QUERY_TIMEOUT_S: Final = 10.0
PARALLEL_QUERIES: Final = 10  # alpha of the specification
PARALLEL_TELLINGS: Final = 32  # peers that get records at a time: each has its own pace
MAX_STREAMS_PER_PEER: Final = 8
STREAM_LIMIT_S: Final = 60.0  # a peer that asks for longer opens another one
RECORDS_PER_STREAM: Final = 500  # at their pace within STREAM_LIMIT_S
READ_BYTES: Final = 64 << 10
RECORD_GAP_S: Final = 10.0 / PROVIDES_PER_WINDOW * 1.2


def prepare(dht: Any, handle: Callable[[Any], Awaitable[None]], report: Callable[[PeerId, str], None]) -> None:
    """Bound what peers can make the DHT server keep, and let honest ones provide faster than once a second.

    `handle` answers its streams; `report` is told of those whose records it refuses. Its own limit, twelve streams of
    all peers together and for ever, would let one idle peer shut out everybody.
    """
    dht.provider_store.providers = BoundedRecords()
    dht._provider_rate_max = PROVIDES_PER_WINDOW
    dht._inbound_limiter = trio.CapacityLimiter(MAX_CONNECTIONS * MAX_STREAMS_PER_PEER)
    hasty: set[Any] = set()
    keeps_pace = dht._check_provider_rate_limit

    def is_in_time(peer_id: Any) -> bool:
        is_good = bool(keeps_pace(peer_id))
        if not is_good:
            hasty.add(peer_id)
        return is_good

    dht._check_provider_rate_limit = is_in_time
    dht._add_closer_peers_to_response = partial(_name_closer, dht)
    dht.host.set_stream_handler(kad_dht.PROTOCOL_ID, _bounded(handle, report, hasty))


def _name_closer(dht: Any, response: Any, closest_peers: Sequence[Any], exclude_peer_id: Any = None) -> None:
    """Name peers that are closer, each with as many addresses as an asker dials: first what it says itself.

    libp2p tells all of them twice, the second time as the peer signed them, which nobody else does and nobody needs:
    half a megabyte for a question of forty bytes. And for each it walks through all connections.
    """
    connected, addresses_of = dht.host.get_network().connections, dht.host.get_peerstore().addrs
    for peer_id in closest_peers:
        if peer_id == exclude_peer_id:
            continue
        said = response.closerPeers.add(id=peer_id.to_bytes())
        with suppress(PeerStoreError):
            said.addrs.extend(each.to_bytes() for each in addresses_of(peer_id)[:MAX_ADDRESSES_PER_PEER])
        if peer_id in connected:
            said.connection = Message.ConnectionType.CONNECTED
        elif said.addrs:
            said.connection = Message.ConnectionType.CAN_CONNECT


def _bounded(
    handle: Callable[[Any], Awaitable[None]], report: Callable[[PeerId, str], None], hasty: set[Any]
) -> Callable[[Any], Awaitable[None]]:
    """A peer has few streams, and each of them its time. A stream that the server resets held what it refuses.

    Unless the peer had broken it off before, or its connection ended: libp2p's server resets that one as well. Nor is
    a peer blamed that is `hasty`, as its stream held more records than we take: Kubo knows no such limit, and where
    peers are few, all that it provides comes here.
    """
    n_open: Counter[Any] = Counter()

    async def stream_handler(stream: Any) -> None:
        peer_id = stream.muxed_conn.peer_id
        if n_open[peer_id] >= MAX_STREAMS_PER_PEER:
            await stream.reset()
            return
        n_open[peer_id] += 1
        reset, peer = stream.reset, to_peer(peer_id)

        async def refuse() -> None:
            if peer_id in hasty:
                hasty.discard(peer_id)
            elif peer is not None and not stream.muxed_stream.is_closed:
                report(peer, "bad_record")
            await reset()

        try:
            with trio.move_on_after(STREAM_LIMIT_S) as time:
                stream.reset = refuse
                await handle(stream)
            stream.reset = reset
            if time.cancelled_caught:
                await stream.reset()
        finally:
            n_open[peer_id] -= 1
            if not n_open[peer_id]:
                del n_open[peer_id]
                hasty.discard(peer_id)

    return stream_handler


async def provide(dht: Any, cid: Cid) -> None:
    """Send our record for `cid` to the peers closest to it."""
    await learn_connected(dht)
    try:
        await survive(dht.provider_store.provide, cid.multihash)
    finally:  # Our own schedules provide again, what is still to be told of; libp2p's would do so for good.
        dht.provider_store.providing_keys.discard(cid.multihash)


async def provide_many(dht: Any, cids: Sequence[Cid]) -> int:
    """Send our records for many CIDs, a lookup for all that share the neighbours it finds. Returns: how many went out.

    A peer gets its records one after the other, at a pace that Covey's own servers take.
    """
    await learn_connected(dht)
    records: dict[Any, list[bytes]] = {}
    told: set[bytes] = set()
    near = _Near([], 0, 0)
    for key in sorted({cid.multihash for cid in cids}, key=key_of):
        if not near.serves(key_of(key)):
            near = _near(key, [peer_id for peer_id in await _closest(dht, key) if peer_id != dht.local_peer_id])
        ours = LibP2pInfo(dht.local_peer_id, dht.host.get_addrs())
        dht.provider_store.add_provider(key, ours)
        for peer_id in near.peers:
            records.setdefault(peer_id, []).append(key)
    limiter = trio.CapacityLimiter(PARALLEL_TELLINGS)
    async with trio.open_nursery() as nursery:
        for peer_id, keys in records.items():
            nursery.start_soon(_send_records, dht, peer_id, keys, told, limiter)
    return len(told)


async def _send_records(dht: Any, peer_id: Any, keys: list[bytes], told: set[bytes], limiter: Any) -> None:
    """All on one stream, or few: the opening of one for each record costs more than the record."""
    async with limiter:
        for start in range(0, len(keys), RECORDS_PER_STREAM):
            some, sent = keys[start : start + RECORDS_PER_STREAM], set[bytes]()
            await survive(_send_some, dht, peer_id, some, sent)
            told |= sent
            if len(sent) < len(some):
                return  # it is gone, or does not want them


async def _send_some(dht: Any, peer_id: Any, keys: list[bytes], sent: set[bytes]) -> None:
    with trio.fail_after(QUERY_TIMEOUT_S):
        stream = await dht.host.new_stream(peer_id, [TProtocol(kad_dht.PROTOCOL_ID)])
    try:
        message = _record(dht)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_leave_unread, stream)
            for key in keys:
                begin_s = trio.current_time()
                message.key = key
                with trio.fail_after(QUERY_TIMEOUT_S):
                    await stream.write(frame(message.SerializeToString()))
                sent.add(key)
                await trio.sleep_until(begin_s + RECORD_GAP_S)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(deadline=trio.current_time() + QUERY_TIMEOUT_S, shield=True):
            await survive(stream.close)


def _record(dht: Any) -> Any:
    """The message that says that we provide something; its key is put in later."""
    message = Message()
    message.type = Message.MessageType.ADD_PROVIDER
    ours = message.providerPeers.add()
    ours.id = dht.local_peer_id.to_bytes()
    ours.addrs.extend(address.to_bytes() for address in dht.host.get_addrs())
    message.senderRecord = ours.signedRecord = env_to_send_in_RPC(dht.host)[0]
    return message


async def _leave_unread(stream: Any) -> None:
    """Some servers echo each record; a window that nobody empties would hold them up."""
    while await stream.read(READ_BYTES):
        pass


class _Near(NamedTuple):
    """The peers closest to a key; they are the ones for every key that shares so many bits with it."""

    peers: list[Any]
    key: int
    n_bits: int

    def serves(self, key: int) -> bool:
        return bool(self.peers) and shared_bits(self.key, key) >= self.n_bits


def _near(multihash: bytes, peers: list[Any]) -> _Near:
    """Fewer peers than a lookup finds at most are all there are: they serve every key."""
    key = key_of(multihash)
    if len(peers) < CLOSEST - 1:
        return _Near(peers, key, 0)
    return _Near(peers, key, min(shared_bits(key, key_of(peer_id.to_bytes())) for peer_id in peers))


async def find_providers(dht: Any, cid: Cid, limit: int) -> list[PeerInfo]:
    """Ask the peers closest to `cid`, nearest first, until `limit` providers other than ourselves are known."""
    await learn_connected(dht)
    found: dict[PeerId, PeerInfo] = {}
    _collect(dht, found, dht.provider_store.get_providers(cid.multihash))
    closest = [peer_id for peer_id in await _closest(dht, cid.multihash) if peer_id != dht.local_peer_id]
    for start in range(0, len(closest), PARALLEL_QUERIES):
        if len(found) >= limit:
            break
        async with trio.open_nursery() as nursery:
            for peer_id in closest[start : start + PARALLEL_QUERIES]:
                nursery.start_soon(survive, partial(_ask, dht, peer_id, cid.multihash, found))
    return list(found.values())[:limit]


async def find_peer(dht: Any, peer: PeerId) -> PeerInfo:
    """Ask the peers closest to `peer` where it is, until one knows; what was known before does not count."""
    await learn_connected(dht)
    target = to_id(peer)
    await _closest(dht, target.to_bytes())  # peers tell of each other on the way, with addresses
    try:
        return PeerInfo(peer, tuple(to_texts(dht.host.get_peerstore().addrs(target))))
    except PeerStoreError:
        return PeerInfo(peer)


async def _closest(dht: Any, key: bytes) -> list[Any]:
    closest: list[Any] = []

    async def look_up() -> None:
        closest.extend(await dht.peer_routing.find_closest_peers_network(key))

    await survive(look_up)
    return closest


async def _ask(dht: Any, peer_id: Any, key: bytes, found: dict[PeerId, PeerInfo]) -> None:
    with trio.move_on_after(QUERY_TIMEOUT_S):
        providers, _ = await dht.provider_store._get_providers_from_peer_with_closers(peer_id, key)
        _collect(dht, found, providers)


def _collect(dht: Any, found: dict[PeerId, PeerInfo], providers: list[Any]) -> None:
    for provider in providers:
        peer = to_peer(provider.peer_id)
        if peer is not None and provider.peer_id != dht.local_peer_id:
            known = found[peer].addresses if peer in found else ()
            found[peer] = PeerInfo(peer, tuple(to_texts([*known, *provider.addrs])))


async def learn_connected(dht: Any) -> None:
    """Take the connected peers that serve our DHT into the routing table; libp2p does so minutes later, if at all."""
    for peer_id in dht.host.get_live_peers():
        await survive(partial(dht.add_peer, peer_id))  # asks the peerstore whether the peer serves our DHT
