"""What our DHT server says to questions for values, byte by byte; libp2p's own answers go on beside them."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht import kad_dht
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.envelope import seal_record
from libp2p.peer.peer_record import PeerRecord
from multiaddr import Multiaddr

from protocols import name_records
from protocols.errors import StreamBroken
from protocols.framing import frame, read_frame
from protocols.ipns import make_record
from protocols.name_records import key_of_name
from protocols.net import Network, PeerInfo, Stream
from protocols.net_libp2p import NetConfig, open_network, values
from protocols.net_libp2p.addresses import MAX_ADDRESSES_PER_PEER, to_id
from protocols.net_libp2p.host import KEPT_ADDRESSES, MAX_HEARD_ADDRESSES, MAX_PROVIDER_BYTES
from protocols.net_libp2p.network import LibP2pNetwork
from protocols.net_libp2p.streams import LibP2pStream
from protocols.net_libp2p.values import MAX_ANSWER_BYTES
from storage.keys import Identity

NOW = 1.9e9
KAD = "/ipfs/lan/kad/1.0.0"
LOOPBACK = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, unix_s=lambda: NOW)
ALICE = Identity(b"\x07" * 32)
KEY = key_of_name(ALICE.peer_id)
GET, PUT, PING = Message.MessageType.GET_VALUE, Message.MessageType.PUT_VALUE, Message.MessageType.PING
FIND = Message.MessageType.FIND_NODE
RECORDS = {at: make_record(ALICE, f"/ipfs/{at}", sequence=at, unix_s=NOW) for at in (1, 2)}


@pytest.fixture
async def server() -> AsyncIterator[Network]:
    async with open_network(Identity(b"s" * 32), LOOPBACK) as node:
        yield node


@pytest.fixture
async def stream(server: Network) -> AsyncIterator[Stream]:
    async with open_network(Identity(b"a" * 32), LOOPBACK) as asker:
        await asker.connect(PeerInfo.parse(server.addresses()[0]))
        yield await asker.open_stream(server.peer_id, [KAD])


async def told(stream: Stream) -> Message:
    with trio.fail_after(10):
        body = await read_frame(stream, MAX_ANSWER_BYTES)
    assert body is not None
    message = Message()
    message.ParseFromString(body)
    return message


async def ask(stream: Stream, message: Message) -> Message:
    await stream.write(frame(message.SerializeToString()))
    return await told(stream)


def put(sequence: int, key: bytes = KEY, record_key: bytes | None = None) -> Message:
    message = Message(type=PUT, key=key)
    message.record.key, message.record.value = record_key or key, RECORDS[sequence]
    return message


async def test_a_record_is_put_and_got_on_one_stream_with_other_questions_between(stream: Stream) -> None:
    assert not (await ask(stream, Message(type=GET, key=KEY))).HasField("record")
    stored = await ask(stream, put(1))
    assert (stored.type, stored.key, stored.record.value) == (PUT, KEY, RECORDS[1])
    assert (await ask(stream, Message(type=PING))).type == PING
    got = await ask(stream, Message(type=GET, key=KEY))
    assert (got.record.key, got.record.value) == (KEY, RECORDS[1])
    assert got.record.timeReceived == "2030-03-17T17:46:40.000000000Z"
    await stream.write(b"".join(frame(one.SerializeToString()) for one in (put(2), Message(type=PING), put(2))))
    assert [(await told(stream)).type for _ in range(3)] == [PUT, PING, PUT]


async def test_keys_of_other_kinds_have_nothing_here_and_are_told_who_is_closer(stream: Stream) -> None:
    got = await ask(stream, Message(type=GET, key=b"/pk/" + ALICE.peer_id))
    assert got.type == GET and not got.HasField("record")


@pytest.mark.parametrize(
    "lie",
    [
        put(1, key_of_name(Identity(b"\x08" * 32).peer_id)),  # another's name
        put(1, record_key=b"/ipns/other"),
        put(1, b"/pk/" + ALICE.peer_id),
        put(1, b"/ipns/nobody"),
        Message(type=PUT, key=KEY),
        Message(type=GET),
        Message(type=GET, key=bytes(129)),
    ],
    ids=["forged", "two keys", "other kind", "no name", "no record", "no key", "long key"],
)
async def test_what_is_no_good_ends_the_stream_and_is_not_kept(server: Network, stream: Stream, lie: Message) -> None:
    await stream.write(frame(lie.SerializeToString()))
    with trio.fail_after(10), pytest.raises((StreamBroken, AssertionError)):
        await told(stream)
    assert await server.find_record(ALICE.peer_id, NOW) is None


async def test_of_a_provider_few_addresses_are_read_and_kept_however_many_it_tells(
    server: Network, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(kad_dht, "Multiaddr", lambda raw: read.append(raw) or Multiaddr(raw))
    message = Message(type=Message.MessageType.ADD_PROVIDER, key=KEY)
    told = message.providerPeers.add()
    told.id = Identity(b"a" * 32).peer_id
    ports = (port.to_bytes(2, "big") for port in range(1, 1000))
    told.addrs.extend(b"\x04\x08\x08\x08\x08\x06" + port for port in ports)
    await stream.write(frame(message.SerializeToString()))
    await ask(stream, Message(type=PING))
    assert isinstance(server, LibP2pNetwork)
    (kept,) = server._dht.provider_store.get_providers(KEY)
    assert (len(read), len(kept.addrs)) == (MAX_HEARD_ADDRESSES, KEPT_ADDRESSES)


async def test_of_a_provider_long_addresses_are_kept_up_to_a_size(server: Network, stream: Stream) -> None:
    message = Message(type=Message.MessageType.ADD_PROVIDER, key=KEY)
    told = message.providerPeers.add()
    told.id = Identity(b"a" * 32).peer_id
    host = b"\x36\x80\x01" + b"a" * 128 + b"\x06"  # /dns4/aaa.../tcp/
    told.addrs.extend(host + port.to_bytes(2, "big") for port in range(1, 33))
    await stream.write(frame(message.SerializeToString()))
    await ask(stream, Message(type=PING))
    assert isinstance(server, LibP2pNetwork)
    (kept,) = server._dht.provider_store.get_providers(KEY)
    assert [each.to_bytes() for each in kept.addrs] == list(told.addrs)[: MAX_PROVIDER_BYTES // (len(host) + 2)]


async def test_of_a_provider_no_address_is_kept_that_nobody_could_dial(server: Network, stream: Stream) -> None:
    message = Message(type=Message.MessageType.ADD_PROVIDER, key=KEY)
    told = message.providerPeers.add()
    told.id = Identity(b"a" * 32).peer_id
    good = b"\x04\x08\x08\x08\x08\x06\x12\x34"
    path = b"/" * 16_000
    told.addrs.extend([good + b"\x90\x03" + b"\x80\x7d" + path, good])  # /ip4/8.8.8.8/tcp/4660/unix/...
    await stream.write(frame(message.SerializeToString()))
    await ask(stream, Message(type=PING))
    assert isinstance(server, LibP2pNetwork)
    (kept,) = server._dht.provider_store.get_providers(KEY)
    assert [str(each) for each in kept.addrs] == ["/ip4/8.8.8.8/tcp/4660"]
    store = server._host.get_peerstore()
    store.add_addrs(to_id(ALICE.peer_id), [Multiaddr(told.addrs[0]), Multiaddr(good)], 60)
    assert [str(each) for each in store.addrs(to_id(ALICE.peer_id))] == ["/ip4/8.8.8.8/tcp/4660"]


@pytest.mark.parametrize(("n_addresses", "is_taken"), [(64, True), (5000, False)])
async def test_what_a_peer_signs_of_where_it_is_is_kept_while_it_is_short(
    server: Network, n_addresses: int, is_taken: bool
) -> None:
    assert isinstance(server, LibP2pNetwork)
    store, peer_id = server._host.get_peerstore(), to_id(ALICE.peer_id)
    addresses = [Multiaddr(f"/ip4/8.8.8.8/tcp/{port}") for port in range(1, n_addresses + 1)]
    envelope = seal_record(PeerRecord(peer_id, addresses, seq=1), create_new_key_pair(seed=ALICE.seed).private_key)
    assert store.consume_peer_record(envelope, 60) is is_taken
    assert store.get_peer_record(peer_id) is (envelope if is_taken else None)
    assert envelope._cached_record is None  # which holds all addresses as objects


@pytest.mark.parametrize("kind", [GET, FIND], ids=["a value", "a peer"])
async def test_of_who_is_closer_an_answer_tells_few_addresses_and_whether_it_is_here(
    server: Network, stream: Stream, monkeypatch: pytest.MonkeyPatch, kind: Message.MessageType
) -> None:
    assert isinstance(server, LibP2pNetwork)
    host, table = server._host, server._dht.routing_table
    here, away, lost = (Identity(bytes([number]) * 32).peer_id for number in (20, 21, 22))
    signer = create_new_key_pair(seed=bytes([20]) * 32)
    addresses = [Multiaddr(f"/ip4/8.8.8.{at}/tcp/1/p2p/{away}") for at in range(MAX_HEARD_ADDRESSES)]
    signed = seal_record(PeerRecord(to_id(here), addresses[:20]), signer.private_key)
    assert host.get_peerstore().consume_peer_record(signed, 3600)
    host.get_peerstore().add_addrs(to_id(away), addresses, 3600)
    async with open_network(Identity(bytes([20]) * 32), LOOPBACK) as neighbour:
        await neighbour.connect(PeerInfo.parse(server.addresses()[0]))
        monkeypatch.setattr(
            table, "find_local_closest_peers", lambda *about: [to_id(each) for each in (here, away, lost)]
        )
        answer = await ask(stream, Message(type=kind, key=KEY))
    states = Message.ConnectionType
    assert [(said.id, said.connection) for said in answer.closerPeers] == [
        (here, states.CONNECTED), (away, states.CAN_CONNECT), (lost, states.NOT_CONNECTED)
    ]  # fmt: skip
    assert [len(said.addrs) for said in answer.closerPeers[1:]] == [MAX_ADDRESSES_PER_PEER, 0]
    assert list(answer.closerPeers[1].addrs) == [each.to_bytes() for each in addresses[:MAX_ADDRESSES_PER_PEER]]
    assert not any(said.signedRecord for said in answer.closerPeers)


async def test_an_older_record_is_refused(stream: Stream) -> None:
    await ask(stream, put(2))
    await stream.write(frame(put(1).SerializeToString()))
    with trio.fail_after(10), pytest.raises((StreamBroken, AssertionError)):
        await told(stream)


@pytest.mark.parametrize("price", ["ANSWER_S", "ANSWER_BYTE_S"])
@pytest.mark.parametrize("question", [Message(type=PING), Message(type=GET, key=KEY)], ids=["libp2p's", "ours"])
async def test_answers_and_their_bytes_are_work_that_has_the_next_question_read_later(
    server: Network, stream: Stream, monkeypatch: pytest.MonkeyPatch, question: Message, price: str
) -> None:
    monkeypatch.setattr(values, price, 1000.0)
    await ask(stream, question)
    assert isinstance(server, LibP2pNetwork)
    [connection] = server._swarm.get_connections()
    assert connection.muxed_conn._core.work.rest_s(trio.current_time()) > 1000.0


@pytest.mark.parametrize("garbage", [b"\x05hello", b"\xff\xff\xff\xff\x7f", frame(bytes(300 << 10))])
async def test_garbage_ends_its_stream_alone(server: Network, stream: Stream, garbage: bytes) -> None:
    await stream.write(garbage)
    with trio.fail_after(10), pytest.raises((StreamBroken, AssertionError)):
        await told(stream)
    async with open_network(Identity(b"b" * 32), LOOPBACK) as other:
        await other.connect(PeerInfo.parse(server.addresses()[0]))
        assert (await ask(await other.open_stream(server.peer_id, [KAD]), put(1))).record.value == RECORDS[1]


async def test_who_breaks_off_its_own_stream_or_connection_broke_no_rule(server: Network) -> None:
    assert isinstance(server, LibP2pNetwork)
    async with server.watch_peers() as changes, open_network(Identity(b"c" * 32), LOOPBACK) as asker:
        await asker.connect(PeerInfo.parse(server.addresses()[0]))
        broken, asked = [await asker.open_stream(server.peer_id, [KAD]) for _ in range(2)]
        assert (await ask(broken, Message(type=PING))).type == PING
        assert isinstance(broken, LibP2pStream)
        await broken._stream.reset()
        assert (await ask(asked, Message(type=PING))).type == PING
        assert (await changes.receive()).is_connected
        await asker.disconnect(server.peer_id)
        with trio.fail_after(10):
            assert not (await changes.receive()).is_connected
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert server.conduct.offenders(trio.current_time()) == []


async def test_who_brings_an_old_record_or_one_too_many_is_not_refused_for_it(
    server: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_records, "PUTS", 2)
    async with open_network(Identity(b"c" * 32), LOOPBACK) as asker:
        await asker.connect(PeerInfo.parse(server.addresses()[0]))
        stream = await asker.open_stream(server.peer_id, [KAD])
        await ask(stream, put(2))
        for _ in ("old", "one too many"):
            with pytest.raises(StreamBroken):
                await ask(stream, put(1))
            stream = await asker.open_stream(server.peer_id, [KAD])
    assert server.conduct.offenders(trio.current_time()) == []


async def test_who_provides_faster_than_we_take_it_is_not_refused_for_it(server: Network) -> None:
    assert isinstance(server, LibP2pNetwork)
    server._dht._provider_rate_max = 1  # others know no such limit, and in a small network all their records come here
    record = Message(type=Message.MessageType.ADD_PROVIDER, key=b"k")
    async with open_network(Identity(b"c" * 32), LOOPBACK) as asker:
        await asker.connect(PeerInfo.parse(server.addresses()[0]))
        stream = await asker.open_stream(server.peer_id, [KAD])
        await ask(stream, record)
        for said in (record, put(1, record_key=b"lie")):
            with pytest.raises(StreamBroken):
                await ask(stream, said)
            stream = await asker.open_stream(server.peer_id, [KAD])
    assert [one.n_breaches for one in server.conduct.offenders(trio.current_time())] == [1]  # the lie


async def test_a_node_without_a_clock_keeps_nothing_for_others() -> None:
    without = NetConfig(listen=LOOPBACK.listen, mdns=False)
    async with open_network(Identity(b"s" * 32), without) as server, open_network(ALICE, LOOPBACK) as asker:
        await asker.connect(PeerInfo.parse(server.addresses()[0]))
        stream = await asker.open_stream(server.peer_id, [KAD])
        assert (await ask(stream, Message(type=GET, key=KEY))).type == GET
        await stream.write(frame(put(1).SerializeToString()))
        with trio.fail_after(10), pytest.raises((StreamBroken, AssertionError)):
            await told(stream)
