"""Relays in a node: who is asked, when again, and that one behind a relay is found by those who know only the relay."""

from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from daemon import relaying
from daemon.relaying import (
    DENIED_S,
    FAILED_S,
    REACHED_S,
    REFUSED_S,
    RELAYS,
    Reservations,
    keep_reserved,
    serve_as_relay,
)
from protocols.autonat.outlook import Outlook, Reach
from protocols.errors import ProtocolRefused, RelayRefused
from protocols.net import Link, PeerInfo
from protocols.net_libp2p import NetConfig, open_network
from protocols.relay.circuits import STRANGER
from protocols.relay.shell import reserve
from storage.catalog import Catalog
from storage.keys import Identity, PeerId

NOW = 1_800_000_000.0
LOOPBACK = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
A, B, C = PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(3)]
ALL = frozenset(PEERS)


def link(peer: PeerId, *, is_dialled: bool = True, is_relayed: bool = False, address: str = "10.0.0.1:1") -> Link:
    return Link(peer, address, is_dialled, 1, 0, 0, is_relayed)


def test_trusted_peers_that_we_dialled_are_asked_up_to_enough_and_again_at_half_time() -> None:
    core = Reservations()
    links = [link(A), link(B, is_relayed=True), link(C, is_dialled=False)]
    assert core.due(links, ALL, 0.0) == [A]
    assert core.due(links, frozenset(), 0.0) == []
    core.held(A, 3600, 0.0)
    assert core.due(links, ALL, 1799.0) == []
    assert core.due(links, ALL, 1800.0) == [A]
    core.held(A, 3600, 1800.0)
    both = [link(A), link(B), link(C)]
    assert core.due(both, ALL, 1801.0) == [B] and RELAYS == 2
    assert core.due([], ALL, 1802.0) == []
    assert core.due([link(A)], ALL, 1803.0) == [A]  # the connection was lost, and the reservation with it


def test_a_relay_that_was_gone_for_a_moment_is_asked_again() -> None:
    core = Reservations()
    core.held(A, 3600, 0.0)
    core.keep([A])
    assert core.due([link(A)], ALL, 1.0) == []
    core.keep([])
    assert core.due([link(A)], ALL, 2.0) == [A]


def test_who_refused_is_left_alone_for_longer_than_who_failed() -> None:
    core = Reservations()
    core.failed(A, ProtocolRefused("no relay"), 0.0)
    core.failed(B, None, 0.0)
    links = [link(A), link(B)]
    assert core.due(links, ALL, FAILED_S - 1) == []
    assert core.due(links, ALL, FAILED_S) == [B]
    assert core.due(links, ALL, REFUSED_S) == [A, B]


def test_who_does_not_trust_this_node_yet_is_asked_again_soon_and_one_that_is_full_later() -> None:
    core = Reservations()
    core.failed(A, RelayRefused("permission denied", is_denied=True), 0.0)
    core.failed(B, RelayRefused("no place"), 0.0)
    assert DENIED_S < REFUSED_S
    assert core.due([link(A), link(B)], ALL, DENIED_S - 1) == []
    assert core.due([link(A), link(B)], ALL, DENIED_S) == [A]
    core.held(A, 3600, DENIED_S)
    assert core.due([link(A), link(B)], ALL, REFUSED_S) == [B]


def test_why_there_is_no_relay_is_told_while_a_relay_refuses_or_nobody_can_dial_this_node() -> None:
    core = Reservations()
    assert core.why_none(0.0) is None
    assert "network.relay to server" in (core.why_none(0.0, Reach.NO) or "")
    core.failed(B, ProtocolRefused("other software"), 0.0)  # no relay: neither told nor waited for
    assert core.why_none(0.0) is None
    core.failed(A, RelayRefused("covey peer trust ME", is_denied=True), 0.0)
    core.due([link(A)], ALL, 1.0)
    assert core.why_none(1.0) == core.why_none(1.0, Reach.NO) == "covey peer trust ME"
    assert core.why_none(1.0, Reach.YES) is None
    core.held(A, 3600, 2.0)
    assert core.why_none(2.0, Reach.NO) is None
    core.failed(A, RelayRefused("covey peer trust ME", is_denied=True), 3.0)
    core.due([], ALL, 4.0)  # it went away, and what it said with it
    assert core.why_none(4.0) is None


def test_a_node_that_was_dialled_from_the_internet_needs_no_relay() -> None:
    core = Reservations()
    near = link(B, is_dialled=False, address="192.168.1.7:5")
    assert core.due([link(A), near], ALL, 0.0) == [A]
    far = link(C, is_dialled=False, address="[2a00:1450:4001::1]:5")
    assert core.due([link(A), far], ALL, 1.0) == []
    assert core.due([link(A)], ALL, REACHED_S) == []
    assert core.due([link(A), link(C, is_dialled=False, address="")], ALL, REACHED_S + 1) == [A]


def test_who_hears_that_it_can_be_dialled_needs_no_relay_and_who_hears_otherwise_needs_one_all_the_same() -> None:
    core = Reservations()
    assert core.due([link(A)], ALL, 0.0, Reach.YES) == []
    far = link(C, is_dialled=False, address="8.8.8.8:5")
    assert core.due([link(A), far], ALL, 0.0) == []
    assert core.due([link(A), far], ALL, 0.0, Reach.NO) == [A]
    core = Reservations()
    assert core.due([link(A), far._replace(is_punched=True)], ALL, 0.0) == [A]


ACTS = st.tuples(st.sampled_from(["held", "refused", "failed"]), st.integers(0, 2), st.floats(0, 4000))


@given(st.lists(ACTS, max_size=40))
def test_never_more_are_held_than_enough_and_nobody_is_asked_in_its_rest(acts: list[tuple[str, int, float]]) -> None:
    core = Reservations()
    now_s = 0.0
    rest_s: dict[PeerId, float] = {}
    held: set[PeerId] = set()
    for act, _, wait_s in acts:
        now_s += wait_s
        due = core.due([link(peer) for peer in PEERS], ALL, now_s)
        assert len(held | set(due)) <= RELAYS and len(set(due)) == len(due)
        for peer in due:
            assert rest_s.get(peer, 0.0) <= now_s
            if act == "held":
                core.held(peer, 3600, now_s)
                held.add(peer)
            else:
                core.failed(peer, RelayRefused("no") if act == "refused" else None, now_s)
                held.discard(peer)
                rest_s[peer] = now_s + (REFUSED_S if act == "refused" else FAILED_S)


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not is_so():
            await trio.sleep(0.02)


async def test_a_node_reserves_at_a_peer_that_it_trusts_and_that_trusts_it_and_others_reach_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "LOOK_S", 0.2)
    async with AsyncExitStack() as stack:
        relay, node, other = [
            await stack.enter_async_context(open_network(Identity.generate(), LOOPBACK)) for _ in range(3)
        ]
        opened = [stack.enter_context(closing(Catalog.open(tmp_path / name))) for name in ("relay", "node")]
        of_relay, of_node = (catalog.peers for catalog in opened)
        for book, friend in ((of_relay, node), (of_relay, other), (of_node, relay)):
            book.trust(friend.peer_id, ["adapters"], NOW)
        for wish in ("off", "client"):
            serve_as_relay(wish, relay, of_relay, lambda: NOW)
        await node.connect(PeerInfo.parse(relay.addresses()[0]))
        with pytest.raises(ProtocolRefused):
            await node.reserve(relay.peer_id, NOW)
        serve_as_relay("server", relay, of_relay, lambda: NOW)
        async with trio.open_nursery() as nursery:
            await nursery.start(keep_reserved, node, of_node, lambda: NOW, Outlook(), Reservations())
            await until(lambda: len(node.addresses()) == 2)
            await other.connect(PeerInfo.parse(node.addresses()[1]))
            await until(lambda: other.peer_id in node.peers())
            await node.disconnect(relay.peer_id)
            await until(lambda: node.peer_id not in relay.peers() and not node.relays())
            await node.connect(PeerInfo.parse(relay.addresses()[0]))
            await until(lambda: node.relays() == [relay.peer_id])
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("wish", ["server", "public"])
async def test_strangers_are_served_where_the_settings_say_so_and_get_little(tmp_path: Path, wish: str) -> None:
    async with AsyncExitStack() as stack:
        relay, node = [await stack.enter_async_context(open_network(Identity.generate(), LOOPBACK)) for _ in range(2)]
        catalog = stack.enter_context(closing(Catalog.open(tmp_path / "catalog")))
        serve_as_relay(wish, relay, catalog.peers, lambda: NOW)
        await node.connect(PeerInfo.parse(relay.addresses()[0]))
        if wish == "public":
            assert (await reserve(node, relay.peer_id, NOW)).limit == STRANGER.limit
        else:
            with pytest.raises(RelayRefused, match="permission denied") as refused:
                await reserve(node, relay.peer_id, NOW)
            assert refused.value.is_denied
