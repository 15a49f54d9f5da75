"""Attacks with blocks, wantlists, gossip, announcements and records."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.pubsub.pb import rpc_pb2

from daemon import wall
from daemon.lifecycle import running
from protocols import adapters as wire
from protocols.adapters import Announcement
from protocols.bitswap.shell import Exchange, run_exchange
from protocols.bitswap.wire import (
    BITSWAP_1_2,
    MAX_ITEMS,
    MAX_MESSAGE_BYTES,
    PROTOCOLS,
    Entry,
    Message,
    Payload,
    WantType,
    decode,
    encode,
    payload_of,
)
from protocols.errors import DialFailed, ProtocolError
from protocols.framing import frame, read_frame
from protocols.net import MAX_TOPIC_MESSAGE_BYTES, Network, Stream
from protocols.net_libp2p import open_network
from simulations.world import TINY
from storage.blockstore import EVERYTHING
from storage.cid import DAG_CBOR, RAW, Cid
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from storage.unixfs import add_path
from tests.campaigns.hostile_scene import LOOPBACK, TOPIC, Attack, Scene

BASE: Final = Cid.parse(TINY.fingerprint)
KAD: Final = "/ipfs/lan/kad/1.0.0"
MESHSUB: Final = "/meshsub/1.1.0"
N_BLOCKS: Final = 30  # of a mebibyte each
N_WANTLISTS: Final = 40
N_GOSSIP: Final = 1000
N_RECORDS: Final = 2000
LIMIT_S: Final = 60.0
QUIET_S: Final = 2.0  # an event that is to come has come by then


# --- Bitswap


async def _send(scene: Scene, network: Network, *messages: bytes) -> bool:
    """Say messages of Bitswap on one stream. Returns: whether the daemon ended it before all were said."""
    stream = await network.open_stream(scene.info.peer, [BITSWAP_1_2])
    try:
        with trio.fail_after(LIMIT_S):
            for message in messages:
                await stream.write(frame(message))
            await stream.finish()
            while await stream.read(1 << 16):
                pass
    except ProtocolError:
        return True
    finally:
        await stream.aclose()
    return False


async def unwanted_blocks(scene: Scene) -> str:
    """Blocks that nobody asked for, 30 MiB of them."""
    before, n_cut = (await scene.ask("status"))[0]["n_blocks"], 0
    async with scene.stranger() as network:
        for _ in range(N_BLOCKS):
            data = secrets.token_bytes(1 << 20)
            try:
                await network.connect(scene.info)
                await _send(scene, network, encode(Message(blocks=(payload_of(Cid.of(data), data),))))
            except DialFailed:
                n_cut += 1
            await trio.sleep(0.05)
        codes = await scene.noted(network)
    assert (await scene.ask("status"))[0]["n_blocks"] == before, "it kept some of them"
    assert "unwanted" in codes, codes
    assert n_cut, "it bears all of them"
    return f"noted as unwanted; cut off behind {N_BLOCKS - n_cut}; no block of its kept"


async def oversize_blocks(scene: Scene) -> str:
    """A block of 3 MiB, and messages longer than any may be."""
    data = bytes(3 << 20)
    async with scene.stranger() as network:
        await _send(scene, network, encode(Message(blocks=(payload_of(Cid.of(data), data),))))
        assert await _send(scene, network, bytes(MAX_MESSAGE_BYTES + 1)), "it heard a message without end"
        codes = await scene.noted(network)
    assert "too_big" in codes, codes
    return "stream broken off; noted as too_big"


async def wantlist_flood(scene: Scene) -> str:
    """Want-haves for 160,000 blocks that are not there, whose answers are read; then as many whose are not."""
    async with scene.stranger() as network:
        for protocol in PROTOCOLS:
            network.serve(protocol, _read_on)
        for is_read in (True, False):
            for _ in range(N_WANTLISTS):
                cids = [Cid.of(secrets.token_bytes(8)) for _ in range(MAX_ITEMS // 4)]
                entries = [Entry(cid, want_type=WantType.HAVE, send_dont_have=is_read) for cid in cids]
                await _send(scene, network, encode(Message(entries=tuple(entries))))
    return "heard, a slice at a time; 4,096 wants kept until it left"


async def _read_on(stream: Stream) -> None:
    while await stream.read(1 << 16):
        pass


async def silent_messages(scene: Scene) -> str:
    """A million messages that say nothing, a byte each."""
    async with scene.stranger() as network:
        stream = await network.open_stream(scene.info.peer, [BITSWAP_1_2])
        with trio.move_on_after(10) as time, contextlib.suppress(ProtocolError):
            await stream.write(bytes(1 << 20))
            await stream.finish()
            while await stream.read(1):
                pass
        await stream.aclose()
    assert time.cancelled_caught, "it heard all of them at once"
    return "heard slowly"


@asynccontextmanager
async def _liar(answer: Callable[[Entry], Message]) -> AsyncIterator[Network]:
    """A peer that answers every want as it likes."""

    async def hear(stream: Stream) -> None:
        while (body := await read_frame(stream, MAX_MESSAGE_BYTES)) is not None:
            replies = [encode(answer(entry)) for entry in decode(body).entries if not entry.is_cancel]
            reply = await network.open_stream(stream.peer, [BITSWAP_1_2])
            for data in replies:
                await reply.write(frame(data))
            await reply.aclose()

    async with open_network(Identity.generate(), LOOPBACK) as network:
        for protocol in PROTOCOLS:
            network.serve(protocol, hear)
        yield network


async def _fetch_beside(scene: Scene, liar: Network) -> tuple[float, list[str]]:
    """Have the daemon fetch from a liar alone, then from it and an honest peer.

    Returns: how long that took, and how the liar was noted.
    """
    store = MemoryBlockstore()
    content = scene.folder / f"honest-{secrets.token_hex(4)}"
    content.write_bytes(secrets.token_bytes(4 << 20))
    cid, out = str(add_path(store, content)), f"{content}.out"
    lying = ("--provider", liar.addresses()[0])
    try:
        await scene.ask("get", cid, *lying, "--out", out, "--timeout-s", "3")
    except AssertionError:
        pass
    else:
        raise AssertionError("it got something from a liar")
    async with (
        open_network(Identity.generate(), LOOPBACK) as honest,
        running(run_exchange, Exchange(honest, store, lambda peer: EVERYTHING)),
    ):
        began_s = trio.current_time()
        await scene.ask("get", cid, *lying, "--provider", honest.addresses()[0], "--out", out)
        took_s = trio.current_time() - began_s
    assert (scene.folder / out).read_bytes() == content.read_bytes()
    return took_s, await scene.noted(liar)


async def lying_presences(scene: Scene) -> str:
    """A provider that claims to have everything, and gives nothing."""
    async with _liar(lambda entry: Message(haves=(entry.cid,))) as liar:
        took_s, _ = await _fetch_beside(scene, liar)
    return f"left for the honest provider: 4 MiB after {took_s:.1f} s"


async def tampered_blocks(scene: Scene) -> str:
    """A provider that gives other bytes than were asked for."""

    def forge(entry: Entry) -> Message:
        prefix = payload_of(entry.cid, b"").prefix
        return Message(blocks=(Payload(prefix, secrets.token_bytes(1000)),))

    async with _liar(forge) as liar:
        took_s, codes = await _fetch_beside(scene, liar)
    assert "tampered" in codes, codes
    return f"noted as tampered and asked no more: 4 MiB after {took_s:.1f} s"


# --- gossip


async def _mesh(network: Network, scene: Scene) -> None:
    """Wait until the daemon's subscription is known here."""
    with trio.fail_after(20):
        while scene.info.peer not in network.topic_peers(TOPIC):
            await trio.sleep(0.05)


async def gossip_flood(scene: Scene) -> str:
    """A thousand messages of a topic, each as large as any may be, none of which is an announcement."""
    async with scene.stranger() as network, network.subscribe(TOPIC):
        await _mesh(network, scene)
        for _ in range(N_GOSSIP):
            await network.publish(TOPIC, secrets.token_bytes(MAX_TOPIC_MESSAGE_BYTES))
        await trio.sleep(QUIET_S)
        assert (await scene.ask("adapter", "ls"))[0] == []
    return "its messages dropped, one by one"


async def _say_rpc(scene: Scene, network: Network, rpcs: list[Any]) -> None:
    stream = await network.open_stream(scene.info.peer, [MESHSUB])
    with contextlib.suppress(ProtocolError):
        for rpc in rpcs:
            await stream.write(frame(rpc.SerializeToString()))
        await trio.sleep(QUIET_S)
    await stream.aclose()


async def gossip_silence(scene: Scene) -> str:
    """A million gossip messages that say nothing, a byte each."""
    async with scene.stranger() as network:
        stream = await network.open_stream(scene.info.peer, [MESHSUB])
        with trio.move_on_after(LIMIT_S) as time, contextlib.suppress(ProtocolError):
            await stream.write(bytes(1 << 20))
            await stream.finish()
            while await stream.read(1):
                pass
        await stream.aclose()
    return "heard slowly" if time.cancelled_caught else "heard, and others between them"


async def gossip_signatures(scene: Scene) -> str:
    """Messages in others' names, with no signature of theirs; and records of no message that ask for much."""
    victim = Identity.generate().peer_id
    rpcs = []
    for number in range(N_GOSSIP):
        message: Any = rpc_pb2.Message(
            from_id=bytes(victim), data=b"x", seqno=number.to_bytes(8), topicIDs=[TOPIC], signature=bytes(64)
        )
        rpcs.append(rpc_pb2.RPC(publish=[message]))
    many = rpc_pb2.RPC()
    for number in range(10_000):
        many.subscriptions.add(subscribe=True, topicid=f"/covey/adapters/1/{number}")
    wanting = rpc_pb2.RPC()
    wanting.control.iwant.add(messageIDs=[secrets.token_bytes(20) for _ in range(10_000)])
    having = rpc_pb2.RPC()
    having.control.ihave.add(topicID=TOPIC, messageIDs=[secrets.token_bytes(20) for _ in range(10_000)])
    async with scene.stranger() as network:
        await _say_rpc(scene, network, [*rpcs, many, wanting, having])
    assert (await scene.ask("adapter", "ls"))[0] == []
    return "dropped; nobody heard them"


async def announcements_forged_and_replayed(scene: Scene) -> str:
    """By a peer that is trusted: announcements in another's name, old and damaged ones, and one again and again.

    What comes again as it was is dropped before anybody looks at it, as long as gossip knows it; later it is replayed.
    """
    trusted = Identity.generate()
    await scene.ask("peer", "trust", str(trusted.peer_id), "--kinds", "adapters")
    async with open_network(trusted, LOOPBACK) as network, network.subscribe(TOPIC):
        await network.connect(scene.info)
        await _mesh(network, scene)
        n_sealed = 0

        def count(_: bytes) -> int:
            nonlocal n_sealed
            n_sealed += 1
            return n_sealed

        def seal(signer: Identity, unix_s: float) -> bytes:
            body = Announcement(manifest=Cid.of(b"nowhere", DAG_CBOR), name="poet", version=1, n_bytes=1)
            return wire.seal_announcement(signer, BASE, body, count, unix_s)

        good = seal(trusted, wall.unix_s())
        damaged = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), 16)]
        old = seal(trusted, wall.unix_s() - 86_400)
        for data in [seal(Identity.generate(), wall.unix_s()), old, *damaged, *[good] * 50]:
            await network.publish(TOPIC, data)
        await trio.sleep(QUIET_S)
        codes = {*await scene.noted(network, "adapter_refused"), *await scene.noted(network)}
        shown = [row for row in (await scene.ask("adapter", "ls"))[0] if row.get("state") == "ready"]
    await scene.ask("peer", "untrust", str(trusted.peer_id))
    assert not shown
    assert {"expired", "forged", "malformed"} <= codes, codes
    again = "" if "replayed" in codes else "; what came again was dropped"
    return f"refused as {', '.join(sorted(codes))}{again}"


# --- records


async def _kad(stream: Stream, message: KadMessage) -> KadMessage | None:
    """Ask the DHT; None where the stream ends instead."""
    await stream.write(frame(message.SerializeToString()))
    answer = await read_frame(stream, 1 << 22)
    return None if answer is None else KadMessage.FromString(answer)


async def records_forged(scene: Scene) -> str:
    """Provider records in another's name, values that nobody signed, and provider records without end."""
    other, key = Identity.generate().peer_id, Cid.of(b"spoofed").multihash
    address = b"\x04\x7f\x00\x00\x01\x06\x00\x01"
    n_refused = 0
    async with scene.stranger() as network:
        stream = await network.open_stream(scene.info.peer, [KAD])
        spoofed = KadMessage(type=KadMessage.ADD_PROVIDER, key=key)
        spoofed.providerPeers.add(id=bytes(other), addrs=[address])
        await _kad(stream, spoofed)
        found = await _kad(stream, KadMessage(type=KadMessage.GET_PROVIDERS, key=key))
        assert found is not None and not found.providerPeers, "a record in another's name was kept"
        for name in (b"/ipns/" + bytes(other), b"/pk/" + bytes(other), b"/other/x"):
            value = KadMessage(type=KadMessage.PUT_VALUE, key=name)
            value.record.key, value.record.value = name, b"forged"
            with contextlib.suppress(ProtocolError):
                asking = await network.open_stream(scene.info.peer, [KAD])
                await _kad(asking, value)
                asking = await network.open_stream(scene.info.peer, [KAD])
                got = await _kad(asking, KadMessage(type=KadMessage.GET_VALUE, key=name))
                assert got is None or got.record.value != b"forged", "a value that nobody signed was kept"
        with contextlib.suppress(ProtocolError):
            for number in range(N_RECORDS):
                own = KadMessage(type=KadMessage.ADD_PROVIDER, key=Cid.of(number.to_bytes(4)).multihash)
                own.providerPeers.add(id=bytes(network.peer_id), addrs=[address])
                if await _kad(stream, own) is None:
                    break
                n_refused = N_RECORDS - number - 1
    assert n_refused > N_RECORDS // 2, "it takes records without end"
    return f"forged ones dropped; of {N_RECORDS:,} of its own {n_refused:,} refused"


async def blocks_in_confidence(scene: Scene) -> str:
    """A stranger asks for a block that it may not see, in every way."""
    secret = scene.folder / f"secret-{secrets.token_hex(4)}"
    data = secrets.token_bytes(5000)
    secret.write_bytes(data)
    cid = Cid.of(data, RAW)
    await scene.ask("add", str(secret), "--visibility", "private")
    heard: list[Message] = []

    async def hear(stream: Stream) -> None:
        while (body := await read_frame(stream, MAX_MESSAGE_BYTES)) is not None:
            heard.append(decode(body))

    async with scene.stranger() as network:
        for protocol in PROTOCOLS:
            network.serve(protocol, hear)
        for want_type in WantType:
            wants = tuple(Entry(one, want_type=want_type, send_dont_have=True) for one in (cid, Cid.of(b"lacking")))
            await _send(scene, network, encode(Message(entries=wants)))
        await trio.sleep(QUIET_S)
    assert not any(message.blocks or message.haves for message in heard), "it was told of"
    return "told that it is not here, as of what is not"


ATTACKS: Final[dict[str, Attack]] = {
    "unwanted-blocks": unwanted_blocks,
    "oversize-blocks": oversize_blocks,
    "wantlists": wantlist_flood,
    "silent-messages": silent_messages,
    "lying-presences": lying_presences,
    "tampered-blocks": tampered_blocks,
    "private-blocks": blocks_in_confidence,
    "gossip-flood": gossip_flood,
    "gossip-silence": gossip_silence,
    "gossip-signatures": gossip_signatures,
    "announcements": announcements_forged_and_replayed,
    "records": records_forged,
}
