"""Networks of network namespaces: two ends with a link between them, or a router that translates addresses.

Outer addresses are of the public internet, for that is what nodes look at; nothing leaves the namespaces.
Everything is torn down with its block. Needs root, Linux, `ip`, and for some networks `tc`, `nft` or TUN devices:
`why_not` says what is missing.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

IP, TC, NFT, TUN = "ip", "tc", "nft", "tun"
STEP_LIMIT_S: Final = 20.0
NAT_RULES: Final = """
table ip covey {
  chain after { type nat hook postrouting priority 100; oifname "wan" masquerade%s; }
  chain between { type filter hook forward priority 0; iifname "wan" ct state { new, invalid } drop; }
  chain to { type filter hook input priority 0; iifname "wan" ct state { new, invalid } %s; }
}
"""
KEEPS, ANY_PORT = "", " random"  # the port of who is behind the router, where it is free; another for each connection
SILENT, LOUD = "drop", "reject with tcp reset"  # to strangers


def why_not(*needs: str) -> str:
    """What keeps this machine from having such networks; "" for nothing."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs Linux and root"
    for need in (IP, *needs):
        if need == TUN:
            if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
                return "needs /dev/net/tun"
        elif shutil.which(need) is None:
            return f"needs the command {need}"
    name = f"covey-{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, timeout=STEP_LIMIT_S)
    if tried.returncode:
        return f"`ip netns add` does not work here: {tried.stderr.strip()}"
    do("ip", "netns", "del", name)
    return ""


def do(*command: str, given: str | None = None) -> None:
    """Run a command that has to succeed."""
    done = subprocess.run(command, input=given, text=True, capture_output=True, timeout=STEP_LIMIT_S)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


@dataclass
class Place:
    """A namespace, and its address on the link."""

    name: str
    address: str

    def command(self, *args: str) -> list[str]:
        """The same command, run there."""
        return ["ip", "netns", "exec", self.name, *args]


@dataclass
class Ends:
    """Two places that reach each other; behind a router that translates addresses, `near` reaches `far` alone."""

    near: Place
    far: Place
    relay: subprocess.Popen[str] | None = field(default=None)

    def set_loss(self, loss_frac: float) -> None:
        """Cut a relayed link (1), or join it again (0)."""
        assert self.relay is not None and self.relay.stdin is not None
        self.relay.stdin.write(f"loss {loss_frac}\n")
        self.relay.stdin.flush()


@contextmanager
def namespaces(*names: str) -> Iterator[list[str]]:
    """Fresh namespaces."""
    made = [f"covey-{os.getpid()}-{name}" for name in names]
    with ExitStack() as stack:
        for name in made:
            do("ip", "netns", "add", name)
            stack.callback(do, "ip", "netns", "del", name)
            do("ip", "-n", name, "link", "set", "lo", "up")
        yield made


def join(one: str, other: str, devices: tuple[str, str], addresses: tuple[str, str]) -> None:
    """Put a cable between two namespaces."""
    do("ip", "link", "add", devices[0], "netns", one, "type", "veth", "peer", "name", devices[1], "netns", other)
    for name, device, address in zip((one, other), devices, addresses, strict=True):
        do("ip", "-n", name, "addr", "add", f"{address}/24", "dev", device)
        do("ip", "-n", name, "link", "set", device, "up")


@contextmanager
def cable(mbit_per_s: float | None = None) -> Iterator[Ends]:
    """Two places on a cable, which tc's token bucket may bound, both ways."""
    with namespaces("near", "far") as (near, far):
        join(near, far, ("cable", "cable"), ("45.77.0.1", "45.77.0.2"))
        if mbit_per_s is not None:
            shape = ("root", "tbf", "rate", f"{mbit_per_s:g}mbit", "burst", "32kb", "latency", "400ms")
            for name in (near, far):
                do("tc", "-n", name, "qdisc", "add", "dev", "cable", *shape)
        yield Ends(Place(near, "45.77.0.1"), Place(far, "45.77.0.2"))


@contextmanager
def line(
    names: tuple[str, str], devices: tuple[str, str], addresses: tuple[str, str], *options: str
) -> Iterator[subprocess.Popen[str]]:
    """Put a link of `tests.netns.relay`, with these options of it, between two namespaces."""
    relay = subprocess.Popen(
        [sys.executable, "-m", "tests.netns.relay", *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert relay.stdout is not None
        made = relay.stdout.readline().split()
        for at, name in enumerate(names):
            do("ip", "link", "set", made[at], "netns", name)
            do("ip", "-n", name, "link", "set", made[at], "name", devices[at])
            do("ip", "-n", name, "addr", "add", addresses[at], "peer", addresses[1 - at], "dev", devices[at])
            do("ip", "-n", name, "link", "set", devices[at], "up")
        yield relay
    finally:
        relay.kill()
        relay.communicate()


@contextmanager
def relayed(*options: str) -> Iterator[Ends]:
    """Two places on a link of `tests.netns.relay`, with these options of it."""
    addresses = ("10.77.1.1", "10.77.1.2")
    with (
        namespaces("near", "far") as (near, far),
        line((near, far), ("cable", "cable"), addresses, *options) as relay,
    ):
        yield Ends(Place(near, addresses[0]), Place(far, addresses[1]), relay)


@contextmanager
def behind_nat() -> Iterator[Ends]:
    """`near` sits behind a router that translates addresses and lets nobody in; `far` is in the open."""
    with namespaces("near", "nat", "far") as (near, nat, far):
        join(near, nat, ("wan", "lan"), ("192.168.77.2", "192.168.77.1"))
        join(nat, far, ("wan", "lan"), ("45.77.1.1", "45.77.1.2"))
        do("ip", "-n", near, "route", "add", "default", "via", "192.168.77.1")
        do("ip", "netns", "exec", nat, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        do("ip", "netns", "exec", nat, "nft", "-f", "-", given=NAT_RULES % (KEEPS, SILENT))
        yield Ends(Place(near, "192.168.77.2"), Place(far, "45.77.1.2"))


@dataclass
class Hidden:
    """Two places, each behind a router of its own that lets nobody in; both reach `open`."""

    one: Place
    other: Place
    open: Place


@contextmanager
def both_behind_nat(ports: str = KEEPS, manner: str = SILENT, delay_ms: float = 0.0) -> Iterator[Hidden]:
    """The routers' outer sides meet at `open`, which passes packets on: only the routers keep the two apart.

    Args:
        ports: Which port the routers give to a connection: KEEPS, ANY_PORT.
        manner: What they say to strangers: SILENT, LOUD.
        delay_ms: Of the first router's line to the others, each way; it takes TUN devices.
    """
    with ExitStack() as stack:
        one, nat1, middle, nat2, other = stack.enter_context(namespaces("one", "nat1", "open", "nat2", "other"))
        for hidden, nat, lan, wan in ((one, nat1, 78, "45.77.1"), (other, nat2, 79, "45.78.1")):
            join(hidden, nat, ("wan", "lan"), (f"192.168.{lan}.2", f"192.168.{lan}.1"))
            outer = ((nat, middle), ("wan", f"net{lan}"), (f"{wan}.1", f"{wan}.2"))
            if delay_ms and nat == nat1:
                stack.enter_context(line(*outer, "--delay-ms", f"{delay_ms:g}"))
            else:
                join(*outer[0], *outer[1:])
            do("ip", "-n", hidden, "route", "add", "default", "via", f"192.168.{lan}.1")
            do("ip", "-n", nat, "route", "add", "default", "via", f"{wan}.2")
            do("ip", "netns", "exec", nat, "nft", "-f", "-", given=NAT_RULES % (ports, manner))
        for router in (nat1, middle, nat2):
            do("ip", "netns", "exec", router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        yield Hidden(Place(one, "192.168.78.2"), Place(other, "192.168.79.2"), Place(middle, "45.77.1.2"))
