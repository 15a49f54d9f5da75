"""Values in the Kademlia DHT: records of names, given to the peers closest to a name and asked of them.

py-libp2p's own value store takes keys that are text alone, which no name's key is; so questions for values never reach
it: `answering` takes them out of the stream, and hands on the rest.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import structlog
import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht import kad_dht
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from protocols.errors import Expired, Malformed, Remote, Replayed, StreamBroken
from protocols.framing import frame, read_frame, write_frame
from protocols.ipns import Record, read_record
from protocols.lookup import CLOSEST, Lookup
from protocols.name_records import NAMESPACE, NameRecords, TooFast, key_of_name, name_of_key
from protocols.net_libp2p.addresses import MAX_ADDRESSES_PER_PEER, to_id, to_peer
from protocols.net_libp2p.dht import PARALLEL_QUERIES, learn_connected
from protocols.net_libp2p.host import MAX_HEARD_ADDRESSES, parse_short, survive
from protocols.net_libp2p.streams import LibP2pStream
from storage.catalog.names import MAX_RECORD_BYTES
from storage.keys import InvalidPeerId, PeerId

QUORUM: Final = 16  # records that are enough, as others have it
ASK_LIMIT_S: Final = 10.0
SEARCH_LIMIT_S: Final = 60.0
MAX_ANY_KEY_BYTES: Final = 128  # who asks for peers may do so by any key; those of names are shorter yet
MAX_PROVIDERS_TOLD: Final = 4  # in one question: who provides tells of itself
MAX_ASK_BYTES: Final = 256 << 10  # of a question to our server
MAX_ANSWER_BYTES: Final = 512 << 10  # 20 peers with their addresses, and a record
ADDRESS_LIFE_S: Final = 3600
ANSWER_S: Final = 1e-3  # of the event loop, that an answer takes about: all that the routing table has is sorted for it
ANSWER_BYTE_S: Final = 1e-8

log = structlog.get_logger(__name__)


@dataclass
class Values:
    """What the DHT server keeps, and by what clock it judges records. Without one it keeps none."""

    records: NameRecords
    unix_s: Callable[[], float] | None = None


@dataclass
class _Search:
    """A lookup under way: the best record by now, and who has it."""

    name: PeerId
    unix_s: float
    lookup: Lookup
    best: Record | None = None
    holders: dict[PeerId, bytes] = field(default_factory=dict)

    @property
    def has_enough(self) -> bool:
        """Did as many peers give a good record as are asked for?"""
        return len(self.holders) >= QUORUM

    def take(self, peer: PeerId, raw: bytes) -> None:
        """A peer gave this as the record. Raises: Remote."""
        record = read_record(raw, self.name, self.unix_s)
        self.holders[peer] = raw
        if self.best is None or record.rank > self.best.rank:
            self.best = record

    def lacking(self) -> list[PeerId]:
        """The closest that have not the best record."""
        best = self.best.raw if self.best else None
        return [peer for peer in self.lookup.closest() if self.holders.get(peer) != best]


# --- answering


def answering(dht: Any, values: Values) -> Callable[[Any], Awaitable[None]]:
    """A handler of the DHT's streams: values are our own to answer, everything else is py-libp2p's."""

    async def handle(stream: Any) -> None:
        peer = to_peer(stream.muxed_conn.peer_id)
        if peer is None:
            await stream.reset()
        else:
            await dht.handle_stream(_Rest(dht, values, stream, peer))

    return handle


class _Rest:
    """A stream without the questions for values: those are answered while the next other one is waited for.

    Answers count to what the peer takes up of the event loop: who asks too much has its next questions read later.
    """

    def __init__(self, dht: Any, values: Values, stream: Any, peer: PeerId) -> None:
        self._dht, self._values, self._stream, self._peer = dht, values, stream, peer
        self._port = LibP2pStream(stream, peer)
        self._unread = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def read(self, n: int) -> bytes:
        """Some bytes of a question that is no question for a value. Raises: Remote, which resets the stream."""
        while not self._unread:
            body = await read_frame(self._port, MAX_ASK_BYTES)
            if body is None:
                return b""
            self._stream.muxed_conn.charge(ANSWER_S)
            message = parsed(body)
            if message.type in (Message.MessageType.GET_VALUE, Message.MessageType.PUT_VALUE):
                try:
                    reply = answer_value(self._dht, self._values, self._peer, message, trio.current_time())
                except (Expired, Replayed, TooFast):  # so do honest peers: broken off here, it is blamed on nobody
                    await self._stream.muxed_stream.reset()
                    raise
                await self.write(frame(reply.SerializeToString()))
            else:
                self._unread = frame(_shorter(message))
        given, self._unread = self._unread[:n], self._unread[n:]
        return given

    async def write(self, data: bytes) -> None:
        """Part of an answer. Raises: StreamBroken."""
        self._stream.muxed_conn.charge(len(data) * ANSWER_BYTE_S)
        await self._port.write(data)


def _shorter(message: Any) -> bytes:
    """A question without what no server needs: libp2p's reads every address before ours lets most of them go."""
    del message.closerPeers[:]
    del message.providerPeers[MAX_PROVIDERS_TOLD:]
    for said in message.providerPeers:
        del said.addrs[MAX_HEARD_ADDRESSES:]
    return bytes(message.SerializeToString())


def answer_value(dht: Any, values: Values, peer: PeerId, asked: Any, now_s: float) -> Any:
    """What is said to GET_VALUE and PUT_VALUE. Raises: Remote."""
    reply = Message(type=asked.type, key=asked.key)
    if asked.type == Message.MessageType.GET_VALUE:
        _find(dht, values, peer, asked.key, reply)
        return reply
    if values.unix_s is None:
        raise Malformed("this node keeps no records")
    name = name_of_key(asked.key)
    if asked.record.key != asked.key:
        raise Malformed("a record is put under another key than its own")
    unix_s = values.unix_s()
    values.records.put(name, asked.record.value, peer, now_s=now_s, unix_s=unix_s)
    _fill(reply, asked.record.value, unix_s)
    return reply


def _find(dht: Any, values: Values, peer: PeerId, key: bytes, reply: Any) -> None:
    """What is here under a key, and who is closer to it. Keys of other kinds than names have nothing here."""
    if not 0 < len(key) <= MAX_ANY_KEY_BYTES:
        raise Malformed(f"a key of {len(key)} bytes")
    if values.unix_s is not None and key.startswith(NAMESPACE):
        unix_s = values.unix_s()
        record = values.records.get(name_of_key(key), unix_s)
        if record is not None:
            _fill(reply, record.raw, unix_s)
    nearest = dht.routing_table.find_local_closest_peers(key, CLOSEST)
    dht._add_closer_peers_to_response(reply, nearest, exclude_peer_id=to_id(peer))


def _fill(message: Any, value: bytes, unix_s: float | None = None) -> None:
    message.record.key, message.record.value = message.key, value
    if unix_s is not None:  # others read a fraction of a second there, always
        message.record.timeReceived = f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"


def parsed(body: bytes) -> Any:
    """A message of the DHT. Raises: Malformed."""
    message = Message()
    try:
        message.ParseFromString(body)
    except Exception as error:  # noqa: BLE001 - protobuf has an error class of each of its implementations
        raise Malformed(f"not a message of the DHT: {error}") from None
    return message


# --- asking


async def publish(dht: Any, values: Values, name: PeerId, raw: bytes, unix_s: float) -> int:
    """Give a record to the peers closest to its name. Returns: how many took it. Raises: Remote where it is no good."""
    record = read_record(raw, name, unix_s)
    search = await _search(dht, values, name, unix_s, is_enough=lambda search: False)
    if search.best is not None and search.best.rank > record.rank:
        raise Replayed(f"the DHT has a record of sequence {search.best.sequence}; this one has {record.sequence}")
    values.records.put(name, raw, values.records.own, now_s=trio.current_time(), unix_s=unix_s)
    return await _give(dht, search.lookup.closest(), name, raw)


async def find(dht: Any, values: Values, name: PeerId, unix_s: float, nursery: trio.Nursery) -> bytes | None:
    """The best record of a name that the DHT has, and we; peers that lack it get it, in `nursery`."""
    search = await _search(dht, values, name, unix_s, is_enough=lambda search: search.has_enough)
    ours = values.records.get(name, unix_s)
    if ours is not None and (search.best is None or ours.rank > search.best.rank):
        search.best = ours
    if search.best is None:
        return None
    nursery.start_soon(_give, dht, search.lacking(), name, search.best.raw)
    return search.best.raw


async def _search(
    dht: Any, values: Values, name: PeerId, unix_s: float, is_enough: Callable[[_Search], bool]
) -> _Search:
    """Ask the peers closest to a name for its record, each time those that are named as closer."""
    await learn_connected(dht)
    key = key_of_name(name)
    seeds = [peer for peer_id in dht.routing_table.find_local_closest_peers(key, CLOSEST) if (peer := to_peer(peer_id))]
    search = _Search(name, unix_s, Lookup(key, values.records.own, seeds))
    n_asking = 0
    wake = trio.Event()

    async def ask(peer: PeerId) -> None:
        nonlocal n_asking
        try:
            await _ask(dht, peer, search)
        finally:
            n_asking -= 1
            wake.set()

    with trio.move_on_after(SEARCH_LIMIT_S):
        async with trio.open_nursery() as nursery:
            while not is_enough(search):
                peer = search.lookup.take() if n_asking < PARALLEL_QUERIES else None
                if peer is not None:
                    n_asking += 1
                    nursery.start_soon(ask, peer)
                elif n_asking:
                    await wake.wait()
                    wake = trio.Event()
                else:
                    break
            nursery.cancel_scope.cancel()
    return search


async def _ask(dht: Any, peer: PeerId, search: _Search) -> None:
    question = Message(type=Message.MessageType.GET_VALUE, key=key_of_name(search.name))
    reply = await _call(dht, peer, question)
    if reply is None:
        search.lookup.failed(peer)
        return
    await survive(partial(dht.add_peer, to_id(peer), skip_server_mode_check=True))  # it serves, as was just seen
    search.lookup.answered(peer, note_closer(dht, reply))
    if reply.record.value:
        try:
            search.take(peer, reply.record.value[: MAX_RECORD_BYTES + 1])
        except Remote as error:
            log.info("bad_record", peer=str(peer), error=str(error))


def note_closer(dht: Any, reply: Any) -> list[PeerId]:
    """The peers that an answer names, with their addresses put where dials find them."""
    found = []
    for said in reply.closerPeers[:CLOSEST]:
        try:
            peer = PeerId(said.id)
        except InvalidPeerId:
            continue
        told = map(parse_short, said.addrs[:MAX_ADDRESSES_PER_PEER])
        if addresses := [address for address in told if address is not None]:
            dht.host.get_peerstore().add_addrs(to_id(peer), addresses, ADDRESS_LIFE_S)
        found.append(peer)
    return found


async def _give(dht: Any, peers: list[PeerId], name: PeerId, raw: bytes) -> int:
    """Returns: how many peers say that they keep it."""
    message = Message(type=Message.MessageType.PUT_VALUE, key=key_of_name(name))
    _fill(message, raw)
    taken: list[PeerId] = []
    limiter = trio.CapacityLimiter(PARALLEL_QUERIES)

    async def give(peer: PeerId) -> None:
        async with limiter:
            reply = await _call(dht, peer, message)
        if reply is not None and reply.record.value == raw:
            taken.append(peer)

    with trio.move_on_after(SEARCH_LIMIT_S):
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(give, peer)
    return len(taken)


async def _call(dht: Any, peer: PeerId, message: Any) -> Any:
    """A peer's answer; None where there is none that can be read."""
    answers: list[Any] = []

    async def call() -> None:
        stream = LibP2pStream(await dht.host.new_stream(to_id(peer), [TProtocol(kad_dht.PROTOCOL_ID)]), peer)
        try:
            await write_frame(stream, message.SerializeToString(), MAX_ASK_BYTES)
            body = await read_frame(stream, MAX_ANSWER_BYTES)
            if body is None:
                raise StreamBroken(f"{peer} ended the stream")
            answers.append(parsed(body))
        finally:
            await stream.aclose()

    with trio.move_on_after(ASK_LIMIT_S):
        await survive(call)
    return answers[0] if answers else None
