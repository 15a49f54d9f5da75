"""mDNS discovery of libp2p peers on the local network, with zeroconf, which runs in a thread of its own.

Source: libp2p discovery/mdns specification: a PTR record leads from `_p2p._udp.local` to a random name under it, whose
TXT record holds a string `dnsaddr=/ip4/.../p2p/PEER` for each address. (libp2p's own module numbers the keys, dnsaddr2
and on, which go-libp2p does not read.)
"""

import secrets
from collections import OrderedDict
from typing import Any, Final, Protocol

import structlog
import trio

from protocols.errors import DialFailed, Malformed
from protocols.net import PeerInfo
from protocols.net_libp2p.addresses import CIRCUIT
from storage.keys import PeerId

SERVICE: Final = "_p2p._udp.local."
RESOLVE_TIMEOUT_MS: Final = 3000
RETRY_S: Final = 30.0
DEFER_S: Final = 1.0  # both sides hear of each other at once; the one with the greater id lets the other dial
MAX_PEERS: Final = 256  # known at a time; the one announced longest ago makes room
MAX_DIALS: Final = 16  # at a time
MAX_NAME_CHARS: Final = 255
MAX_TXT_STRINGS: Final = 32
NAMES_IN_FLIGHT: Final = MAX_PEERS  # found at once: zeroconf tells of each but once, so what is dropped stays unknown
_KEY: Final = b"dnsaddr="

log = structlog.get_logger(__name__)


class Dialler(Protocol):
    """What discovery needs of a network."""

    @property
    def peer_id(self) -> PeerId:
        """See `Network`."""

    def addresses(self) -> list[str]:
        """See `Network`."""

    def peers(self) -> list[PeerId]:
        """See `Network`."""

    async def connect(self, info: PeerInfo) -> None:
        """See `Network`."""


def write_txt(addresses: list[str]) -> bytes:
    """The TXT record that announces `addresses`, each with its /p2p part."""
    strings = [_KEY + address.encode() for address in addresses]
    return b"".join(bytes([len(string)]) + string for string in strings if len(string) < 256)


def read_txt(record: bytes) -> PeerInfo | None:
    """The peer in a TXT record; None where there is none or the strings name several. Never raises."""
    addresses: dict[str, None] = {}
    peers: set[PeerId] = set()
    at = 0
    for _ in range(MAX_TXT_STRINGS):
        if at >= len(record):
            break
        string = record[at + 1 : at + 1 + record[at]]
        at += 1 + record[at]
        if string.startswith(_KEY):
            try:
                info = PeerInfo.parse(string[len(_KEY) :].decode())
            except (Malformed, UnicodeDecodeError):
                continue
            peers.add(info.peer)
            addresses |= dict.fromkeys(info.addresses)
    return PeerInfo(peers.pop(), tuple(addresses)) if len(peers) == 1 and addresses else None


async def keep_discovering(network: Dialler) -> None:
    """Discover until cancelled, anew wherever this machine is in another network than before.

    What is announced, and on which interfaces, is settled when it begins: a laptop that moved, or a machine whose
    network came up later than this node, would be found by nobody.
    """
    while True:
        here = _places(network)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(discover, network)
            while _places(network) == here:
                await trio.sleep(RETRY_S)
            log.info("mdns_begins_anew")
            nursery.cancel_scope.cancel()


def _places(network: Dialler) -> set[str]:
    """Where others of the local network reach this node: over no relay."""
    return {address for address in network.addresses() if CIRCUIT not in address}


async def discover(network: Dialler) -> None:
    """Announce this node and connect to whoever is announced, until cancelled. Without multicast: say so, and end."""
    from zeroconf import ServiceBrowser, Zeroconf  # 9 MB that a node without mDNS saves

    try:
        zeroconf = await trio.to_thread.run_sync(Zeroconf)
    except OSError as error:
        log.warning("mdns_unavailable", error=str(error))
        return
    try:
        await trio.to_thread.run_sync(zeroconf.register_service, _service(network))
        names, found = trio.open_memory_channel[str](NAMES_IN_FLIGHT)
        token = trio.lowlevel.current_trio_token()

        def on_change(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
            if state_change.name != "Removed" and len(name) <= MAX_NAME_CHARS:
                token.run_sync_soon(_offer, names, name)

        browser = await trio.to_thread.run_sync(lambda: ServiceBrowser(zeroconf, SERVICE, handlers=[on_change]))
        try:
            await _dial_found(network, zeroconf, found)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(browser.cancel)
    finally:
        with trio.CancelScope(shield=True):  # sends goodbyes; zeroconf bounds it to about a second
            await trio.to_thread.run_sync(zeroconf.close)


def _offer(names: trio.MemorySendChannel[str], name: str) -> None:
    try:
        names.send_nowait(name)
    except (trio.WouldBlock, trio.BrokenResourceError):
        log.info("mdns_name_dropped", name=name)


def _service(network: Dialler) -> Any:
    from zeroconf import ServiceInfo

    name = secrets.token_hex(20)
    addresses = network.addresses()
    parts = [address.split("/") for address in addresses]  # "", ip4, HOST, tcp, PORT, p2p, PEER
    return ServiceInfo(
        SERVICE,
        f"{name}.{SERVICE}",
        port=int(parts[0][4]),
        properties=write_txt(addresses),
        server=f"{name}.local.",
        parsed_addresses=[part[2] for part in parts],
    )


def _resolve(zeroconf: Any, name: str) -> PeerInfo | None:
    """What is announced under `name`; blocks, at most RESOLVE_TIMEOUT_MS."""
    from zeroconf import ServiceInfo

    service = ServiceInfo(SERVICE, name)
    # Only the TXT record counts. zeroconf calls an answer without host addresses incomplete, and waits for them.
    if not (service.load_from_cache(zeroconf) or service.text):
        service.request(zeroconf, RESOLVE_TIMEOUT_MS)
    return read_txt(service.text or b"")


async def _dial_found(network: Dialler, zeroconf: Any, found: trio.MemoryReceiveChannel[str]) -> None:
    """Dial whoever is found, and from time to time those again who are away; a dead address holds up no other."""
    known: OrderedDict[PeerId, PeerInfo] = OrderedDict()
    limiter = trio.CapacityLimiter(MAX_DIALS)
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_DIALS):
            nursery.start_soon(_meet, network, zeroconf, found.clone(), known, limiter)
        while True:
            await trio.sleep(RETRY_S)
            connected = set(network.peers())
            async with trio.open_nursery() as redials:
                for info in [info for peer, info in known.items() if peer not in connected]:
                    redials.start_soon(_dial, network, info, limiter)


async def _meet(
    network: Dialler,
    zeroconf: Any,
    found: trio.MemoryReceiveChannel[str],
    known: OrderedDict[PeerId, PeerInfo],
    limiter: trio.CapacityLimiter,
) -> None:
    async with found:
        async for name in found:
            info = await trio.to_thread.run_sync(_resolve, zeroconf, name)
            if info is not None and info.peer != network.peer_id:
                known[info.peer] = info
                known.move_to_end(info.peer)
                if len(known) > MAX_PEERS:
                    known.popitem(last=False)
                await _dial(network, info, limiter)


async def _dial(network: Dialler, info: PeerInfo, limiter: trio.CapacityLimiter) -> None:
    if network.peer_id > info.peer:
        await trio.sleep(DEFER_S)
    async with limiter:
        try:
            await network.connect(info)
        except DialFailed as error:
            log.info("mdns_peer_unreachable", peer=str(info.peer), error=str(error))
