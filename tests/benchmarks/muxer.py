"""One stream between two processes over noise: `python -m tests.benchmarks.muxer`.

A client writes blocks of one size on one stream, a server reads to the end and answers with one byte; the clock runs
from the first write to that byte. Each make runs in processes of its own: Covey (its yamux and noise framing),
py-libp2p as it is shipped (noise and yamux alone offered), and plain TCP by trio. Medians of `--rounds`, makes in turn.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import trio

SIZES = {"4 KiB": 4 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20}
MAKES = {"Covey": "covey", "py-libp2p": "stock", "plain TCP": "tcp"}
N_BYTES = {("stock", 4 << 10): 16 << 20, ("stock", 64 << 10): 48 << 20, ("stock", 1 << 20): 96 << 20}
N_BYTES_OF_OTHERS = {4 << 10: 64 << 20, 64 << 10: 256 << 20, 1 << 20: 512 << 20}
PROTOCOL = "/sink"
READ_BYTES = 1 << 20


async def pump(write: Any, block: int, n_bytes: int) -> None:
    data = bytes(block)
    for _ in range(n_bytes // block):
        await write(data)


def told(address: str) -> None:
    print(address, flush=True)


async def serve_covey() -> None:
    from protocols.net import Stream
    from protocols.net_libp2p import NetConfig, open_network
    from storage.keys import Identity

    async def sink(stream: Stream) -> None:
        while await stream.read(READ_BYTES):
            pass
        await stream.write(b"!")

    async with open_network(Identity.generate(), NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)) as network:
        network.serve(PROTOCOL, sink)
        told(network.addresses()[0])
        await trio.sleep_forever()


async def send_covey(address: str, block: int, n_bytes: int) -> float:
    from protocols.net import PeerInfo
    from protocols.net_libp2p import NetConfig, open_network
    from storage.keys import Identity

    async with open_network(Identity.generate(), NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)) as network:
        info = PeerInfo.parse(address)
        await network.connect(info)
        stream = await network.open_stream(info.peer, [PROTOCOL])
        begin_s = time.perf_counter()
        await pump(stream.write, block, n_bytes)
        await stream.finish()
        assert await stream.read(1) == b"!"
        return time.perf_counter() - begin_s


def new_stock_host() -> Any:
    import logging

    from libp2p import create_new_ed25519_key_pair, new_host
    from libp2p.crypto.x25519 import create_new_key_pair
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport

    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    keys = create_new_ed25519_key_pair()
    return new_host(
        key_pair=keys, sec_opt={PROTOCOL_ID: Transport(keys, noise_privkey=create_new_key_pair().private_key)}
    )


async def serve_stock() -> None:
    from libp2p.custom_types import TProtocol
    from libp2p.network.stream.exceptions import StreamEOF
    from multiaddr import Multiaddr

    async def sink(stream: Any) -> None:
        try:
            while await stream.read(READ_BYTES):
                pass
        except StreamEOF:
            pass
        await stream.write(b"!")
        await stream.close()

    host = new_stock_host()
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        host.set_stream_handler(TProtocol(PROTOCOL), sink)
        told(str(host.get_addrs()[0]))
        await trio.sleep_forever()


async def send_stock(address: str, block: int, n_bytes: int) -> float:
    from libp2p.custom_types import TProtocol
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    host = new_stock_host()
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        info = info_from_p2p_addr(Multiaddr(address))
        await host.connect(info)
        stream = await host.new_stream(info.peer_id, [TProtocol(PROTOCOL)])
        begin_s = time.perf_counter()
        await pump(stream.write, block, n_bytes)
        await stream.close_write()
        assert await stream.read(1) == b"!"
        return time.perf_counter() - begin_s


async def serve_tcp() -> None:
    async def sink(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some(READ_BYTES):
                pass
            await stream.send_all(b"!")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    told(str(listeners[0].socket.getsockname()[1]))
    await trio.serve_listeners(sink, listeners)


async def send_tcp(address: str, block: int, n_bytes: int) -> float:
    async with await trio.open_tcp_stream("127.0.0.1", int(address)) as stream:
        begin_s = time.perf_counter()
        await pump(stream.send_all, block, n_bytes)
        await stream.send_eof()
        assert await stream.receive_some(1) == b"!"
        return time.perf_counter() - begin_s


SERVE = {"covey": serve_covey, "stock": serve_stock, "tcp": serve_tcp}
SEND = {"covey": send_covey, "stock": send_stock, "tcp": send_tcp}


def spawn(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.muxer", *args], stdout=subprocess.PIPE, text=True
    )  # fmt: skip


def measure(make: str, block: int, n_bytes: int) -> float:
    """MiB/s of one transfer."""
    server = spawn("serve", make)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        done = spawn("send", make, address, str(block), str(n_bytes)).communicate(timeout=300)[0]
        return n_bytes / (1 << 20) / float(done)
    finally:
        server.kill()
        server.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    n_rounds = parser.parse_args().rounds
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, trio {trio.__version__}")
    print(f"one stream between two processes, MiB/s, medians of {n_rounds} (lowest to highest)\n")
    print("| writes of | " + " | ".join(MAKES) + " | Covey to py-libp2p |")
    print("| --- " * (len(MAKES) + 2) + "|")
    for name, block in SIZES.items():
        found: dict[str, list[float]] = {make: [] for make in MAKES.values()}
        for _ in range(n_rounds):
            for make, rates in found.items():
                rates.append(measure(make, block, N_BYTES.get((make, block), N_BYTES_OF_OTHERS[block])))
        medians = {make: statistics.median(rates) for make, rates in found.items()}
        cells = [f"{medians[make]:.0f} ({min(rates):.0f}-{max(rates):.0f})" for make, rates in found.items()]
        print(f"| {name} | " + " | ".join(cells) + f" | {medians['covey'] / medians['stock']:.1f}x |", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", make]:
            trio.run(SERVE[make])
        case ["send", make, address, block, n_bytes]:
            print(trio.run(SEND[make], address, int(block), int(n_bytes)))
        case _:
            main()
