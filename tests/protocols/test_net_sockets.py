"""Dials from the port that listens, dials beside all connections, and what others say of where this node is."""

import math
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
import trio
import trio.testing

from protocols import strangers
from protocols.endpoints import Endpoint
from protocols.errors import DialFailed
from protocols.net import PeerInfo, Stream
from protocols.net_libp2p import NetConfig, dialling, gater, meeting, open_network, sockets
from protocols.net_libp2p.addresses import SystemResolver, parse, to_id
from protocols.net_libp2p.meeting import Meetings
from protocols.net_libp2p.network import LibP2pNetwork
from protocols.net_libp2p.observed import MAX_OBSERVED, MAX_OBSERVERS, Observed
from protocols.net_libp2p.sockets import Sockets
from protocols.ping import ping
from protocols.pnet import FlockKey
from storage.keys import Identity


@pytest.fixture(params=[None, FlockKey(bytes(32))], ids=["open", "private"])
async def two(request: pytest.FixtureRequest) -> AsyncIterator[list[LibP2pNetwork]]:
    config = NetConfig(("/ip4/0.0.0.0/tcp/0",), mdns=False, flock_key=request.param)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_network(Identity.generate(), config)) for _ in range(2)]


def near(node: LibP2pNetwork) -> Endpoint:
    return Endpoint("127.0.0.1", int(node.addresses()[0].split("/")[4]))


async def test_a_dial_leaves_from_the_port_that_listens_and_a_second_node_finds_that_port_taken(
    two: list[LibP2pNetwork],
) -> None:
    one, other = two
    stream = await one._sockets.dial_shared(near(other))
    assert stream is not None
    assert stream.socket.getsockname() == ("127.0.0.1", near(one).port)
    assert await one._sockets.dial_shared(near(other)) is None  # there is such a connection already
    await stream.aclose()
    taken = f"/ip4/0.0.0.0/tcp/{near(one).port}"
    async with open_network(Identity.generate(), NetConfig((taken,), mdns=False)) as third:
        assert near(third).port != near(one).port
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            plain.bind(("0.0.0.0", near(one).port))


def n_taken() -> int:
    """How many tasks hold a socket that came, at whatever node."""
    tasks, found = [trio.lowlevel.current_root_task()], 0
    for task in tasks:
        assert task is not None
        found += task.name.endswith("_run_handler")  # trio's, of those that `serve_listeners` starts
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


async def until_linked(node: LibP2pNetwork, n_links: int) -> None:
    while len(node.connections()) != n_links:
        await trio.sleep(0.01)


async def test_a_connection_that_came_gives_its_place_back_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """And stays over: nobody dials anew whom the node just left, though they were speaking."""
    monkeypatch.setattr(gater, "MIN_DIALLED", gater.MAX_CONNECTIONS - 2)  # two may come at a time
    config = NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)
    async with AsyncExitStack() as stack:
        node, *others = [await stack.enter_async_context(open_network(Identity.generate(), config)) for _ in range(4)]
        info = PeerInfo.parse(node.addresses()[0])
        with trio.fail_after(20):
            for n_links, other in enumerate(others[:2], 1):
                await other.connect(info)
                await until_linked(node, n_links)
            await others[2].connect(info)
            await until_linked(others[2], 0)
            await until_linked(node, 2)
            for _ in range(5):
                await others[1].disconnect(info.peer)
                await until_linked(node, 1)
                await others[1].connect(info)
                await until_linked(node, 2)
            while n_taken() != 2:
                await trio.sleep(0.01)


async def test_strangers_that_this_node_dialled_leave_places_to_friends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gater, "MAX_OF_STRANGERS", 2)
    config = NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)
    async with AsyncExitStack() as stack:
        node, friend, *others = [
            await stack.enter_async_context(open_network(Identity.generate(), config)) for _ in range(6)
        ]
        node.protect([friend.peer_id])
        with trio.fail_after(20):
            for other in (friend, others[0], others[1]):
                await node.connect(PeerInfo.parse(other.addresses()[0]))
            await ping(node, others[0].peer_id, 1)  # so the other one is longer unused
            await node.connect(PeerInfo.parse(others[2].addresses()[0]))
            while others[1].peer_id in node.peers():
                await trio.sleep(0.01)
            await others[3].connect(PeerInfo.parse(node.addresses()[0]))  # who comes takes such a place, too
            while others[0].peer_id in node.peers():
                await trio.sleep(0.01)
        assert set(node.peers()) == {friend.peer_id, others[2].peer_id, others[3].peer_id}


async def test_a_peer_has_so_many_connections_and_those_that_are_denied_cost_no_place(
    two: list[LibP2pNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gater, "MAX_OF_PEER", 2)
    one, other = two
    with trio.fail_after(20):
        for _ in range(6):
            await other._swarm.dial_addr(parse(near(one).text), to_id(one.peer_id))
        while len(one.connections()) > 2:
            await trio.sleep(0.01)
        assert other.peer_id in one.peers()
        await other.disconnect(one.peer_id)
        while one.connections():
            await trio.sleep(0.01)
    assert one._swarm._resource_manager is None  # which would have lost four places for ever


async def test_who_connects_and_says_nothing_gives_way_and_who_does_so_often_is_not_let_in(
    two: list[LibP2pNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    places = iter(["192.0.2.0/24"] * 9 + ["honest"])
    monkeypatch.setattr(sockets, "_place_of", lambda stream: next(places))
    monkeypatch.setattr(strangers, "MAX_UNPROVEN", 4)
    monkeypatch.setattr(strangers, "MAX_BEGUN", 8)
    closed, is_news = list[trio.SocketStream](), trio.Event()

    async def stay(task_status: trio.TaskStatus[None]) -> None:
        nonlocal is_news
        async with await trio.open_tcp_stream("127.0.0.1", near(one).port) as silent:
            task_status.started()
            with suppress(trio.BrokenResourceError):
                while await silent.receive_some(100):
                    pass
        closed.append(silent)
        is_news.set()
        is_news = trio.Event()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(9):
                await nursery.start(stay)
            while len(closed) < 5:  # there is room for four, and the ninth came too soon
                await is_news.wait()
            await other.connect(PeerInfo(one.peer_id, (near(one).text,)))
            while len(closed) < 6:  # and one made room
                await is_news.wait()
            assert other.peer_id in one.peers()
            nursery.cancel_scope.cancel()
    assert len(closed) == 6


async def test_friends_find_a_place_beside_strangers_and_those_who_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gater, "MIN_DIALLED", gater.MAX_CONNECTIONS - 2)
    monkeypatch.setattr(gater, "MAX_STRANGERS", 1)
    config = NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)
    async with AsyncExitStack() as stack:
        node, stranger, friend = [
            await stack.enter_async_context(open_network(Identity.generate(), config)) for _ in range(3)
        ]
        node.protect([friend.peer_id])
        with trio.fail_after(10):
            await stranger.connect(PeerInfo.parse(node.addresses()[0]))
            for _ in range(8):
                await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", near(node).port))
            await friend.connect(PeerInfo.parse(node.addresses()[0]))
            while set(node.peers()) != {stranger.peer_id, friend.peer_id}:
                await trio.sleep(0.01)


async def test_a_probe_finds_the_peer_and_leaves_no_connection(two: list[LibP2pNetwork]) -> None:
    one, other = two
    with trio.fail_after(10):
        await one.probe(other.peer_id, near(other).text)
        with pytest.raises(DialFailed):
            await one.probe(Identity.generate().peer_id, near(other).text)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            with pytest.raises(DialFailed):
                await one.probe(other.peer_id, Endpoint(*silent.getsockname()).text)
    assert one.peers() == other.peers() == []


async def shout(stream: Stream) -> None:
    await stream.write((await stream.read(100)).upper())


async def joined() -> tuple[trio.SocketStream, trio.SocketStream]:
    """The two sockets of a connection in which, as far as they tell, nobody was called."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        stream = await trio.open_tcp_stream(*listener.socket.getsockname())
        return stream, await listener.accept()


async def test_who_came_by_itself_is_spoken_with_while_a_dial_of_it_leads_nowhere(
    two: list[LibP2pNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    other.serve("/shout", shout)
    monkeypatch.setattr(dialling, "DIAL_TIMEOUT_S", math.inf)
    with socket.socket() as silent, trio.fail_after(20):
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.connect, PeerInfo(other.peer_id, (Endpoint(*silent.getsockname()).text,)))
            await other.connect(PeerInfo(one.peer_id, (near(one).text,)))
            await until_linked(one, 1)
            stream = await one.open_stream(other.peer_id, ["/shout"])
            await stream.aclose()
            nursery.cancel_scope.cancel()


async def test_gossip_begins_anew_with_a_peer_that_is_here_again_before_its_end_is_told(
    two: list[LibP2pNetwork],
) -> None:
    one, other = two
    with trio.fail_after(10):
        await other.connect(PeerInfo(one.peer_id, (near(one).text,)))
        other.gossip.join("news")
        while not one.topic_peers("news"):  # then it has no more to say, by which it would begin anew
            await trio.sleep(0.01)
        one.gossip.went(other.peer_id)  # as it finds out by itself
        await other._swarm.dial_addr(parse(near(one).text), to_id(one.peer_id))
        while other.peer_id not in one.gossip.router.peers():
            await trio.sleep(0.01)


@pytest.mark.parametrize("is_expected", [True, False])
async def test_of_two_sockets_that_met_comes_a_connection_if_each_finds_whom_it_expects(
    two: list[LibP2pNetwork], is_expected: bool
) -> None:
    sockets = await joined()
    expected = [two[1].peer_id, two[0].peer_id if is_expected else Identity.generate().peer_id]
    made: dict[int, bool] = {}

    async def shake(number: int) -> None:
        meetings = Meetings(two[number], two[number]._swarm, two[number]._sockets)
        made[number] = await meetings._shake(expected[number], near(two[1]), sockets[number], number == 0)

    two[0].serve("/shout", shout)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake, 0)
            nursery.start_soon(shake, 1)
        if is_expected:
            stream = await two[1].open_stream(two[0].peer_id, ["/shout"])
            await stream.write(b"here")
            assert await stream.read(9) == b"HERE"
            await stream.aclose()
            assert made == {0: True, 1: True}
            links = [node.connections()[0] for node in two]
            assert [(link.is_dialled, link.is_punched, link.is_relayed) for link in links] == [
                (True, True, False),
                (False, True, False),
            ]
        else:
            assert not made[1]
            while two[0].peers() or two[1].peers():
                await trio.sleep(0.01)


async def test_who_meets_nobody_gives_up_and_who_is_there_already_is_not_dialled(
    two: list[LibP2pNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    monkeypatch.setattr(meeting, "MEET_S", 0.5)
    meetings = Meetings(one, one._swarm, one._sockets)
    with socket.socket() as silent, trio.fail_after(10):
        silent.bind(("127.0.0.1", 0))
        assert not await meetings.meet(other.peer_id, [Endpoint(*silent.getsockname())], True)
        assert not await meetings.meet(other.peer_id, [near(other)], False)  # both would wait to be called
        await one.connect(PeerInfo(other.peer_id, (near(other).text,)))
        assert await meetings.meet(other.peer_id, [Endpoint(*silent.getsockname())], True)
        assert [await meetings.meet(other.peer_id, [], True)] == [False]
    for _ in range(meeting.MINUTES_MEETINGS):
        await meetings.meet(other.peer_id, [near(other)], True)
    assert not await meetings.meet(other.peer_id, [near(other)], True)


class Conn:
    """As much of a connection as is looked at."""

    def __init__(self, number: int) -> None:
        from libp2p.connection_types import ConnectionType
        from libp2p.rcmgr import Direction

        self.direction = Direction.INBOUND
        self.muxed_conn = self
        self.peer_id = number
        self.type = ConnectionType.DIRECT

    def get_connection_type(self) -> object:
        return self.type


def test_of_what_peers_say_where_this_node_is_the_public_is_kept_and_most_count_first() -> None:
    from libp2p.connection_types import ConnectionType

    observed = Observed(Sockets())
    for number, text in enumerate(["/ip4/8.8.8.8/tcp/1", "/ip4/8.8.4.4/tcp/2", "/ip4/8.8.4.4/tcp/2"]):
        observed.record_observation(Conn(number), parse(text), [])
    assert observed.endpoints() == [Endpoint("8.8.4.4", 2), Endpoint("8.8.8.8", 1)]
    over = Conn(9)
    over.type = ConnectionType.RELAYED
    observed.record_observation(over, parse("/ip4/1.1.1.1/tcp/1"), [])
    for text in ("/ip4/10.0.0.1/tcp/1", "/ip4/1.1.1.1/udp/1/quic-v1", "/dns4/a.example/tcp/1"):
        observed.record_observation(Conn(9), parse(text), [])
    assert len(observed.endpoints()) == 2
    for number in range(3 * MAX_OBSERVERS):
        observed.record_observation(Conn(number), parse(f"/ip4/8.8.{number}.1/tcp/1"), [])
    assert len(observed.endpoints()) == MAX_OBSERVED and len(observed._seen) == MAX_OBSERVERS


async def test_a_node_on_loopback_alone_dials_from_other_ports() -> None:
    async with open_network(Identity.generate(), NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)) as node:
        assert await node._sockets.dial_shared(Endpoint("127.0.0.1", 9)) is None
        assert node._sockets.ports() == []
        assert node.observed_addresses() == []


async def test_who_does_not_listen_who_says_nothing_and_who_is_another_are_told_apart(
    two: list[LibP2pNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Identity.generate().peer_id
    with pytest.raises(DialFailed, match="another peer is there"):
        await two[0].connect(PeerInfo(peer, (near(two[1]).text,)))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"
        with pytest.raises(DialFailed, match=f"at {address}: Connection refused$"):
            await two[0].connect(PeerInfo(peer, (address,)))
        other.listen()
        monkeypatch.setattr(dialling, "DIAL_TIMEOUT_S", 0.5)
        with pytest.raises(DialFailed, match=f"at {address}: no answer within 0.5 s in the handshake"):
            await two[0].connect(PeerInfo(peer, (address,)))


async def test_a_reason_without_words_is_told_in_ours() -> None:
    class Swarm:
        psk = None

        async def dial_addr(self, _address: object, _peer: object) -> None:
            raise ConnectionError from trio.ClosedResourceError()

    with pytest.raises(DialFailed, match=r"at /ip4/127.0.0.1/tcp/9: it hung up$"):
        await dialling.dial(Swarm(), Identity.generate().peer_id, ["/ip4/127.0.0.1/tcp/9"], is_protected=False)


async def test_where_a_peer_comes_from_is_known_of_ipv6_as_well() -> None:
    """Its network counts against strangers, and answers for who breaks the protocols."""
    config = NetConfig(("/ip6/::1/tcp/0",), mdns=False)
    with trio.fail_after(30):
        async with open_network(Identity.generate(), config) as one, open_network(Identity.generate(), config) as other:
            here = one.addresses()[0].split("/p2p")[0]
            await other.connect(PeerInfo(one.peer_id, (here,)))
            assert [link.address for link in other.connections()] == [f"[::1]:{here.split('/')[4]}"]
            assert [link.address.rpartition(":")[0] for link in one.connections()] == ["[::1]"]


async def test_names_that_nobody_answers_for_keep_no_other_work_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup goes on in its thread when nobody waits for it any more; peers may tell of any number of names."""
    is_over = threading.Event()

    def look_up(*asked: object) -> list[object]:
        if any(asked[5:]):
            raise socket.gaierror(socket.EAI_NONAME, "no number")
        is_over.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(SystemResolver().resolve, parse(f"/dns4/{number}.example/tcp/1"))
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            await trio.to_thread.run_sync(bool)
    finally:
        is_over.set()


async def test_names_that_strangers_tell_keep_none_of_a_protected_peer_waiting(
    two: list[LibP2pNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, friend = two
    one.protect([friend.peer_id])
    is_over, actual = threading.Event(), socket.getaddrinfo

    def look_up(host: str, *asked: Any) -> list[Any]:
        if "stranger" not in host:
            return actual(host.replace("friend.example", "127.0.0.1"), *asked)
        is_over.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(dialling, "DIAL_TIMEOUT_S", math.inf)
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    peer = Identity.generate().peer_id
                    nursery.start_soon(one.connect, PeerInfo(peer, (f"/dns4/{number}.stranger.example/tcp/1",)))
                await trio.testing.wait_all_tasks_blocked()
                await one.connect(PeerInfo(friend.peer_id, (f"/dns4/friend.example/tcp/{near(friend).port}",)))
                nursery.cancel_scope.cancel()
    finally:
        is_over.set()
