"""A link that loses, delays and holds back: `python -m tests.netns.relay --loss 0.05 --delay-ms 50` (as root).

Two TUN devices, between which packets pass. Prints their names; whoever runs it moves each into a namespace. A line
`loss 1` on its input cuts the link, `loss 0` joins it again; it ends with its input.
"""

import argparse
import fcntl
import heapq
import math
import os
import random
import selectors
import struct
import sys
import time
from itertools import count
from typing import Final

TUNSETIFF: Final = 0x400454CA
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
MAX_PACKET_BYTES: Final = 1 << 16
MAX_QUEUED_S: Final = 0.5  # what would wait longer for its turn on the link is dropped, as a router does


class Wire:
    """One direction of a link: when each packet comes out at the other end, if it does. Packets stay in order."""

    def __init__(self, rng: random.Random, loss_frac: float, delay_s: float, bytes_per_s: float = math.inf) -> None:
        self.loss_frac = loss_frac
        self.n_lost = 0
        self._rng = rng
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._free_s = -math.inf
        self._order = count()
        self._flying: list[tuple[float, int, bytes]] = []

    def put(self, packet: bytes, now_s: float) -> None:
        """A packet enters the link."""
        start_s = max(now_s, self._free_s)
        if self._rng.random() < self.loss_frac or start_s > now_s + MAX_QUEUED_S:
            self.n_lost += 1
            return
        self._free_s = start_s + len(packet) / self._bytes_per_s
        heapq.heappush(self._flying, (self._free_s + self._delay_s, next(self._order), packet))

    def take(self, now_s: float) -> list[bytes]:
        """The packets that have come out by now."""
        packets = []
        while self._flying and self._flying[0][0] <= now_s:
            packets.append(heapq.heappop(self._flying)[2])
        return packets

    def next_s(self) -> float:
        """When the next packet comes out; `math.inf` for never."""
        return self._flying[0][0] if self._flying else math.inf


def open_tun(name: str) -> int:
    """Make a TUN device; it lasts as long as what is returned is open."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def run(fds: tuple[int, int], wires: tuple[Wire, Wire]) -> None:
    """Pass packets on until the input ends."""
    with selectors.DefaultSelector() as selector:
        for number, fd in enumerate(fds):
            selector.register(fd, selectors.EVENT_READ, number)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            next_s = min(wire.next_s() for wire in wires)
            rest_s = None if next_s == math.inf else max(0.0, next_s - time.perf_counter())
            for key, _ in selector.select(rest_s):
                if key.fileobj is sys.stdin:
                    words = sys.stdin.readline().split()
                    if not words:
                        return
                    for wire in wires:
                        wire.loss_frac = float(words[1])
                else:
                    read_all(fds[key.data], wires[key.data])
            for wire, other in zip(wires, reversed(fds), strict=True):
                for packet in wire.take(time.perf_counter()):
                    write(other, packet)


def read_all(fd: int, wire: Wire) -> None:
    """Take what waits at a device into the link."""
    while True:
        try:
            packet = os.read(fd, MAX_PACKET_BYTES)
        except (BlockingIOError, OSError):  # nothing more, or the device is still down
            return
        wire.put(packet, time.perf_counter())


def write(fd: int, packet: bytes) -> None:
    """Let a packet out; what a device cannot take is lost."""
    try:
        os.write(fd, packet)
    except OSError:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", type=float, default=0.0, help="of packets, each way")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="each way")
    parser.add_argument("--kb-per-s", type=float, default=math.inf, help="each way")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    names = [f"cvy{os.getpid()}{side}" for side in "ab"]
    fds = (open_tun(names[0]), open_tun(names[1]))
    rng = random.Random(args.seed)
    wires = tuple(Wire(rng, args.loss, args.delay_ms / 1000, args.kb_per_s * 1000) for _ in fds)
    print(*names, flush=True)
    run(fds, (wires[0], wires[1]))


if __name__ == "__main__":
    main()
