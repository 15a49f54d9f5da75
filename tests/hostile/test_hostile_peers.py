"""What strangers do to a listening node, on real sockets; afterwards it must answer a friend."""

import contextlib
import random
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError

from protocols.errors import DialFailed, ProtocolError, StreamBroken
from protocols.net import MAX_INBOUND_STREAMS_PER_PEER, Network, PeerInfo, Stream
from protocols.net_libp2p import NetConfig, open_network
from protocols.yamux import connection, work
from protocols.yamux.frames import ACK, DATA, PING, RST, SYN, WINDOW, pack
from protocols.yamux.memory import MAX_UNREAD_BYTES
from storage.keys import Identity

LOOPBACK = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
ROOT = Path(__file__).parents[2]
RNG = random.Random(1)
MULTISTREAM = b"\x13/multistream/1.0.0\n"


class Scene(NamedTuple):
    """A node that answers `/echo`, where it listens, and how a friend checks that it still answers."""

    node: Network
    port: int
    still_answers: Callable[[], Awaitable[None]]


async def echo(stream: Stream) -> None:
    while data := await stream.read(1 << 16):
        await stream.write(data)


def info(node: Network) -> PeerInfo:
    return PeerInfo.parse(node.addresses()[0])


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_network(Identity(b"n" * 32), LOOPBACK) as node:
        node.serve("/echo", echo)
        port = int(node.addresses()[0].split("/")[4])

        async def still_answers() -> None:
            with trio.fail_after(20):
                async with open_network(Identity.generate(), LOOPBACK) as friend:
                    await friend.connect(info(node))
                    stream = await friend.open_stream(node.peer_id, ["/echo"])
                    await stream.write(b"there?")
                    assert await stream.read(100) == b"there?"
                    await stream.aclose()

        yield Scene(node, port, still_answers)


async def until_closed(stream: trio.SocketStream) -> bytes:
    """What the node says before it hangs up."""
    said = b""
    with trio.fail_after(20):
        try:
            while data := await stream.receive_some(4096):
                said += data
        except trio.BrokenResourceError:
            pass
    return said


async def test_garbage_resets_and_connections_that_end_at_once_are_survived(scene: Scene) -> None:
    for n_bytes in (0, 1, 20, 5000, 100_000):
        stream = await trio.open_tcp_stream("127.0.0.1", scene.port)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(RNG.randbytes(n_bytes))
        await stream.aclose()
    for said in (
        b"",
        MULTISTREAM,
        MULTISTREAM + b"\x07/noise\n",
        MULTISTREAM + b"\x07/noise\n" + b"\xff\xff" + bytes(99),
    ):
        stream = await trio.open_tcp_stream("127.0.0.1", scene.port)
        await stream.send_all(said)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()  # RST
    await scene.still_answers()
    assert scene.node.peers() == [] or len(scene.node.peers()) == 1


async def test_half_handshakes_that_stay_open_block_nobody(scene: Scene) -> None:
    held = [await trio.open_tcp_stream("127.0.0.1", scene.port) for _ in range(30)]
    for stream in held:
        await stream.send_all(MULTISTREAM + b"\x07/noise\n" + b"\x00\x20")
    await scene.still_answers()
    for stream in held:
        await stream.aclose()


@pytest.mark.parametrize("security", ["/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0"])
async def test_any_security_but_noise_is_refused(scene: Scene, security: str) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", scene.port)
    wanted = security.encode() + b"\n"
    await stream.send_all(MULTISTREAM + bytes([len(wanted)]) + wanted)
    said = b""
    with trio.fail_after(20):
        while b"na\n" not in said:
            data = await stream.receive_some(4096)
            if not data:
                break
            said += data
    assert said == MULTISTREAM + b"\x03na\n"
    await stream.aclose()
    await scene.still_answers()


async def test_a_dialler_that_speaks_mplex_alone_is_refused(scene: Scene) -> None:
    from libp2p.custom_types import TProtocol
    from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID, Mplex

    async with open_network(Identity.generate(), LOOPBACK) as stranger:
        upgrader = stranger._swarm.upgrader  # type: ignore[attr-defined]  # no other way to such a peer
        upgrader.muxer_multistream.transports.clear()
        upgrader.muxer_multistream.add_transport(TProtocol(MPLEX_PROTOCOL_ID), Mplex)
        with pytest.raises(DialFailed):
            await stranger.connect(info(scene.node))
    assert scene.node.peers() == []
    await scene.still_answers()


async def test_a_gossip_message_with_a_damaged_key_ends_nothing(scene: Scene) -> None:
    from libp2p.pubsub.pb import rpc_pb2

    topic = "/covey/adapters/1/hostile"
    async with open_network(Identity.generate(), LOOPBACK) as stranger, scene.node.subscribe(topic) as heard:
        await stranger.connect(info(scene.node))
        stream = await stranger.open_stream(scene.node.peer_id, ["/meshsub/1.1.0"])
        for from_id, key in ((b"\x12\x20" + bytes(32), b"\x08\x63\x12\x01x"), (b"", b""), (b"\x00", b"\xff" * 50)):
            message: Any = rpc_pb2.Message(
                from_id=from_id, key=key, signature=b"s", seqno=b"1", data=b"x", topicIDs=[topic]
            )
            packet = rpc_pb2.RPC(publish=[message]).SerializeToString()
            await stream.write(bytes([len(packet)]) + packet)
        await stream.write(b"\x05\xff\xff\xff\xff\xff")  # no protobuf
        with trio.fail_after(10):
            assert await stream.read(1) == b""  # the node has read all of it, and ended the stream
        async with open_network(Identity.generate(), LOOPBACK) as friend:
            await friend.connect(info(scene.node))
            with trio.fail_after(10):
                while scene.node.peer_id not in friend.topic_peers(topic):
                    await trio.sleep(0.01)
                await friend.publish(topic, b"fine")
                assert (await heard.receive()).data == b"fine"


@pytest.mark.parametrize("protocol", ["/ipfs/lan/kad/1.0.0", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", "/meshsub/1.1.0"])
async def test_garbage_on_libp2ps_own_protocols_ends_nothing(scene: Scene, protocol: str) -> None:
    async with open_network(Identity.generate(), LOOPBACK) as stranger:
        await stranger.connect(info(scene.node))
        for data in (b"", b"\x00", b"\x05hello", b"\xff" * 20, RNG.randbytes(3000)):
            try:
                stream = await stranger.open_stream(scene.node.peer_id, [protocol])
                await stream.write(data)
                await stream.finish()
                with trio.move_on_after(0.2):
                    await stream.read(100)
                await stream.aclose()
            except ProtocolError:
                await stranger.connect(info(scene.node))
        await scene.still_answers()


async def test_a_peer_has_a_bounded_number_of_streams(scene: Scene) -> None:
    n_held = 0

    async def hold(stream: Stream) -> None:
        nonlocal n_held
        n_held += 1
        await stream.read(1)
        n_held -= 1

    scene.node.serve("/hold", hold)
    async with open_network(Identity.generate(), LOOPBACK) as greedy:
        await greedy.connect(info(scene.node))
        opened = []
        for _ in range(MAX_INBOUND_STREAMS_PER_PEER + 10):
            try:
                opened.append(await greedy.open_stream(scene.node.peer_id, ["/hold"]))
            except ProtocolError:
                break
        else:
            pytest.fail("no stream was refused")
        assert n_held <= MAX_INBOUND_STREAMS_PER_PEER
        await scene.still_answers()
        for stream in opened:
            await stream.aclose()
        with trio.fail_after(10):
            while n_held:
                await trio.sleep(0.01)


async def test_a_peer_that_ignores_its_window_loses_its_connection(scene: Scene) -> None:
    async def never_read(stream: Stream) -> None:
        await trio.sleep_forever()

    scene.node.serve("/never", never_read)
    async with open_network(Identity.generate(), LOOPBACK) as flooder:
        await flooder.connect(info(scene.node))
        stream = await flooder.open_stream(scene.node.peer_id, ["/never"])
        stream._muxed.core.send_window_bytes = 1 << 40  # type: ignore[attr-defined]  # nothing honest does this
        with trio.fail_after(30), pytest.raises(StreamBroken):
            await stream.write(bytes(3 * MAX_UNREAD_BYTES))
    await scene.still_answers()


PEER = """
import sys, trio
from protocols.net import PeerInfo
from protocols.net_libp2p import NetConfig, open_network
from protocols.yamux.memory import MAX_UNREAD_BYTES
from storage.keys import Identity

async def main():
    config = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
    async with open_network(Identity.generate(), config) as network:
        target = PeerInfo.parse(sys.argv[1])
        await network.connect(target)
        async with network.subscribe("/covey/adapters/1/dying"):
            stream = await network.open_stream(target.peer, ["/sink"])
            print("going", flush=True)
            while True:
                await stream.write(bytes(1 << 20))

trio.run(main)
"""


@pytest.mark.e2e
async def test_a_peer_killed_in_mid_stream_breaks_its_stream_and_nothing_else(scene: Scene) -> None:
    outcome: list[BaseException | bytes] = []
    flows, broke = trio.Event(), trio.Event()

    async def sink(stream: Stream) -> None:
        try:
            while await stream.read(1 << 20):
                flows.set()
            outcome.append(b"")
        except StreamBroken as error:
            outcome.append(error)
        broke.set()

    scene.node.serve("/sink", sink)
    command = [sys.executable, "-c", PEER, scene.node.addresses()[0]]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, cwd=ROOT)
    async with scene.node.watch_peers() as changes:
        with trio.fail_after(30):
            assert process.stdout is not None
            assert (await process.stdout.receive_some()).startswith(b"going")  # the end of the line may come later
            assert (await changes.receive()).is_connected
            await flows.wait()
            process.send_signal(signal.SIGKILL)
            await process.wait()
            await process.stdout.aclose()
            await broke.wait()
            assert isinstance(outcome[0], StreamBroken)
            assert not (await changes.receive()).is_connected
    await scene.still_answers()


async def muxer_of(node: Network, stranger: Network) -> Any:
    """A stranger's own end of its connection to the node."""
    await stranger.connect(info(node))
    return stranger._swarm.get_connections()[0].muxed_conn  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "frames",
    [
        pack(WINDOW, SYN, 0, 0),
        b"\x01" + pack(WINDOW, SYN, 9, 0)[1:],
        b"\x00\x09" + bytes(10),
        pack(DATA, 0x80, 1, 0),
        pack(DATA, SYN, 1001, (256 << 10) + 1),
        pack(WINDOW, 0, 999_999, 1),
        b"".join(pack(WINDOW, SYN, number, 0) for number in range(1001, 21_001, 2)),
        pack(PING, SYN, 0, 7) * 10_000,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["stream 0", "version 1", "type 9", "flags", "over the window", "nobody's", "10^4 streams", "pings", "http"],
)
async def test_who_breaks_yamux_loses_the_connection_and_nobody_else_does(
    scene: Scene, frames: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is read at once has more pings than so: whether answers leave before the next read comes is chance.
    monkeypatch.setattr(connection, "MAX_CONTROL_BYTES", 8 << 10)
    async with (
        open_network(Identity.generate(), LOOPBACK) as friend,
        open_network(Identity.generate(), LOOPBACK) as bad,
    ):
        await friend.connect(info(scene.node))
        stream = await friend.open_stream(scene.node.peer_id, ["/echo"])
        muxer = await muxer_of(scene.node, bad)
        async with muxer._sending:  # in place of what it would say itself
            await muxer.secured_conn.write(frames)
        with trio.fail_after(20):
            await muxer.event_closed.wait()
            await stream.write(b"still here?")
            assert await stream.read(100) == b"still here?"
    await scene.still_answers()


async def test_who_opens_streams_and_breaks_them_off_without_end_loses_the_connection(scene: Scene) -> None:
    async with open_network(Identity.generate(), LOOPBACK) as bad:
        muxer = await muxer_of(scene.node, bad)
        frames = [pack(WINDOW, SYN, number, 0) + pack(WINDOW, RST, number, 0) for number in range(1001, 201_001, 2)]
        async with muxer._sending:
            with contextlib.suppress(trio.BrokenResourceError, OSError, BaseLibp2pError):
                for at in range(0, len(frames), 500):
                    await muxer.secured_conn.write(b"".join(frames[at : at + 500]))
        with trio.fail_after(20):
            await muxer.event_closed.wait()
        await scene.still_answers()


@pytest.fixture
def soon_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a connection takes up of the event loop is counted by prices: a slow machine comes to them as surely."""
    monkeypatch.setattr(work, "MAX_WORK_S", 0.05)
    monkeypatch.setattr(work, "REFILL_S", 3600.0)


@pytest.mark.parametrize(
    "block",
    [pack(WINDOW, 0, 1001, 0) * 5000, (pack(DATA, 0, 1001, 1) + b"x") * 5000, pack(PING, ACK, 0, 0) * 5000],
    ids=["windows", "bytes for nobody", "pongs"],
)
async def test_who_sends_what_carries_nothing_without_end_is_read_more_slowly_and_nobody_else_is(
    soon_at_rest: None, scene: Scene, block: bytes
) -> None:
    async with open_network(Identity.generate(), LOOPBACK) as bad:
        muxer = await muxer_of(scene.node, bad)
        [here] = scene.node._swarm.get_connections()  # type: ignore[attr-defined]
        async with muxer._sending:
            await muxer.secured_conn.write(pack(WINDOW, SYN, 1001, 0) + pack(WINDOW, RST, 1001, 0))
            with trio.fail_after(20):
                while not here.muxed_conn._core.work.rest_s(trio.current_time()):
                    await muxer.secured_conn.write(block)
        await scene.still_answers()
        assert not muxer.is_closed


async def test_who_asks_for_protocols_without_end_waits_for_the_answers(soon_at_rest: None, scene: Scene) -> None:
    async with open_network(Identity.generate(), LOOPBACK) as bad, trio.open_nursery() as nursery:
        stream = await (await muxer_of(scene.node, bad)).open_stream()
        [here] = scene.node._swarm.get_connections()  # type: ignore[attr-defined]
        nursery.start_soon(stream.write, MULTISTREAM + b"\x03ls\n" * 100_000)
        with trio.fail_after(20):
            while not here.muxed_conn._core.work.rest_s(trio.current_time()):
                assert await stream.read(1 << 16)
        await scene.still_answers()
        nursery.cancel_scope.cancel()


async def test_idle_streams_to_the_dht_shut_nobody_out(scene: Scene) -> None:
    protocol = "/ipfs/lan/kad/1.0.0"
    ping = b"\x02\x08\x05"  # a kad message of type PING
    async with open_network(Identity.generate(), LOOPBACK) as idle, open_network(Identity.generate(), LOOPBACK) as fair:
        await idle.connect(info(scene.node))
        held = []
        for _ in range(MAX_INBOUND_STREAMS_PER_PEER):
            with contextlib.suppress(ProtocolError):
                held.append(await idle.open_stream(scene.node.peer_id, [protocol]))
                await held[-1].write(b"\x7f")
        await fair.connect(info(scene.node))
        stream = await fair.open_stream(scene.node.peer_id, [protocol])
        await stream.write(ping)
        with trio.fail_after(10):
            assert await stream.read(100)


async def test_pings_are_answered_and_a_flood_of_them_is_broken_off(scene: Scene) -> None:
    async with open_network(Identity.generate(), LOOPBACK) as stranger:
        await stranger.connect(info(scene.node))
        stream = await stranger.open_stream(scene.node.peer_id, ["/ipfs/ping/1.0.0"])
        for number in (1, 2):
            await stream.write(bytes([number]) * 32)
            assert await stream.read(32) == bytes([number]) * 32
        n_bytes = 0
        with trio.fail_after(20):
            try:
                await stream.write(bytes(32) * 2000)
                while data := await stream.read(1 << 16):
                    n_bytes += len(data)
            except StreamBroken:
                pass
            else:
                pytest.fail("it answered all of them")
        assert n_bytes < 32 * 2000
    await scene.still_answers()
