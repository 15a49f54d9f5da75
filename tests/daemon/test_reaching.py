"""A node finds out whether others can dial it: it asks, believes enough of them, and tells."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.reaching import keep_asking, serve_dialbacks
from protocols.autonat.outlook import Outlook, Reach
from protocols.autonat.wire import PROTOCOL
from protocols.errors import DialFailed, ProtocolRefused
from protocols.net import Link, PeerInfo
from simulations.net import SimWorld
from storage.catalog import Catalog
from storage.keys import Identity, PeerId

ME, *OTHERS = (Identity(bytes([number]) * 32).peer_id for number in range(5))


class Feed:
    def __init__(self) -> None:
        self.noted: list[tuple[str, Any]] = []

    def note(self, kind: str, fields: Any) -> None:
        self.noted.append((kind, fields))


@pytest.mark.parametrize(("is_open", "expected"), [(True, Reach.YES), (False, Reach.NO)])
async def test_who_tried_says_whether_a_node_can_be_dialled(
    sim_world: SimWorld,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    is_open: bool,
    expected: Reach,
    autojump_clock: MockClock,
) -> None:
    async def probe(peer: PeerId, address: str) -> None:
        if not is_open:
            raise DialFailed("nobody")

    node = sim_world.node(ME)
    links = []
    for number, peer in enumerate(OTHERS):
        server = sim_world.node(peer)
        monkeypatch.setattr(server, "connections", lambda: [Link(ME, "9.9.9.9:7", False, 1, 0, 0)])
        monkeypatch.setattr(server, "probe", probe)
        serve_dialbacks(number > 0, server)  # the first does not try for others
        await node.connect(PeerInfo(peer, (server.address,)))
        links.append(Link(peer, f"8.8.{number}.8:7", True, 1, 0, 0))
    monkeypatch.setattr(node, "connections", lambda: links)
    feed, outlook = Feed(), Outlook()
    with closing(Catalog.open(tmp_path / "catalog")) as catalog:
        async with trio.open_nursery() as nursery:
            await nursery.start(keep_asking, node, catalog.peers, outlook, feed)
            with trio.fail_after(60):
                while not feed.noted:
                    await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert outlook.reach(trio.current_time()) is expected
    assert feed.noted == [("reach_changed", {"text": expected})]
    assert outlook.n_votes == len(OTHERS) - 1


async def test_who_does_not_wish_it_dials_for_nobody(sim_world: SimWorld, autojump_clock: MockClock) -> None:
    node, other = sim_world.node(ME), sim_world.node(OTHERS[0])
    serve_dialbacks(False, other)
    await node.connect(PeerInfo(other.peer_id, (other.address,)))
    with pytest.raises(ProtocolRefused):
        await node.open_stream(other.peer_id, [PROTOCOL])
