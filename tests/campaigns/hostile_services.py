"""Attacks on relays, on what answers questions, and with records that were right once."""

import contextlib
from contextlib import AsyncExitStack
from typing import Final

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage

from daemon import wall
from protocols import adapters, ipns, message, models, rounds_sync
from protocols.ask import wire as ask
from protocols.errors import ProtocolError
from protocols.framing import frame, read_frame
from protocols.net import Network, Stream
from protocols.net_libp2p import open_network
from protocols.relay import circuits
from protocols.relay.wire import (
    HOP,
    HOP_FORM,
    MAX_MESSAGE_BYTES,
    STOP,
    STOP_FORM,
    Kind,
    Message,
    Status,
    read,
    write,
)
from protocols.workspaces import sync
from protocols.yamux.frames import DATA, pack
from storage.cid import DAG_CBOR, Cid
from storage.keys import Identity, PeerId
from tests.campaigns.hostile_content import KAD
from tests.campaigns.hostile_scene import LOOPBACK, Attack, Scene
from tests.campaigns.hostile_streams import own_muxer

N_RESERVING: Final = circuits.MAX_STRANGERS + 4
N_CONNECTS: Final = 300
N_QUESTIONS: Final = 400  # on each protocol
ANSWER_LIMIT_S: Final = 20.0
N_INSISTS: Final = 12
NOWHERE: Final = Cid.of(b"nowhere", DAG_CBOR)


# --- relays


async def _hop(network: Network, relay: PeerId, said: Message) -> tuple[Stream, int | None]:
    """Say one message of HOP. Returns: the stream, and the status that came."""
    stream = await network.open_stream(relay, [HOP])
    with trio.fail_after(ANSWER_LIMIT_S):
        await stream.write(frame(write(HOP_FORM, said)))
        data = await read_frame(stream, MAX_MESSAGE_BYTES)
    return stream, None if data is None else read(HOP_FORM, data).status


async def relay_abused(scene: Scene) -> str:
    """More reservations than there is room for, circuits to nobody, and more over one than strangers may send."""
    relay = scene.info.peer
    n_carried = 0

    async def take(stream: Stream) -> None:
        nonlocal n_carried
        await read_frame(stream, MAX_MESSAGE_BYTES)
        await stream.write(frame(write(STOP_FORM, Message(Kind.STATUS, status=Status.OK))))
        while data := await stream.read(1 << 16):
            n_carried += len(data)

    async with AsyncExitStack() as stack:
        names = [await stack.enter_async_context(scene.stranger()) for _ in range(N_RESERVING)]
        said = [(await _hop(name, relay, Message(Kind.RESERVE)))[1] for name in names]
        n_reserved = said.count(Status.OK)
        assert 0 < n_reserved <= circuits.MAX_STRANGERS, said
        source, target = names[0], names[1]
        n_refused = 0
        for _ in range(N_CONNECTS):
            with contextlib.suppress(ProtocolError):
                stream, status = await _hop(source, relay, Message(Kind.CONNECT, Identity.generate().peer_id))
                n_refused += status != Status.OK
                await stream.aclose()
        assert n_refused == N_CONNECTS, "it knows somebody who was never there"
        target.serve(STOP, take)
        stream, status = await _hop(source, relay, Message(Kind.CONNECT, target.peer_id))
        assert status == Status.OK, status
        with trio.fail_after(ANSWER_LIMIT_S), contextlib.suppress(ProtocolError):
            for _ in range(100):
                await stream.write(bytes(1 << 16))
            await stream.read(1)
    assert n_carried <= circuits.STRANGER.limit.n_bytes, f"{n_carried} bytes over one circuit"
    return (
        f"{n_reserved} of {N_RESERVING} reservations, {n_refused} circuits to nobody refused, "
        f"{n_carried >> 10} KiB of 6,400 carried"
    )


# --- questions


def _questions() -> dict[str, bytes]:
    """Well formed, and about nothing that is here."""
    return {
        adapters.PROTOCOL: message.encode(adapters.Ask(bases=(NOWHERE,)), adapters.MAX_ASK_BYTES),
        models.PROTOCOL: message.encode(models.Ask(), models.MAX_ASK_BYTES),
        rounds_sync.PROTOCOL: message.encode(rounds_sync.AskPlan(experiment=NOWHERE), rounds_sync.MAX_ASK_BYTES),
        sync.PROTOCOL: message.encode(sync.AskRoot(workspace=NOWHERE), sync.MAX_ASK_BYTES),
        ask.PROTOCOL: message.encode(ask.Describe(), ask.MAX_ASK_BYTES),
    }


async def questions_flood(scene: Scene) -> str:
    """Thousands of questions, as fast as they are answered, by one who is nobody; and none of them read."""
    n_ended = 0

    async def insist(network: Network, protocol: str, question: bytes) -> None:
        nonlocal n_ended
        for number in range(N_QUESTIONS):
            with contextlib.suppress(ProtocolError), trio.move_on_after(ANSWER_LIMIT_S):
                stream = await network.open_stream(scene.info.peer, [protocol])
                await stream.write(frame(question))
                if number % 2:
                    while await stream.read(1 << 16):
                        pass
                n_ended += 1
                await stream.aclose()

    questions = _questions()
    async with scene.stranger() as network, trio.open_nursery() as nursery:
        for protocol, question in questions.items():
            nursery.start_soon(insist, network, protocol, question)
    assert n_ended > len(questions) * N_QUESTIONS // 2, f"only {n_ended} streams were opened"
    return f"{n_ended:,} questions heard, each ended"


# --- records


async def _value(network: Network, scene: Scene, said: KadMessage) -> KadMessage | None:
    """Ask the DHT on a stream of its own; None where it answers nothing."""
    with contextlib.suppress(ProtocolError), trio.move_on_after(ANSWER_LIMIT_S):
        stream = await network.open_stream(scene.info.peer, [KAD])
        try:
            await stream.write(frame(said.SerializeToString()))
            data = await read_frame(stream, 1 << 22)
            return None if data is None else KadMessage.FromString(data)
        finally:
            await stream.aclose()
    return None


async def names_replayed(scene: Scene) -> str:
    """Records of a name that were right once: an older one behind a newer one, one whose time is over, another's."""
    owner, other = Identity.generate(), Identity.generate()
    now_s = wall.unix_s()

    def record(by: Identity, sequence: int, unix_s: float) -> bytes:
        return ipns.make_record(by, f"/ipfs/{NOWHERE}", sequence=sequence, unix_s=unix_s, lifetime_s=3600)

    newest = record(owner, 2, now_s)
    bad = (record(owner, 1, now_s), record(owner, 3, now_s - 7200), record(other, 4, now_s), newest[:-9] + bytes(9))
    key = b"/ipns/" + bytes(owner.peer_id)
    async with scene.stranger() as network:
        for value in (newest, *bad):
            said = KadMessage(type=KadMessage.PUT_VALUE, key=key)
            said.record.key, said.record.value = key, value
            await _value(network, scene, said)
            got = await _value(network, scene, KadMessage(type=KadMessage.GET_VALUE, key=key))
            assert got is None or got.record.value in (b"", newest), "an older or a forged record took its place"
    is_kept = got is not None and got.record.value == newest
    return (
        f"{len(bad)} dropped; the newest {'stays' if is_kept else 'is not kept either: it keeps no values of others'}"
    )


async def insistent(scene: Scene) -> str:
    """One who breaks its connection's rules, comes back, and does it again, under the same name."""
    me, n_broken, is_in = Identity.generate(), 0, True
    while is_in:
        async with open_network(me, LOOPBACK) as network:
            try:
                await network.connect(scene.info)
                await network.open_stream(scene.info.peer, [KAD])
            except ProtocolError:
                is_in = False
                continue
            n_broken += 1
            assert n_broken < N_INSISTS, "it may come back for ever"
            muxer = await own_muxer(network)
            async with muxer._sending:
                await muxer.secured_conn.write(pack(DATA, 0, 99_999, 4) + b"what")
            with trio.move_on_after(ANSWER_LIMIT_S):
                await muxer.event_closed.wait()
    async with scene.stranger() as neighbour:  # of the same address
        assert scene.info.peer in neighbour.peers()
    return f"turned away behind {n_broken} connections; its neighbour was let in"


ATTACKS: Final[dict[str, Attack]] = {
    "relay": relay_abused,
    "questions": questions_flood,
    "insistent": insistent,
    "names-replayed": names_replayed,
}
