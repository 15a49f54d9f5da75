"""Attacks on sockets, on yamux and on the streams of every protocol."""

import contextlib
import secrets
from collections.abc import Iterable
from typing import Any, Final

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.peerstore import PeerStoreError

from protocols import adapters, models, perf, rounds_sync
from protocols.ask import wire as ask
from protocols.errors import ProtocolError
from protocols.net import Network, Stream
from protocols.net_libp2p.addresses import to_id
from protocols.relay.wire import HOP, STOP
from protocols.workspaces import sync
from protocols.yamux.frames import DATA, PING, RST, SYN, WINDOW, pack
from protocols.yamux.memory import MAX_UNREAD_BYTES
from tests.campaigns.hostile_scene import Attack, Scene

MULTISTREAM: Final = b"\x13/multistream/1.0.0\n"
NOISE: Final = b"\x07/noise\n"
N_IDLE: Final = 300
N_PIECES: Final = 500  # frames in one write
CUT_LIMIT_S: Final = 30.0
SAY_LIMIT_S: Final = 10.0  # a stream that was let go of is reset after 5
LORIS_S: Final = 100.0
LORIS_EVERY_S: Final = 2.0
N_LORIS: Final = 4  # streams on each protocol
EXPECTED: Final = {
    "/ipfs/bitswap/1.2.0",
    "/ipfs/lan/kad/1.0.0",
    "/ipfs/ping/1.0.0",
    "/meshsub/1.2.0",
    HOP,
    STOP,
    perf.PROTOCOL,
    adapters.PROTOCOL,
    models.PROTOCOL,
    rounds_sync.PROTOCOL,
    sync.PROTOCOL,
    ask.PROTOCOL,
}
LASTING: Final = "/meshsub/"  # whose streams last as long as their connection does
GARBAGE: Final = (
    b"",
    b"\x00",
    b"\x05hello",
    b"\xff" * 20,
    b"\x80" * 20,
    secrets.token_bytes(5000),
    b"\x7f" * (1 << 20),
)
BOMBS: Final = (b"\xff\xff\xff\xff\x7f", b"\xff" * 9 + b"\x01", b"\x80" * 64, b"\x80\x80\x80\x80\x01" + bytes(1 << 16))
BROKEN: Final = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


# --- sockets


async def garbage_on_the_socket(scene: Scene) -> str:
    """Bytes of no protocol, in many sizes, before and within the handshake."""
    n_closed = 0
    for n_bytes in (1, 20, 5000, 100_000, 1 << 20):
        for head in (b"", MULTISTREAM, MULTISTREAM + NOISE):
            stream = await trio.open_tcp_stream("127.0.0.1", scene.port)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(head + secrets.token_bytes(n_bytes))
            with trio.move_on_after(CUT_LIMIT_S) as waited, contextlib.suppress(trio.BrokenResourceError):
                await stream.send_eof()
                while await stream.receive_some(4096):
                    pass
            n_closed += not waited.cancelled_caught
            await stream.aclose()
    assert n_closed == 15
    return f"{n_closed} of 15 connections closed"


async def half_handshakes(scene: Scene) -> str:
    """Hundreds of connections that begin to shake hands and stay."""
    held: list[trio.SocketStream] = []
    for said in (b"", MULTISTREAM, MULTISTREAM + NOISE + b"\x00\x20"):
        for _ in range(N_IDLE):
            held.append(await trio.open_tcp_stream("127.0.0.1", scene.port))
            with contextlib.suppress(trio.BrokenResourceError):
                await held[-1].send_all(said)
    took_s = await scene.fetch()
    n_closed = 0

    async def wait_for_end(stream: trio.SocketStream) -> None:
        nonlocal n_closed
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some(4096):
                pass
        n_closed += 1

    with trio.move_on_after(CUT_LIMIT_S):
        async with trio.open_nursery() as nursery:
            for stream in held:
                nursery.start_soon(wait_for_end, stream)
    for stream in held:
        await trio.aclose_forcefully(stream)
    assert n_closed == len(held), f"{len(held) - n_closed} of {len(held)} connections stand"
    return f"all {len(held)} closed; a friend came in after {took_s:.1f} s meanwhile"


# --- yamux


async def own_muxer(network: Network) -> Any:
    """A stranger's own end of its one connection."""
    return network._swarm.get_connections()[0].muxed_conn  # type: ignore[attr-defined]  # no other way to break rules


async def pour(scene: Scene, frames: Iterable[bytes]) -> str:
    """Send yamux frames as they are, in place of what a muxer would say. Returns: that the connection was closed."""
    async with scene.stranger() as network:
        muxer = await own_muxer(network)
        n_sent = 0
        async with muxer._sending:
            source = iter(frames)
            with contextlib.suppress(*BROKEN):
                while some := [frame for _, frame in zip(range(N_PIECES), source, strict=False)]:
                    await muxer.secured_conn.write(b"".join(some))
                    n_sent += len(some)
        with trio.fail_after(CUT_LIMIT_S):
            await muxer.event_closed.wait()
    return f"connection closed, at most {n_sent:,} frames later"


async def ten_thousand_streams(scene: Scene) -> str:
    """Streams that are opened and stay."""
    return await pour(scene, (pack(WINDOW, SYN, number, 0) for number in range(1001, 21_001, 2)))


async def rapid_reset(scene: Scene) -> str:
    """10^5 streams that are opened and broken off at once."""
    return await pour(
        scene, (pack(WINDOW, SYN, number, 0) + pack(WINDOW, RST, number, 0) for number in range(1001, 201_001, 2))
    )


async def streams_used_again(scene: Scene) -> str:
    """One number that is opened, broken off and opened again, without end."""
    return await pour(scene, (pack(WINDOW, flag, 1001, 0) for _ in range(50_000) for flag in (SYN, RST)))


async def ping_flood(scene: Scene) -> str:
    """Pings whose answers nobody reads."""
    async with scene.stranger() as network:
        muxer = await own_muxer(network)
        with trio.CancelScope() as reading:
            async with muxer._sending, trio.open_nursery() as nursery:
                muxer.secured_conn.receive = trio.sleep_forever  # from the next message on
                nursery.start_soon(_flood, muxer, pack(PING, SYN, 0, 7) * 5000, nursery.cancel_scope)
                await trio.sleep(CUT_LIMIT_S)
                reading.cancel()
    assert not reading.cancelled_caught, "it still takes pings"
    return "connection closed"


async def _flood(muxer: Any, data: bytes, scope: trio.CancelScope) -> None:
    with contextlib.suppress(*BROKEN):
        while True:
            with trio.move_on_after(5) as stuck:
                await muxer.secured_conn.write(data)
            if stuck.cancelled_caught:  # it takes no more, for we take nothing
                break
    scope.cancel()


async def window_ignored(scene: Scene) -> str:
    """More on a stream than was granted."""
    async with scene.stranger() as network:
        muxer = await own_muxer(network)
        stream = await network.open_stream(scene.info.peer, ["/ipfs/bitswap/1.2.0"])
        stream._muxed.core.send_window_bytes = 1 << 40  # nothing honest does this
        with trio.fail_after(CUT_LIMIT_S), contextlib.suppress(ProtocolError):
            await stream.write(b"\xff\xff\xff\x01" + bytes(3 * MAX_UNREAD_BYTES))
            await muxer.event_closed.wait()
    return "connection closed"


async def window_overflow(scene: Scene) -> str:
    """Windows that grow beyond any number."""
    wide = [pack(WINDOW, SYN, 1001, 0), pack(WINDOW, 0, 1001, (1 << 32) - 1), pack(WINDOW, 0, 1001, (1 << 32) - 1)]
    return await pour(scene, wide)


async def frames_of_one_byte(scene: Scene) -> str:
    """A message of Bitswap in 2,000,000 frames of two bytes."""
    async with scene.stranger() as network:
        muxer = await own_muxer(network)
        stream = await network.open_stream(scene.info.peer, ["/ipfs/bitswap/1.2.0"])
        number = stream._muxed.core.number
        crumb = pack(DATA, 0, number, 2) + b"\x00\x00"
        with trio.move_on_after(CUT_LIMIT_S), contextlib.suppress(*BROKEN):
            async with muxer._sending:
                await muxer.secured_conn.write(pack(DATA, 0, number, 4) + b"\xff\xff\xff\x01")  # almost 4 MiB
                for _ in range(100):  # within the first window
                    await muxer.secured_conn.write(crumb * 1000)
    return "heard, within its window; what it sent is gone with it"


# --- streams of every protocol


async def served(network: Network, scene: Scene) -> list[str]:
    """What the daemon speaks, by its own word."""
    found: list[str] = []
    with trio.fail_after(20):
        while not found:
            await trio.sleep(0.05)
            with contextlib.suppress(PeerStoreError):  # identify is under way
                found = network._host.get_peerstore().get_protocols(to_id(scene.info.peer))  # type: ignore[attr-defined]
    assert set(found) >= EXPECTED, f"not served: {', '.join(sorted(EXPECTED - set(found)))}"
    return sorted(found)


async def _say(scene: Scene, network: Network, protocol: str, data: bytes) -> bool | None:
    """Say this on a new stream. Returns: whether it was ended, once no more came; None where there was none."""
    with trio.move_on_after(SAY_LIMIT_S) as waited:
        try:
            await network.connect(scene.info)
            stream = await network.open_stream(scene.info.peer, [protocol])
        except ProtocolError:
            return None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_ended, stream, nursery.cancel_scope)
            with contextlib.suppress(ProtocolError):
                await stream.write(data)
                await stream.finish()
            await trio.sleep_forever()
    await stream.aclose()
    return not waited.cancelled_caught


async def _say_all(scene: Scene, what: tuple[bytes, ...]) -> str:
    """Whoever is refused comes back under another name, so that each protocol hears all of it."""
    async with scene.stranger() as network:
        protocols = await served(network, scene)
    left = [(protocol, data) for protocol in protocols for data in what]
    n_streams, n_names, stand = len(left), 0, list[str]()
    while left:
        n_names += 1
        async with scene.stranger() as network:
            while left:
                protocol, data = left[0]
                ended = await _say(scene, network, protocol, data)
                if ended is None:
                    break
                left.pop(0)
                if not ended:
                    stand.append(f"{protocol} ({len(data)} bytes)")
    assert not stand, f"streams that stand: {', '.join(stand)}"
    return f"all {n_streams} streams ended, on {len(protocols)} protocols; it needed {n_names} names"


async def garbage_on_every_protocol(scene: Scene) -> str:
    """Bytes of no protocol behind every protocol's negotiation."""
    return await _say_all(scene, GARBAGE)


async def varint_bombs(scene: Scene) -> str:
    """Lengths without end, and lengths of 4 GiB, on every protocol."""
    return await _say_all(scene, BOMBS)


async def slow_loris(scene: Scene) -> str:
    """A message that comes byte by byte, on every protocol, several times."""
    stand: list[str] = []
    ended_s: list[float] = []

    async def come(protocol: str) -> None:
        """Each under a name of its own, so that none ends for what another did."""
        async with scene.stranger() as network, trio.open_nursery() as nursery:
            for _ in range(N_LORIS):
                nursery.start_soon(trickle, network, protocol)

    async def trickle(network: Network, protocol: str) -> None:
        try:
            stream = await network.open_stream(scene.info.peer, [protocol])
        except ProtocolError:
            return
        began_s = trio.current_time()
        try:
            with trio.move_on_after(LORIS_S) as time:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_until_ended, stream, nursery.cancel_scope)
                    await stream.write(b"\xf0\x07")  # a kilobyte is to come
                    while True:
                        await trio.sleep(LORIS_EVERY_S)
                        await stream.write(b"\x0a")
        except* ProtocolError:
            pass
        if time.cancelled_caught:
            stand.append(stream.protocol)
        else:
            ended_s.append(trio.current_time() - began_s)
        await stream.aclose()

    async with scene.stranger() as network:
        protocols = await served(network, scene)
    async with trio.open_nursery() as nursery:
        for protocol in protocols:
            nursery.start_soon(come, protocol)
    others = sorted({protocol for protocol in stand if LASTING not in protocol})
    assert not others, f"streams that stand: {', '.join(others)}"
    return f"{len(ended_s)} streams ended, the last after {max(ended_s):.0f} s; {len(stand)} of gossip stand"


async def _until_ended(stream: Stream, scope: trio.CancelScope) -> None:
    with contextlib.suppress(ProtocolError):
        while await stream.read(1 << 16):
            pass
    scope.cancel()


ATTACKS: Final[dict[str, Attack]] = {
    "garbage-socket": garbage_on_the_socket,
    "half-handshakes": half_handshakes,
    "streams-10000": ten_thousand_streams,
    "rapid-reset": rapid_reset,
    "number-again": streams_used_again,
    "pings": ping_flood,
    "window-ignored": window_ignored,
    "window-overflow": window_overflow,
    "crumbs": frames_of_one_byte,
    "garbage": garbage_on_every_protocol,
    "varint-bombs": varint_bombs,
    "slow-loris": slow_loris,
}
