"""Delegated routing beside the gateway: this node tells of itself, and of what everybody may see here. It asks nobody.

Where it is let, it keeps records of names that anybody puts here.

Source: the Delegated Routing V1 HTTP API (specs.ipfs.tech/routing/http-routing-v1), with its filters (IPIP-484).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from daemon.api.gateway.answer import Site, answer, refused
from daemon.api.gateway.records import PutRecords
from daemon.api.gateway.refusal import Header, Refusal
from daemon.api.gateway.reply import Reply, common_headers, text_reply
from daemon.api.gateway.request import MAX_PATH_BYTES, MAX_QUERY_BYTES, joined, read_request
from protocols.addresses import is_loopback
from protocols.delegated_routing import JSON, NDJSON, PATH, RECORD, filtered, peer_record, protocols_of
from protocols.errors import Malformed, Remote
from protocols.ipns import name_text, parse_name
from protocols.net import PeerInfo
from storage.cid import Cid
from storage.errors import InvalidCid
from storage.keys import PeerId

MAX_FILTERS: Final = 32
MAX_PARAMS: Final = 8
# What is public may be made private at any time, so it is remembered for less long than the standard proposes.
_CACHE: Final = "public, max-age=60, stale-while-revalidate=3600, stale-if-error=3600"
_CACHE_NOTHING: Final = "public, max-age=15"
_CACHE_NO_RECORD: Final = "public, max-age=60"
_ANYTHING: Final = ("", "*/*", "application/*")
_PREFLIGHT: Final = [
    ("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS, PUT"),
    ("Access-Control-Allow-Headers", "Accept, Content-Type"),
    ("Access-Control-Max-Age", "86400"),
]


@dataclass(frozen=True, slots=True)
class Routing:
    """What is told: who this node is, where, and by what URL its gateway is reached. `addresses` have no IO.

    `records` takes those of names, where it does (PUT).
    """

    site: Site
    peer: PeerId
    addresses: Callable[[], Sequence[str]]
    gateway_url: str
    records: PutRecords | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """A request, read; `body` as far as it is read, and `client` who sends it."""

    method: str
    path: bytes
    query: bytes
    headers: Sequence[tuple[bytes, bytes]] = field(default=())
    body: bytes = b""
    client: str = ""


def is_routing(path: bytes) -> bool:
    """Is this path one of the routing API?"""
    return path.startswith(b"/routing/")


def answer_routing(routing: Routing, wish: Wish, addresses: Sequence[str], unix_s: float) -> Reply:
    """What is said to a request; `addresses` are those of `routing` at this moment."""
    try:
        return _answer(routing, wish, addresses, unix_s)
    except Refusal as refusal:
        return refused(refusal)


def own_addresses(addresses: Iterable[str], gateway_url: str) -> tuple[str, ...]:
    """Where a node and its gateway are, as others would dial them; this machine's own loopback only where that is all.

    A gateway that listens on every interface is where the node is.
    """
    texts = [address.partition("/p2p/")[0] for address in addresses]
    where = urlsplit(gateway_url)
    host = where.hostname or ""
    hosts = [(text.split("/")[1], text.split("/")[2]) for text in texts if text.startswith(("/ip4/", "/ip6/"))]
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - recognised, not bound
        hosts = [("ip6" if ":" in host else "ip4", host)] if host[:1].isdigit() or ":" in host else [("dns", host)]
    texts += [f"/{kind}/{name}/tcp/{where.port}/http" for kind, name in hosts]
    wide = [text for text in texts if not is_loopback(text.split("/")[2])]
    return tuple(dict.fromkeys(wide or texts))


def _answer(routing: Routing, wish: Wish, addresses: Sequence[str], unix_s: float) -> Reply:
    if wish.method == "OPTIONS":
        return Reply(204, [*common_headers(), *_PREFLIGHT])
    if wish.method == "PUT" and routing.records is not None:
        return _take(routing.records, wish, unix_s)
    if wish.method not in ("GET", "HEAD"):
        raise Refusal(501, "this router only answers: it takes no records")
    if len(wish.path) > MAX_PATH_BYTES or len(wish.query) > MAX_QUERY_BYTES:
        raise Refusal(414, f"the path or the query is over {MAX_PATH_BYTES} bytes")
    kind, name = _parts(wish.path)
    if kind == "ipns":
        return _record(routing, name, wish, unix_s)
    is_here = _has(routing.site, _cid(name)) if kind == "providers" else _peer(name) == routing.peer
    own = own_addresses(addresses, routing.gateway_url)
    record = filtered(
        peer_record(PeerInfo(routing.peer, own), protocols_of(own)),
        _filter(wish.query, b"filter-addrs"),
        _filter(wish.query, b"filter-protocols"),
    )
    found = [record] if is_here and record is not None else []
    return _records("Providers" if kind == "providers" else "Peers", found, wish.headers)


def takes(routing: Routing, method: str, path: bytes) -> bool:
    """Is the body of such a request to be read?"""
    return routing.records is not None and method == "PUT" and path.startswith(f"{PATH}/ipns/".encode())


def _take(records: PutRecords, wish: Wish, unix_s: float) -> Reply:
    """Keep the record of a name."""
    if len(wish.path) > MAX_PATH_BYTES:
        raise Refusal(414, f"the path is over {MAX_PATH_BYTES} bytes")
    kind, name = _parts(wish.path)
    if kind != "ipns":
        raise Refusal(501, "this router takes records of names alone")
    if joined(wish.headers).get("content-type", "").partition(";")[0].strip().lower() != RECORD:
        raise Refusal(406, f"records are taken as they are: Content-Type: {RECORD}")
    try:
        records.put(_peer(name), wish.body, wish.client, unix_s)
    except Remote as error:
        raise Refusal(400, f"the record is not taken: {error}") from None
    return Reply(200, [*common_headers(), ("Content-Type", "text/plain; charset=utf-8")], iter(()), 0)


def _has(site: Site, cid: Cid) -> bool:
    """What a CID holds inside of itself, nobody provides."""
    return cid.inline is None and site.store.has(cid)


def _parts(path: bytes) -> tuple[str, str]:
    text = path.decode("ascii", "replace").removeprefix(f"{PATH}/")
    kind, _, name = text.partition("/")
    if not path.startswith(f"{PATH}/".encode()) or kind not in ("providers", "peers", "ipns") or not name:
        raise Refusal(400, f"there are {PATH}/providers/CID, {PATH}/peers/PEER and {PATH}/ipns/NAME")
    return kind, name


def _cid(text: str) -> Cid:
    try:
        return Cid.parse(text)
    except InvalidCid as error:
        raise Refusal(422, f"that is no CID: {error}") from None


def _peer(text: str) -> PeerId:
    try:
        return parse_name(text)
    except Malformed as error:
        raise Refusal(422, str(error)) from None


def _filter(query: bytes, name: bytes) -> tuple[str, ...]:
    try:
        pairs = dict(parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_PARAMS))
    except ValueError:
        raise Refusal(422, f"the query cannot be read, or has over {MAX_PARAMS} parameters") from None
    names = [part.strip().lower() for part in pairs.get(name.decode(), "").split(",") if part.strip()]
    if len(names) > MAX_FILTERS:
        raise Refusal(422, f"a filter has over {MAX_FILTERS} names")
    return tuple(names)


def _records(what: str, records: list[dict[str, Any]], headers: Iterable[tuple[bytes, bytes]]) -> Reply:
    if not records:
        return _nothing("there are no records of that here", _CACHE_NOTHING)
    is_stream = NDJSON in joined(headers).get("accept", "").lower()
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    body = (lines if is_stream else json.dumps({what: records})).encode()
    said: list[Header] = [
        ("Content-Type", NDJSON if is_stream else JSON),
        ("Cache-Control", _CACHE),
        ("Vary", "Accept"),
    ]
    return Reply(200, [*said, *common_headers()], iter((body,)), len(body))


def _record(routing: Routing, name: str, wish: Wish, unix_s: float) -> Reply:
    """The record of a name, as the gateway gives it; or one that was put here, which is everybody's to see."""
    accepted = [part.partition(";")[0].strip().lower() for part in joined(wish.headers).get("accept", "").split(",")]
    if not {RECORD, *_ANYTHING} & set(accepted):
        raise Refusal(406, f"records are given as they are: Accept: {RECORD}")
    peer = _peer(name)
    if routing.records is not None and (raw := routing.records.better(peer, unix_s)) is not None:
        said: list[Header] = [("Content-Type", RECORD), ("Cache-Control", _CACHE_NO_RECORD), ("Vary", "Accept")]
        return Reply(200, [*said, *common_headers()], iter((raw,)), len(raw))
    kept = [pair for pair in wish.headers if pair[0].lower() == b"if-none-match"]
    asked = read_request(f"/ipns/{name_text(peer)}".encode(), b"format=ipns-record", kept)
    reply = answer(routing.site, asked, unix_s)
    return _nothing("there is no valid record of that name here", _CACHE_NO_RECORD) if reply.status == 404 else reply


def _nothing(text: str, cache: str) -> Reply:
    reply = text_reply(404, text)
    reply.headers = [
        ("Cache-Control", cache) if name == "Cache-Control" else (name, value) for name, value in reply.headers
    ]
    return reply
