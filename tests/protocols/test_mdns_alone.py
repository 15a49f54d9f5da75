"""Discovery on the local network where there is nothing to discover with."""

import pytest
import zeroconf

from protocols.net import PeerInfo
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
