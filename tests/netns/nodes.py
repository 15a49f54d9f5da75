"""Nodes for namespaces, a process each: `serve` gives a file, `get` fetches it and says how that went.

`get` says where it is first, so that one behind a router can be the one that dials, and is told on its input what to
fetch, and from whom: an address to dial, or the id of a peer that dials. `relay` brings together whoever asks.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio

from protocols.autonat.dialbacks import Dialbacks
from protocols.autonat.shell import answering, ask
from protocols.autonat.wire import PROTOCOL as AUTONAT
from protocols.bitswap.shell import Exchange, run_exchange
from protocols.errors import DialFailed
from protocols.fetch.dag import Progress, fetch_dag
from protocols.net import Network, PeerInfo
from protocols.net_libp2p import NetConfig, open_network
from protocols.ping import ping
from protocols.relay.circuits import FRIEND, Relay
from protocols.relay.shell import relaying
from protocols.relay.wire import HOP
from storage.blockstore import EVERYTHING
from storage.cid import Cid
from storage.keys import Identity, PeerId
from storage.packs import PackBlockstore
from storage.unixfs import add_path
from tests.netns.network import Place

DIAL_LIMIT_S: Final = 60.0
OBSERVED_LIMIT_S: Final = 10.0
MARK: Final = "> "


def say(text: str) -> None:
    """Tell whoever started this process, among the lines of the log."""
    print(f"{MARK}{text}", flush=True)


async def relay(address: str, most_bytes: int) -> None:
    """Be everybody's relay, where a circuit carries so much; say at each line of input how much all have carried."""
    terms = FRIEND._replace(limit=FRIEND.limit._replace(n_bytes=most_bytes))
    async with open_network(Identity.generate(), NetConfig((f"/ip4/{address}/tcp/0",), mdns=False)) as network:
        core = Relay()
        network.serve(HOP, relaying(network, core, lambda peer: terms, time.time))
        network.serve(AUTONAT, answering(Telling(network), Dialbacks(trio.current_time())))
        say(network.addresses()[0])
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            say(str(core.n_carried + sum(circuit.n_bytes for circuit in core.circuits)))


class Telling:
    """A network that says what came of its dials for others."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    async def probe(self, peer: PeerId, address: str) -> None:
        """See `Network`."""
        try:
            await self._network.probe(peer, address)
        except DialFailed:
            say(f"no {address}")
            raise
        say(f"yes {address}")


async def observe(addresses: list[str]) -> None:
    """Be as many nodes, which tell who connects where they see it."""
    async with AsyncExitStack() as stack:
        for address in addresses:
            config = NetConfig((f"/ip4/{address}/tcp/0",), mdns=False)
            say((await stack.enter_async_context(open_network(Identity.generate(), config))).addresses()[0])
        await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


async def meet(relay: str, is_brought: bool) -> None:
    """Meet a peer: one that a relay brings, told where this node is, or one that the input names. Say how often."""
    async with open_network(Identity.generate(), NetConfig(("/ip4/0.0.0.0/tcp/0",), mdns=False)) as network:
        info = PeerInfo.parse(relay)
        await reach(network, info)
        if is_brought:
            await network.reserve(info.peer, time.time())
            say(next(each for each in network.addresses() if "/p2p-circuit/" in each))
        else:
            say("ready")
            other = PeerInfo.parse((await trio.to_thread.run_sync(sys.stdin.readline)).strip())
            with trio.fail_after(DIAL_LIMIT_S):
                while other.peer not in network.peers():
                    with suppress(DialFailed):  # it may not have reserved yet
                        await network.connect(other)
                    await trio.sleep(1)
        while True:
            for peer in set(network.peers()) - {info.peer}:
                if ways(network, peer) == {"punched"}:
                    trips_s = await ping(network, peer, 2)
                    say(f"punched {len(trips_s)}")
                    return
            await trio.sleep(0.1)


async def ask_reach(address: str, dial: str) -> bool | None:
    """What a peer says that was asked to dial this node."""
    async with open_network(Identity.generate(), NetConfig((f"/ip4/{address}/tcp/0",), mdns=False)) as network:
        info = PeerInfo.parse(dial)
        await reach(network, info)
        with trio.move_on_after(OBSERVED_LIMIT_S):
            while not network.observed_addresses():
                await trio.sleep(0.05)
        return await ask(network, info.peer)


async def serve(address: str, path: Path, folder: Path, dial: str, is_relay: bool) -> None:
    """Give a file to everybody; connect to `dial` first where that is given, and reserve there if that is a relay."""
    store = PackBlockstore(folder)
    root = add_path(store, path)
    async with open_network(Identity.generate(), NetConfig((f"/ip4/{address}/tcp/0",), mdns=False)) as network:
        exchange = Exchange(network, store, sight_of=lambda peer: EVERYTHING)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_exchange, exchange)
            if dial:
                with trio.fail_after(DIAL_LIMIT_S):
                    await network.connect(PeerInfo.parse(dial))
                    if is_relay:
                        await network.reserve(PeerInfo.parse(dial).peer, time.time())
            told = network.addresses()
            say(f"{root} {next((each for each in told if '/p2p-circuit/' in each), told[0])}")
            await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()


async def get(address: str, folder: Path, idle_timeout_s: float, direct_s: float) -> dict[str, Any]:
    """Fetch what the input names; wait so long for a connection without a relay before."""
    store = PackBlockstore(folder)
    async with open_network(Identity.generate(), NetConfig((f"/ip4/{address}/tcp/0",), mdns=False)) as network:
        exchange = Exchange(network, store, sight_of=lambda peer: EVERYTHING)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_exchange, exchange)
            say(network.addresses()[0])
            cid, provider = (await trio.to_thread.run_sync(sys.stdin.readline)).split()
            info = PeerInfo.parse(provider)
            await reach(network, info)
            with trio.move_on_after(direct_s):
                while "relayed" in ways(network, info.peer):
                    await trio.sleep(0.05)
            began_s = last_s = time.perf_counter()
            gaps_s: list[float] = []

            def on_progress(progress: Progress) -> None:
                nonlocal last_s
                now_s = time.perf_counter()
                gaps_s.append(now_s - last_s)
                last_s = now_s

            done = await fetch_dag(
                exchange, Cid.parse(cid), providers=[info], on_progress=on_progress, idle_timeout_s=idle_timeout_s
            )
            took_s = time.perf_counter() - began_s
            found = sorted(ways(network, info.peer))
            nursery.cancel_scope.cancel()
    return {
        "took_s": took_s,
        "n_bytes": done.n_bytes,
        "n_duplicates": exchange.wants.n_duplicates,
        "longest_gap_s": max(gaps_s),
        "ways": found,
    }


def ways(network: Network, peer: PeerId) -> set[str]:
    """How a peer is connected."""
    links = [link for link in network.connections() if link.peer == peer]
    return {"relayed" if link.is_relayed else "punched" if link.is_punched else "direct" for link in links}


async def reach(network: Network, info: PeerInfo) -> None:
    """Connect to a peer, or wait for one without an address to come."""
    with trio.fail_after(DIAL_LIMIT_S):
        if info.addresses:
            await network.connect(info)
        while info.peer not in network.peers():
            await trio.sleep(0.05)


@contextmanager
def node(place: Place, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A node's process at a place."""
    process = subprocess.Popen(
        place.command(sys.executable, "-m", "tests.netns.nodes", *args),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def asked(process: subprocess.Popen[str]) -> str:
    """What a node says to a line."""
    assert process.stdin is not None
    process.stdin.write("?\n")
    process.stdin.flush()
    return heard(process)


def heard(process: subprocess.Popen[str]) -> str:
    """The next line that a node says."""
    assert process.stdout is not None
    said = next((line for line in process.stdout if line.startswith(MARK)), "")
    assert said, "the node ended without a word"
    return said.removeprefix(MARK).strip()


@contextmanager
def fetching(
    giver: Place,
    taker: Place,
    path: Path,
    folder: Path,
    *,
    giver_dials: bool = False,
    relay: str = "",
    idle_timeout_s: float = 60.0,
    direct_s: float = 0.0,
) -> Iterator[subprocess.Popen[str]]:
    """A fetch that has begun; what it says next is how it went. `relay` is the address of one between the two."""
    with node(taker, "get", taker.address, str(folder / "taken"), str(idle_timeout_s), str(direct_s)) as getting:
        dial = heard(getting) if giver_dials else relay
        how = "reserve" if relay else "dial"
        with node(giver, "serve", giver.address, str(path), str(folder / "given"), dial, how) as serving:
            cid, address = heard(serving).split()
            if not giver_dials:
                heard(getting)
            assert getting.stdin is not None
            getting.stdin.write(f"{cid} {address.rpartition('/')[2] if giver_dials else address}\n")
            getting.stdin.flush()
            yield getting


def fetch(giver: Place, taker: Place, path: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """Fetch a file from one place to the other; how it went."""
    with fetching(giver, taker, path, folder, **options) as getting:
        return dict(json.loads(heard(getting)))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["relay", address, *most_bytes]:
            trio.run(relay, address, int(most_bytes[0]) if most_bytes else FRIEND.limit.n_bytes)
        case ["observe", *addresses]:
            trio.run(observe, addresses)
        case ["meet", relay_address, how]:
            trio.run(meet, relay_address, how == "brought")
        case ["ask", address, dial]:
            say(json.dumps(trio.run(ask_reach, address, dial)))
        case ["serve", address, path, folder, dial, how]:
            trio.run(serve, address, Path(path), Path(folder), dial, how == "reserve")
        case ["get", address, folder, idle_timeout_s, direct_s]:
            say(json.dumps(trio.run(get, address, Path(folder), float(idle_timeout_s), float(direct_s))))
