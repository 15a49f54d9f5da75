"""What strangers do to a whole daemon, started by `covey up`: afterwards it serves a friend, and has not grown."""

import contextlib
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.peer.peerstore import PeerStoreError

from daemon.lifecycle import running
from protocols.bitswap.shell import Exchange, run_exchange
from protocols.errors import ProtocolError
from protocols.fetch.dag import fetch_dag
from protocols.net import PeerInfo
from protocols.net_libp2p import NetConfig, open_network
from protocols.net_libp2p.addresses import to_id
from storage.blockstore import Sight
from storage.cid import Cid
from storage.keys import Identity
from storage.memory import MemoryBlockstore

pytestmark = pytest.mark.e2e

Node = Any  # the class stands in tests/conftest.py, which tests cannot import
LOOPBACK = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
MULTISTREAM = b"\x13/multistream/1.0.0\n"
N_IDLE = 600
MAX_GROWTH_MIB = 64
RNG = random.Random(1)
GARBAGE = (b"", b"\x00", b"\x05hello", b"\xff" * 20, b"\x80" * 20, RNG.randbytes(5000), bytes(1 << 20))


class Victim:
    """A daemon with public content, and how a friend checks that it still serves it."""

    def __init__(self, node: Node, cid: Cid, address: str) -> None:
        self.node = node
        self.cid = cid
        self.info = PeerInfo.parse(address)
        self.began_mib = self.resident_mib

    @property
    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.node.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    async def is_well(self) -> None:
        """A friend whom it never met is served, it answers its user, and it has not grown."""
        with trio.fail_after(60):
            async with open_network(Identity.generate(), LOOPBACK) as network:
                exchange = Exchange(network, MemoryBlockstore(), lambda peer: Sight())
                async with running(run_exchange, exchange):
                    await fetch_dag(exchange, self.cid, providers=[self.info])
            assert await trio.to_thread.run_sync(lambda: self.node.is_alive)
        assert self.resident_mib - self.began_mib < MAX_GROWTH_MIB


@pytest.fixture
async def victim(new_node: Callable[[str], Node], tmp_path: Path) -> Victim:
    content = tmp_path / "content"
    content.write_bytes(RNG.randbytes(64 << 20))

    def start() -> Victim:
        node = new_node("ada")
        node.set({"ask.is_enabled": "true"})
        node.up()
        cid = Cid.parse(node.ask("add", str(content), "--visibility", "public")["cid"])
        return Victim(node, cid, node.address)

    victim = await trio.to_thread.run_sync(start)
    await victim.is_well()  # what the first fetch allocates is no growth
    victim.began_mib = victim.resident_mib
    return victim


async def test_garbage_on_every_protocol_that_it_serves_ends_nothing(victim: Victim) -> None:
    async with open_network(Identity.generate(), LOOPBACK) as stranger:
        await stranger.connect(victim.info)
        served: list[str] = []
        with trio.fail_after(20):
            while not served:
                await trio.sleep(0.05)
                with contextlib.suppress(PeerStoreError):  # identify is under way
                    served = stranger._host.get_peerstore().get_protocols(to_id(victim.info.peer))
        assert {"/ipfs/bitswap/1.2.0", "/covey/adapters/1.0.0", "/covey/ask/1.0.0", "/ipfs/lan/kad/1.0.0"} <= set(
            served
        )
        for protocol in served:
            for data in GARBAGE:
                with contextlib.suppress(ProtocolError), trio.move_on_after(5):
                    await stranger.connect(victim.info)
                    stream = await stranger.open_stream(victim.info.peer, [protocol])
                    await stream.write(data)
                    await stream.finish()
                    with trio.move_on_after(0.1):
                        await stream.read(100)
                    await stream.aclose()
    await victim.is_well()


@pytest.mark.parametrize(
    "said", [b"", MULTISTREAM, MULTISTREAM + b"\x07/noise\n\x00\x20"], ids=["mute", "hello", "half"]
)
async def test_hundreds_of_idle_connections_lock_nobody_out(victim: Victim, said: bytes) -> None:
    port = int(victim.info.addresses[0].split("/")[4])
    held = []
    with trio.fail_after(60):
        for _ in range(N_IDLE):
            held.append(await trio.open_tcp_stream("127.0.0.1", port))
            with contextlib.suppress(trio.BrokenResourceError):
                await held[-1].send_all(said)
    await victim.is_well()
    for stream in held:
        await stream.aclose()
    await victim.is_well()


async def test_fetchers_that_are_killed_leave_nothing_behind(
    victim: Victim, new_node: Callable[[str], Node], tmp_path: Path
) -> None:
    address = f"{victim.info.addresses[0]}/p2p/{victim.info.peer}"

    def killed_while_fetching(name: str) -> None:
        node = new_node(name).up()
        getting = node.begin("get", str(victim.cid), "--provider", address, "--out", str(tmp_path / f"{name}.out"))
        node.until_holds(1 << 20)
        assert getting.poll() is None, "it was too quick to be killed"
        node.kill()
        getting.communicate(timeout=60)

    for name in ("bob", "eve", "dan"):
        await trio.to_thread.run_sync(partial(killed_while_fetching, name))
    await victim.is_well()
    with trio.fail_after(60):
        while (await trio.to_thread.run_sync(victim.node.ask, "status"))["n_peers"]:
            """It hears of the last one's end when its turn comes."""
