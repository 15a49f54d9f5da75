"""Discovery on the local network where there is nothing to discover with, and where there is too much."""

import pytest
import trio
import zeroconf
from trio.testing import MockClock

from protocols.errors import DialFailed
from protocols.net import PeerInfo
from protocols.net_libp2p import mdns
from protocols.net_libp2p.mdns import discover
from storage.keys import Identity, PeerId


class Lonely:
    """A network that nobody may ask to dial."""

    peer_id: PeerId = Identity(bytes(32)).peer_id

    def addresses(self) -> list[str]:
        return [f"/ip4/192.0.2.1/tcp/1/p2p/{self.peer_id}"]

    def peers(self) -> list[PeerId]:
        return []

    async def connect(self, peer: PeerInfo) -> None:
        pytest.fail(f"there is no {peer}")


async def test_a_machine_without_multicast_goes_on_without_discovery(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_multicast() -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(zeroconf, "Zeroconf", no_multicast)
    await discover(Lonely())


class Moving(Lonely):
    """A network of which the addresses change."""

    def __init__(self) -> None:
        self.now = ["/ip4/127.0.0.1/tcp/1"]

    def addresses(self) -> list[str]:
        return self.now


async def test_a_machine_that_comes_into_another_network_is_announced_there(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[str]] = []
    running: list[int] = []

    async def discover_here(network: mdns.Dialler) -> None:
        begun.append(network.addresses())
        if len(begun) == 1:
            return  # without multicast, for there is no network yet
        running.append(len(begun))
        try:
            await trio.sleep_forever()
        finally:
            running.remove(running[0])

    monkeypatch.setattr(mdns, "discover", discover_here)
    network = Moving()
    nursery.start_soon(mdns.keep_discovering, network)
    first, home, circuit, office = [
        f"/ip4/{where}"
        for where in ("127.0.0.1/tcp/1", "10.0.0.5/tcp/1", "8.8.8.8/tcp/1/p2p/X/p2p-circuit", "10.9.0.5/tcp/1")
    ]
    for now in ([first], [first, home], [first, home, circuit], [first, office]):
        network.now = now
        await trio.sleep(2 * mdns.RETRY_S)
        assert len(running) <= 1
    assert begun == [[first], [first, home], [first, office]] and running == [3]


class Crowded:
    """A network on which every dial takes ten seconds and fails."""

    def __init__(self) -> None:
        self.peer_id = Identity(bytes(32)).peer_id
        self.dials: list[tuple[float, PeerId]] = []

    def addresses(self) -> list[str]:
        return []

    def peers(self) -> list[PeerId]:
        return []

    async def connect(self, peer: PeerInfo) -> None:
        self.dials.append((trio.current_time(), peer.peer))
        await trio.sleep(10)
        raise DialFailed("nobody answers")


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[PeerInfo]:
    """Peers, each announced under its number."""
    numbers = range(1, mdns.MAX_PEERS + 1)
    found = [PeerInfo(Identity(number.to_bytes(32)).peer_id, ("/ip4/192.0.2.1/tcp/1",)) for number in numbers]

    async def resolve(job: object, zeroconf: object, name: str) -> PeerInfo:
        await trio.lowlevel.checkpoint()
        return found[int(name)]

    monkeypatch.setattr(mdns.trio.to_thread, "run_sync", resolve)
    return found


async def test_dead_announcements_hold_up_nobody(
    announced: list[PeerInfo], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = Crowded()
    names, found = trio.open_memory_channel[str](mdns.NAMES_IN_FLIGHT)
    nursery.start_soon(mdns._dial_found, network, None, found)
    for number in range(mdns.MAX_DIALS * 2):
        names.send_nowait(str(number))
    began_s = trio.current_time()
    await trio.sleep(mdns.RETRY_S - 1)
    assert {peer for _, peer in network.dials} == {info.peer for info in announced[: mdns.MAX_DIALS * 2]}
    assert max(at_s for at_s, _ in network.dials) - began_s < 15


async def test_all_of_a_large_network_are_met_though_they_are_found_at_once(
    announced: list[PeerInfo], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = Crowded()
    names, found = trio.open_memory_channel[str](mdns.NAMES_IN_FLIGHT)
    for number in range(len(announced)):
        mdns._offer(names, str(number))
    nursery.start_soon(mdns._dial_found, network, None, found)
    await trio.sleep(1000)
    assert {peer for _, peer in network.dials} == {info.peer for info in announced}


async def test_the_peer_announced_longest_ago_makes_room_for_a_new_one(
    announced: list[PeerInfo], nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdns, "MAX_PEERS", 2)
    network = Crowded()
    names, found = trio.open_memory_channel[str](mdns.NAMES_IN_FLIGHT)
    nursery.start_soon(mdns._dial_found, network, None, found)
    for number in (0, 1, 0, 2):
        await names.send(str(number))
        await trio.sleep(1)
    await trio.sleep(20)
    network.dials.clear()
    await trio.sleep(mdns.RETRY_S)
    assert {peer for _, peer in network.dials} == {announced[0].peer, announced[2].peer}
