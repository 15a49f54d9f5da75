"""Delegated routing v1: providers, peers and IPNS records, asked of servers over HTTP.

Source: the Delegated Routing V1 HTTP API (specs.ipfs.tech/routing/http-routing-v1), with its filters (IPIP-484).
A router is believed nothing: where a peer is, the handshake proves; blocks are hashed, records verified.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import structlog
import trio

from protocols.errors import HttpFailed, Malformed, ProtocolError, Remote, TooBig
from protocols.ipns import name_text, parse_name
from protocols.net import MAX_ADDRESS_CHARS, PeerInfo
from protocols.sources import is_http
from protocols.web import Ask, Reply, Send, whole
from storage.catalog.names import MAX_RECORD_BYTES
from storage.cid import Cid
from storage.keys import PeerId

PATH: Final = "/routing/v1"
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
RECORD: Final = "application/vnd.ipfs.ipns-record"
BITSWAP: Final = "transport-bitswap"
GATEWAY: Final = "transport-ipfs-gateway-http"
UNKNOWN: Final = "unknown"

MAX_BODY_BYTES: Final = 1 << 20
MAX_LINE_BYTES: Final = 64 << 10
MAX_RECORDS: Final = 100  # that are read of one answer; as many as the standard has a server give in one piece
MAX_ADDRESSES: Final = 16
ROUTER_LIMIT_S: Final = 10.0

log = structlog.get_logger(__name__)


class _Peer(msgspec.Struct, frozen=True, rename="pascal"):
    """A record of the schema `peer`, or of the older `bitswap`, which says the same."""

    schema: str
    id: str = msgspec.field(name="ID", default="")
    addrs: list[str] | None = None
    protocols: list[str] | None = None


class _Providers(msgspec.Struct, frozen=True):
    providers: list[msgspec.Raw] | None = msgspec.field(name="Providers", default=None)
    peers: list[msgspec.Raw] | None = msgspec.field(name="Peers", default=None)


@dataclass(frozen=True)
class Routers:
    """The servers to ask, and how. `has_gateways`: providers that are reached over HTTP alone are of use, too."""

    send: Send
    urls: Sequence[str]
    has_gateways: bool = False
    troubles: dict[str, str] = field(default_factory=dict)  # what keeps which from answering

    def note(self, router: str, trouble: str) -> None:
        """Log what keeps a router from answering, but not again at each question."""
        if trouble and trouble != self.troubles.get(router):
            log.info("router_failed", router=router, error=trouble)
        self.troubles[router] = trouble


# --- the forms


def read_peer(raw: bytes | msgspec.Raw) -> PeerInfo | None:
    """A record as a peer; None for what is none of use here. Its addresses are as they came, without a /p2p part."""
    try:
        said = msgspec.json.decode(raw, type=_Peer)
        if said.schema not in ("peer", "bitswap"):
            return None
        peer = parse_name(said.id)  # a peer id is written as an IPNS name is, in either form
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Malformed):
        return None
    if said.protocols and not {BITSWAP, GATEWAY} & set(said.protocols):
        return None
    short = [address for address in said.addrs or () if address.startswith("/") and len(address) <= MAX_ADDRESS_CHARS]
    texts = dict.fromkeys(address.partition("/p2p/")[0] for address in short if "/p2p-circuit" not in address)
    return PeerInfo(peer, tuple(filter(None, texts))[:MAX_ADDRESSES])


def read_peers(body: bytes) -> list[PeerInfo]:
    """The peers of an answer in one piece. Raises: Malformed."""
    try:
        said = msgspec.json.decode(body, type=_Providers)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"the router's answer is none: {error}") from None
    records = said.providers or said.peers or []
    return [info for info in map(read_peer, records[:MAX_RECORDS]) if info is not None]


def peer_record(info: PeerInfo, protocols: Sequence[str]) -> dict[str, Any]:
    """A peer as a record."""
    return {"Schema": "peer", "ID": str(info.peer), "Addrs": list(info.addresses), "Protocols": list(protocols)}


def filtered(record: dict[str, Any], by_address: Sequence[str], by_protocol: Sequence[str]) -> dict[str, Any] | None:
    """A record under the filters of IPIP-484; None where they leave it out. An empty filter lets everything through."""
    protocols = [name.lower() for name in record["Protocols"]]
    if by_protocol and not set(protocols or [UNKNOWN]) & set(by_protocol):
        return None
    if not by_address:
        return record
    if not record["Addrs"]:
        return record if UNKNOWN in by_address else None
    refused = {name[1:] for name in by_address if name.startswith("!")}
    wanted = {name for name in by_address if not name.startswith("!")}

    def passes(address: str) -> bool:
        names = set(address.lower().split("/"))
        return not names & refused and (not wanted or bool(names & wanted))

    kept = [address for address in record["Addrs"] if passes(address)]
    return {**record, "Addrs": kept} if kept else None


class Lines:
    """Lines out of a body that comes in any pieces."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that are whole by now. Raises: TooBig."""
        *whole_ones, self._held = (self._held + chunk).split(b"\n")
        if max(map(len, (*whole_ones, self._held))) > MAX_LINE_BYTES:
            raise TooBig(f"the router sends a line of over {MAX_LINE_BYTES} bytes")
        return [line for line in whole_ones if line.strip()]

    def rest(self) -> list[bytes]:
        """What stands behind the last line break."""
        return [self._held] if self._held.strip() else []


# --- asking


async def find_providers(routers: Routers, cid: Cid, limit: int = MAX_RECORDS) -> list[PeerInfo]:
    """Ask every router who has `cid`; what one of them cannot say is not missed. No duplicates."""
    protocols = [BITSWAP, UNKNOWN, *([GATEWAY] if routers.has_gateways else ())]
    path = f"/providers/{cid.as_v1()}?filter-protocols={','.join(protocols)}"
    found = await _of_all(routers, path)
    return [info for info in found if routers.has_gateways or not _is_web_server(info)][:limit]


async def find_peer(routers: Routers, peer: PeerId) -> PeerInfo:
    """Ask every router where a peer is; without addresses where none knows."""
    found = await _of_all(routers, f"/peers/{name_text(peer)}")
    return next((info for info in found if info.peer == peer), PeerInfo(peer))


async def find_records(routers: Routers, name: PeerId) -> list[bytes]:
    """Ask every router for the record of a name. Nothing is verified: that is the caller's. Raises: HttpFailed."""
    found: list[bytes] = []
    failures: list[Remote] = []

    async def ask(router: str) -> None:
        try:
            with trio.fail_after(ROUTER_LIMIT_S):
                found.extend(await _record(routers.send, router, name))
        except Remote as error:
            failures.append(error)
        except trio.TooSlowError:
            failures.append(HttpFailed(f"{router} does not answer"))

    async with trio.open_nursery() as nursery:
        for router in routers.urls:
            nursery.start_soon(ask, router)
    if failures and not found:
        raise failures[0]
    return found


async def put_record(routers: Routers, name: PeerId, raw: bytes) -> int:
    """Give every router the record of a name. Returns: how many took it; that one does not take any is no error."""
    taken: list[str] = []

    async def put(router: str) -> None:
        ask = Ask(f"{router}{PATH}/ipns/{name_text(name)}", method="PUT", body=raw, kind=RECORD)
        try:
            with trio.move_on_after(ROUTER_LIMIT_S):
                async with routers.send(ask) as reply:
                    if reply.status in (200, 201, 202, 204):
                        taken.append(router)
                    else:
                        log.info("router_takes_no_record", router=router, status=reply.status)
        except ProtocolError as error:
            log.info("router_failed", router=router, error=str(error))

    async with trio.open_nursery() as nursery:
        for router in routers.urls:
            nursery.start_soon(put, router)
    return len(taken)


def _is_web_server(info: PeerInfo) -> bool:
    return bool(info.addresses) and all(map(is_http, info.addresses))


async def _of_all(routers: Routers, path: str) -> list[PeerInfo]:
    """What the routers tell in their time, all at once; of one peer the addresses of all of them."""
    found: dict[PeerId, PeerInfo] = {}

    def note(info: PeerInfo | None) -> None:
        if info is not None:
            known = found[info.peer].addresses if info.peer in found else ()
            addresses = tuple(dict.fromkeys((*known, *info.addresses)))[:MAX_ADDRESSES]
            found[info.peer] = PeerInfo(info.peer, addresses)

    async def ask_one(router: str) -> None:
        trouble = ""
        try:
            with trio.move_on_after(ROUTER_LIMIT_S) as limit:
                await _peers(routers.send, f"{router}{PATH}{path}", note)
            if limit.cancelled_caught:
                trouble = f"it was not done within {ROUTER_LIMIT_S:.0f} s"
        except ProtocolError as error:
            trouble = str(error)
        routers.note(router, trouble)

    async with trio.open_nursery() as nursery:
        for router in routers.urls:
            nursery.start_soon(ask_one, router)
    return list(found.values())


async def _peers(send: Send, url: str, note: Callable[[PeerInfo | None], None]) -> None:
    """Note the peers that one router tells of, as they come. Raises: HttpFailed, Malformed, TooBig."""
    async with send(Ask(url, f"{NDJSON}, {JSON};q=0.9")) as reply:
        if reply.status == 404:
            return
        _check(url, reply)
        if reply.kind != NDJSON:
            for info in read_peers(await whole(reply, MAX_BODY_BYTES, url)):
                note(info)
            return
        lines, n_records, n_bytes = Lines(), 0, 0
        async for chunk in reply.chunks:
            n_bytes += len(chunk)
            for line in lines.feed(chunk):
                n_records += 1
                note(read_peer(line))
            if n_records >= MAX_RECORDS or n_bytes > MAX_BODY_BYTES:
                return
        for line in lines.rest():
            note(read_peer(line))


async def _record(send: Send, router: str, name: PeerId) -> list[bytes]:
    async with send(Ask(f"{router}{PATH}/ipns/{name_text(name)}", RECORD)) as reply:
        if reply.status == 404:
            return []
        _check(router, reply)
        if reply.kind != RECORD:  # a router may say in words that there is none
            return []
        return [await whole(reply, MAX_RECORD_BYTES, router)]


def _check(router: str, reply: Reply) -> None:
    if reply.status != 200:
        raise HttpFailed(f"{router} answers {reply.status}")


def protocols_of(addresses: Iterable[str]) -> list[str]:
    """What a node that has these addresses speaks."""
    return [BITSWAP, *([GATEWAY] if any(map(is_http, addresses)) else ())]
