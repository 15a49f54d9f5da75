"""What only the libp2p adapter does: what it imports, where it listens, whom it finds on the local network."""

import json
import subprocess
import sys
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.identity import update
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.kad_dht import peer_routing, provider_store
from libp2p.kad_dht.routing_table import KBucket
from libp2p.peer.peerinfo import PeerInfo as LibP2pInfo
from multiaddr import Multiaddr

from protocols import conduct
from protocols.errors import DialFailed, Local, StreamBroken
from protocols.framing import write_frame
from protocols.net import PeerChange, PeerInfo, Stream
from protocols.net_libp2p import NetConfig, addresses, gater, host, network, open_network
from protocols.net_libp2p.addresses import MAX_PARTS, expand, is_sound, parse, parts_of, to_id, to_peer, to_texts
from protocols.net_libp2p.host import (
    MAX_DHT_BYTES,
    MAX_HEARD_ADDRESSES,
    MAX_PUSHES,
    MAX_SPOKEN,
    MAX_SPOKEN_CHARS,
    PUBLIC_DHT,
)
from protocols.net_libp2p.lean import LEFT_OUT
from protocols.net_libp2p.mdns import MAX_TXT_STRINGS, read_txt, write_txt
from protocols.net_libp2p.notifee import Notifee
from storage.cid import Cid
from storage.keys import Identity, PeerId

ROOT = Path(__file__).parents[2]
LOOPBACK = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
PEER = Identity(b"p" * 32).peer_id
OTHER = Identity(b"o" * 32).peer_id
HEAVY = ("aioquic", "dns", "httpx", "requests", "OpenSSL", "service_identity", "trio_websocket", "zeroconf", "torch")

NODE = """
import json, sys, trio
from protocols.net_libp2p import NetConfig, open_network
from storage.keys import Identity

async def main():
    async with open_network(Identity.generate(), NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)):
        await trio.sleep(0.1)
        print(json.dumps(sorted(sys.modules)))

trio.run(main)
"""


def test_a_running_node_has_loaded_nothing_that_it_never_uses() -> None:
    done = subprocess.run([sys.executable, "-c", NODE], capture_output=True, cwd=ROOT, timeout=60, check=True)
    modules = json.loads(done.stdout)
    assert [name for name in modules if name.split(".")[0] in HEAVY] == []
    assert [name for name in modules if name.startswith(LEFT_OUT)] == []


async def test_of_one_peer_so_many_addresses_are_kept_however_many_a_stranger_tells() -> None:
    async with open_network(Identity(b"a" * 32), LOOPBACK) as node:
        store, told = node._host.get_peerstore(), [parse(f"/ip4/1.1.1.1/tcp/{port}") for port in range(1, 301)]
        store.add_addrs(to_id(PEER), told, 60)
        store.add_addrs(to_id(PEER), told[-1:], 60)
        kept = store.addrs(to_id(PEER))
        assert len(kept) == MAX_HEARD_ADDRESSES and kept[-1] == told[-1]
        assert peer_routing.MAX_DHT_MESSAGE_SIZE == provider_store.MAX_DHT_MESSAGE_SIZE == MAX_DHT_BYTES


async def test_of_what_a_peer_says_of_itself_no_more_is_kept_than_is_of_use() -> None:
    async with open_network(Identity(b"a" * 32), LOOPBACK) as node:
        store, peer_id = node._host.get_peerstore(), to_id(PEER)
        raw = b"\x04\x08\x08\x08\x08\x06\x12\x34"
        path = raw + b"\x90\x03" + b"\x80\x7d" + b"/" * 16_000  # /ip4/8.8.8.8/tcp/4660/unix/...
        told = Identify(
            listen_addrs=[path, raw, b"nonsense"],
            protocols=["/ours/1", "x" * (MAX_SPOKEN_CHARS + 1), *(f"/{at}" for at in range(100_000))],
        )
        for _ in range(2):
            await update.update_peerstore_from_identify(store, peer_id, told)
            kept = store.get_protocols(peer_id)
            assert kept[:2] == ["/ours/1", "/0"] and len(kept) < MAX_SPOKEN
            assert [str(each) for each in store.addrs(peer_id)] == ["/ip4/8.8.8.8/tcp/4660"]
        assert update._safe_parse_multiaddr_cached(path) is None  # before it is kept anywhere
        store.add_protocols(peer_id, [f"/{at}" for at in range(1000, 2000)])
        assert len(store.get_protocols(peer_id)) == MAX_SPOKEN


def test_records_of_providers_are_bounded_by_keys_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "MAX_PROVIDED_KEYS", 8)
    monkeypatch.setattr(host, "MAX_PROVIDED", 20)
    kept, record = host.BoundedRecords(), provider_store.ProviderRecord(LibP2pInfo(to_id(PEER), []))
    for key in range(10):
        kept[bytes([key])] = {}
        kept[bytes([key])]["ann"] = kept[bytes([key])]["ann"] = record
    assert [*map(ord, kept)] == [2, 3, 4, 5, 6, 7, 8, 9]
    for _ in range(100):  # one that comes and goes fills nothing
        kept[b"\2"]["bob"] = record
        del kept[b"\2"]["bob"]
    assert len(kept) == 8
    for number in range(12):
        kept[b"\5"][str(number)] = record
    assert len(kept[b"\5"]) == 13 and sum(map(len, kept.values())) == 20
    kept[b"\5"]["one more"] = record
    assert [*map(ord, kept)] == [5, 6, 7, 8, 9] and sum(map(len, kept.values())) == 18


HASH = "uEiAkH5a4DPGKUuOBjYw0CgwjLa2R_RF71v86aVxlqdKNOQ"
TOLD = [
    "/ip4/8.8.8.8/tcp/4660",
    f"/ip6/2001:db8::1/tcp/1/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
    "/dns4/host.example/tcp/443/tls/sni/host.example/http",
    "/dnsaddr/bootstrap.example",
    f"/ip4/8.8.8.8/udp/1/quic-v1/webtransport/certhash/{HASH}/certhash/{HASH}/p2p/{PEER}",
    f"/ip4/8.8.8.8/udp/1/webrtc-direct/certhash/{HASH}",
    "/ip4/8.8.8.8/tcp/1/wss",
]


@given(st.sampled_from(TOLD), st.binary(max_size=3), st.integers(0, 200), st.integers(0, 200))
def test_what_an_address_is_made_of_is_read_without_writing_it(text: str, noise: bytes, at: int, until: int) -> None:
    whole = Multiaddr(text)
    assert parts_of(whole) == [part.code for part in whole.protocols()] and is_sound(whole)
    data = whole.to_bytes()
    changed = Multiaddr(data[:at] + noise + data[until:])
    if is_sound(changed):
        assert parts_of(changed) == [part.code for part in changed.protocols()] and str(changed)


def test_what_nobody_dials_here_is_kept_for_others_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    dear = [Multiaddr(f"/ip4/10.0.0.{n}/udp/1/quic-v1/webtransport" + f"/certhash/{HASH}" * 6) for n in range(64)]
    dear += [Multiaddr(f"/ip4/10.0.1.{n}/tcp/1" + f"/certhash/{HASH}" * 6) for n in range(64)]
    good = Multiaddr(TOLD[0])
    written: list[Any] = []
    monkeypatch.setattr(addresses, "text_of", lambda address: (written.append(address), str(address))[1])
    assert all(map(is_sound, dear)) and not written
    assert to_texts([*dear, good]) == [TOLD[0]] and written == [good]
    assert not is_sound(Multiaddr("/ip4/1.1.1.1/tcp/1" + "/ws" * MAX_PARTS))


def test_of_what_peers_tell_only_what_can_be_dialled_or_asked_over_http_is_known() -> None:
    told = [*TOLD, "/ip4/8.8.8.8/tcp/443/tls", "/ip4/8.8.8.8/tcp/443/tls/ws", "/dns/host.example/tcp/0"]
    assert to_texts(map(Multiaddr, told)) == to_texts(told) == [TOLD[0], TOLD[1].removesuffix(f"/p2p/{PEER}"), TOLD[2]]


async def test_a_peer_that_says_anew_all_the_time_where_it_is_is_heard_at_first() -> None:
    async with (
        open_network(Identity(b"a" * 32), LOOPBACK) as node,
        open_network(Identity(b"b" * 32), LOOPBACK) as other,
    ):
        await other.connect(PeerInfo.parse(node.addresses()[0]))
        for number in range(1, MAX_PUSHES + 5):
            told = Identify(listen_addrs=[Multiaddr(f"/ip4/8.8.8.8/tcp/{number}").to_bytes()]).SerializeToString()
            with suppress(StreamBroken, DialFailed):  # those beyond are reset, at once
                stream = await other.open_stream(node.peer_id, [str(ID_PUSH)])
                await write_frame(stream, told, 1000)
                await stream.finish()
                await stream.read(1)
        assert node.peer_addresses(other.peer_id)[0] == f"/ip4/8.8.8.8/tcp/{MAX_PUSHES}"


DAMAGED = [
    b"nonsense",
    b"\x04\x08\x08\x08\x08\x06",
    b"\x36\x02\xff\xfe\x06\x00\x01",
    b"",
    b"\xff" * 10,
]


@pytest.mark.parametrize("damaged", DAMAGED)
async def test_damaged_addresses_that_somebody_tells_of_a_peer_do_not_keep_this_node_from_it(damaged: bytes) -> None:
    good = parse("/ip4/8.8.8.8/tcp/4660")
    assert to_texts([Multiaddr(damaged), good]) == ["/ip4/8.8.8.8/tcp/4660"]
    async with open_network(Identity(b"a" * 32), LOOPBACK) as node:
        node._host.get_peerstore().add_addrs(to_id(PEER), [Multiaddr(damaged), good], 60)
        assert node.peer_addresses(PEER) == ["/ip4/8.8.8.8/tcp/4660"]
        assert node._host.get_peerstore().addrs(to_id(PEER)) == [good]


async def test_what_others_tell_of_a_peer_does_not_push_out_where_it_says_that_it_is() -> None:
    async with (
        open_network(Identity(b"a" * 32), LOOPBACK) as node,
        open_network(Identity(b"b" * 32), LOOPBACK) as other,
    ):
        await node.connect(PeerInfo.parse(other.addresses()[0]))
        own, store = PeerInfo.parse(other.addresses()[0]).addresses[0], node._host.get_peerstore()
        peer_id = to_id(other.peer_id)
        store.clear_addrs(peer_id)  # so identify begins
        store.add_addrs(peer_id, [parse(own)], 60)
        for octet in range(5):
            store.add_addrs(peer_id, [parse(f"/ip4/1.1.1.{octet}/tcp/{port}") for port in range(1, 65)], 60)
        assert str(store.addrs(peer_id)[0]) == own
        assert (
            str(store.addrs(peer_id)[-1]) == "/ip4/1.1.1.4/tcp/64" and len(store.addrs(peer_id)) == MAX_HEARD_ADDRESSES
        )
        assert node.peer_addresses(other.peer_id)[0] == own


LEAN = """
import sys
from protocols.net_libp2p.lean import LeftOut, lean_imports

with lean_imports():
    from libp2p.transport.quic.transport import QUICTransport
assert not isinstance(1, QUICTransport)
assert "libp2p.transport.quic.transport" not in sys.modules
try:
    QUICTransport()
except LeftOut as error:
    print(error)
"""


def test_a_part_that_is_left_out_says_so_when_it_is_used_and_is_no_part_of_anything() -> None:
    """In a process of its own: in this one a test may have imported the whole."""
    done = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, cwd=ROOT, timeout=60, check=True)
    assert b"libp2p.transport.quic.transport.QUICTransport was called" in done.stdout


async def test_a_taken_port_is_replaced_by_a_free_one() -> None:
    async with open_network(Identity.generate(), LOOPBACK) as first:
        taken = first.addresses()[0].rpartition("/p2p/")[0]
        async with open_network(Identity.generate(), NetConfig(listen=(taken,), mdns=False)) as second:
            assert second.addresses()[0].rpartition("/p2p/")[0] != taken
            await second.connect(PeerInfo.parse(first.addresses()[0]))


@pytest.mark.parametrize("address", ["/ip4/203.0.113.9/tcp/0", "/ip4/127.0.0.1/udp/1", "/ip4/999.1.1.1/tcp/1", "x"])
async def test_an_address_that_cannot_be_listened_on_is_an_error_of_ours(address: str) -> None:
    with pytest.raises(Local, match="cannot listen on"):
        async with open_network(Identity.generate(), NetConfig(listen=(address,), mdns=False)):
            pass


async def test_a_host_name_is_resolved() -> None:
    async with (
        open_network(Identity.generate(), LOOPBACK) as first,
        open_network(Identity.generate(), LOOPBACK) as second,
    ):
        by_name = first.addresses()[0].replace("/ip4/127.0.0.1/", "/dns4/localhost/")
        with trio.fail_after(10):
            await second.connect(PeerInfo.parse(by_name))
        assert second.peers() == [first.peer_id]


async def test_where_a_peer_is_now_is_known_after_it_moved_and_came_back() -> None:
    moving = Identity.generate()
    async with open_network(Identity.generate(), LOOPBACK) as node:
        for _ in range(2):  # each time on another port
            async with open_network(moving, LOOPBACK) as away:
                await away.connect(PeerInfo.parse(node.addresses()[0]))
                here = away.addresses()[0].rpartition("/p2p/")[0]
                with trio.fail_after(10):
                    while node.peer_addresses(moving.peer_id)[:1] != [here]:
                        await trio.sleep(0.01)


async def test_a_name_that_does_not_exist_is_a_failed_dial() -> None:
    from protocols.errors import DialFailed

    async with open_network(Identity.generate(), LOOPBACK) as node:
        with trio.fail_after(15), pytest.raises(DialFailed):
            await node.connect(PeerInfo(PEER, ("/dns4/no-such-host.invalid/tcp/1",)))


async def test_streams_that_come_and_go_leave_nothing_behind() -> None:
    async def one_byte(stream: Stream) -> None:
        await stream.write(b"x")

    async with open_network(Identity.generate(), LOOPBACK) as a, open_network(Identity.generate(), LOOPBACK) as b:
        b.serve("/x", one_byte)
        await a.connect(PeerInfo.parse(b.addresses()[0]))
        for _ in range(300):
            stream = await a.open_stream(b.peer_id, ["/x"])
            assert await stream.read(10) == b"x"
            await stream.aclose()
        with trio.fail_after(10):
            for node in (a, b):
                muxed = node._swarm.get_connections()[0].muxed_conn
                while len(muxed.streams) > 8:  # identify and gossip keep a few
                    await trio.sleep(0.01)


async def test_strangers_never_take_the_places_of_protected_peers_and_of_those_whom_we_dial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gater, "MAX_STRANGERS", 1)
    async with AsyncExitStack() as stack:
        node, first, second, friend, dialled = [
            await stack.enter_async_context(open_network(Identity.generate(), LOOPBACK)) for _ in range(5)
        ]
        here = PeerInfo.parse(node.addresses()[0])
        node.protect([friend.peer_id])
        with trio.fail_after(20):
            async with node.watch_peers() as changes:
                for stranger in (first, second):
                    await stranger.connect(here)
                while second.peers() or node.peers() != [first.peer_id]:
                    await trio.sleep(0.01)
                await friend.connect(here)
                await node.connect(PeerInfo.parse(dialled.addresses()[0]))
                told = [await changes.receive() for _ in range(3)]
        assert told == [PeerChange(peer.peer_id, True) for peer in (first, friend, dialled)]
        node.protect([first.peer_id])
        with trio.fail_after(20):
            await node.disconnect(friend.peer_id)
            await second.connect(here)
            while second.peer_id not in node.peers():
                await trio.sleep(0.01)
        assert set(node.peers()) == {first.peer_id, second.peer_id, dialled.peer_id}


async def test_what_strangers_take_up_together_holds_up_strangers_and_no_friend() -> None:
    async with AsyncExitStack() as stack:
        node, friend, *strangers = [
            await stack.enter_async_context(open_network(Identity.generate(), LOOPBACK)) for _ in range(4)
        ]
        node.protect([friend.peer_id])
        for peer in (friend, *strangers):
            await peer.connect(PeerInfo.parse(node.addresses()[0]))
        with trio.fail_after(20):
            while len(node.connections()) < 3:
                await trio.sleep(0.01)
        muxers = {to_peer(each.muxed_conn.peer_id): each.muxed_conn for each in node._swarm.get_connections()}

        async def resting() -> set[PeerId]:
            found = set()
            for peer, muxer in muxers.items():
                for rest in (muxer.rest, partial(node.rest, peer)):
                    with trio.move_on_after(0) as at_once:
                        await rest()
                    found |= {peer} if at_once.cancelled_caught else set()
            return found

        assert not await resting()
        node.charge(strangers[0].peer_id, 60.0)
        assert await resting() == {each.peer_id for each in strangers}
        node.protect([friend.peer_id, strangers[0].peer_id])
        assert await resting() == {strangers[1].peer_id}


async def test_who_breaks_the_rules_of_a_connection_answers_for_the_place_that_it_came_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def untold(notifee: Notifee, swarm: object, connection: object) -> None:
        """That a connection is over may be told seconds later; meanwhile its peer comes back."""

    monkeypatch.setattr(Notifee, "disconnected", untold)
    where = network.address_of  # loopback is no place of the public internet
    monkeypatch.setattr(network, "places_of", lambda connection: tuple(where(connection).split(":")[:-1]))
    monkeypatch.setattr(conduct, "PLACE_LIMITS", (1,))
    monkeypatch.setitem(conduct.BREACHES, "bad_connection", 2 * conduct.MAX_POINTS)
    async with AsyncExitStack() as stack:
        node, breaker = [await stack.enter_async_context(open_network(Identity.generate(), LOOPBACK)) for _ in range(2)]
        await breaker.connect(PeerInfo.parse(node.addresses()[0]))
        muxed = breaker._swarm.get_connections()[0].muxed_conn
        with trio.fail_after(20):
            muxed._core._control += b"no frame at all"
            muxed._work.set()
            while not node.conduct.offenders(trio.current_time()):
                await trio.sleep(0.01)
        assert list(node.conduct.closed(trio.current_time())) == ["127.0.0.1"]


@pytest.mark.parametrize(("kad_protocol", "is_dialled"), [(PUBLIC_DHT, False), (NetConfig.kad_protocol, True)])
async def test_on_the_public_dht_nobody_sends_this_node_to_private_addresses(
    kad_protocol: str, *, is_dialled: bool
) -> None:
    config = NetConfig(listen=LOOPBACK.listen, mdns=False, kad_protocol=kad_protocol)
    async with open_network(Identity.generate(), LOOPBACK) as other, open_network(Identity.generate(), config) as node:
        there = PeerInfo.parse(other.addresses()[0])
        told = [parse(text) for text in there.addresses]
        node._host.get_peerstore().add_addrs(to_id(other.peer_id), told, 60)
        with trio.fail_after(10), suppress(Exception):
            await node._host.new_stream(to_id(other.peer_id), [kad_protocol])
        assert bool(node.peers()) == is_dialled
        await node.connect(there)  # who is named here is reached
        assert node.peers() == [other.peer_id]


def test_wildcards_become_the_addresses_of_this_machine_loopback_last() -> None:
    found = [str(address) for address in expand([parse("/ip4/0.0.0.0/tcp/4701"), parse("/ip4/10.0.0.1/tcp/1")])]
    assert "/ip4/127.0.0.1/tcp/4701" in found
    assert found[-1] == "/ip4/10.0.0.1/tcp/1"
    assert not any("0.0.0.0" in address for address in found)


def test_a_txt_record_carries_all_addresses_of_one_peer() -> None:
    addresses = [f"/ip4/192.0.2.1/tcp/4701/p2p/{PEER}", f"/ip6/2001:db8::1/tcp/4701/p2p/{PEER}"]
    record = write_txt(addresses)
    assert record[1:9] == b"dnsaddr="
    assert read_txt(record) == PeerInfo(PEER, ("/ip4/192.0.2.1/tcp/4701", "/ip6/2001:db8::1/tcp/4701"))
    for end in range(len(record)):
        assert read_txt(record[:end]) in (None, PeerInfo(PEER, ("/ip4/192.0.2.1/tcp/4701",)))


def test_a_txt_record_of_two_peers_or_of_none_is_ignored() -> None:
    two = write_txt([f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}", f"/ip4/192.0.2.1/tcp/1/p2p/{OTHER}"])
    assert read_txt(two) is None
    assert read_txt(b"") is None
    assert read_txt(b"\x07dnsaddr") is None
    assert read_txt(bytes(MAX_TXT_STRINGS) + write_txt([f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}"])) is None


@given(st.binary(max_size=600))
def test_no_txt_record_raises(record: bytes) -> None:
    read_txt(record)


async def test_a_peer_of_the_dht_that_answers_no_ping_holds_up_no_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its bucket is full, all who are met wait until it is known whether the oldest is still there."""
    monkeypatch.setattr(host, "PING_S", 0.1)
    async with AsyncExitStack() as stack:
        node, silent, other = [
            await stack.enter_async_context(open_network(Identity.generate(), LOOPBACK)) for _ in range(3)
        ]

        async def say_nothing(_stream: Stream) -> None:
            await trio.sleep_forever()

        silent.serve("/ipfs/ping/1.0.0", say_nothing)
        for peer in (silent, other):
            await node.connect(PeerInfo(peer.peer_id, (peer.addresses()[0].split("/p2p")[0],)))
        bucket = KBucket(node._host, bucket_size=1)
        met = [LibP2pInfo(to_id(peer.peer_id), [Multiaddr(peer.addresses()[0])]) for peer in (silent, other)]
        with trio.fail_after(20):
            assert [await bucket.add_peer(info) for info in met] == [True, True]
        assert list(bucket.peers) == [to_id(other.peer_id)]


async def test_what_was_being_provided_when_the_time_was_up_is_not_provided_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """libp2p would go on with it by itself, and ask nobody whether it may still be told of."""
    looking = trio.Event()

    async def look_for_ever(_key: bytes) -> None:
        looking.set()
        await trio.sleep_forever()

    async with open_network(Identity.generate(), LOOPBACK) as node:
        monkeypatch.setattr(node._dht.peer_routing, "find_closest_peers_network", look_for_ever)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.provide, Cid.of(b"given up"))
                await looking.wait()
                nursery.cancel_scope.cancel()
        assert not node._dht.provider_store.providing_keys


@pytest.mark.e2e
async def test_two_processes_find_each_other_by_mdns() -> None:
    script = """
import trio
from protocols.net_libp2p import NetConfig, open_network
from storage.keys import Identity

async def main():
    async with open_network(Identity.generate(), NetConfig(listen=("/ip4/0.0.0.0/tcp/0",))):
        await trio.sleep(30)

trio.run(main)
"""
    process = await trio.lowlevel.open_process([sys.executable, "-c", script], cwd=ROOT)
    try:
        config = NetConfig(listen=("/ip4/0.0.0.0/tcp/0",))
        async with open_network(Identity.generate(), config) as node, node.watch_peers() as changes:
            with trio.move_on_after(20) as waited:
                assert (await changes.receive()).is_connected
        if waited.cancelled_caught:
            pytest.skip("no multicast on this machine")
    finally:
        process.kill()
        await process.wait()
