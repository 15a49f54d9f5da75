"""Readers of what strangers say to a node: requests to its gateway, names and their records, addresses, frames."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Final

from daemon.api.gateway.answer import Site, answer
from daemon.api.gateway.ranges import read_ranges
from daemon.api.gateway.refusal import Refusal
from daemon.api.gateway.request import read_request
from daemon.api.gateway.routing import Routing, Wish, answer_routing
from daemon.api.gateway.view import public_view
from protocols import artifacts, cose, delegated_routing, ipns, ipns_keys, kubo_rpc
from protocols.entry import make_entry
from protocols.errors import Remote
from protocols.framing import FrameReader, frame
from protocols.ipns import make_record, name_text, read_record
from protocols.net import PeerInfo
from protocols.net_libp2p import addresses, mdns
from protocols.relay import wire as relay
from protocols.retrieval.asks import arrived_in_car
from protocols.retrieval.cars import CarFeed
from protocols.sources import HttpSource
from storage.blockstore import MadeBlock, Visibility
from storage.car.wire import header, section
from storage.cid import DAG_CBOR, DAG_PB, Cid
from storage.codecs import dag_cbor, dag_pb
from storage.codecs.dag_pb import PbLink, PbNode
from storage.errors import StorageError
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore
from storage.roots import Roots
from storage.unixfs import data as unixfs
from tests.campaigns.fuzz_reader import Reader

UNIX_S: Final = 1_800_000_000
MAX_FRAME_BYTES: Final = 4096
MAX_REPLY_BYTES: Final = 1 << 20
MAX_PIECES_READ: Final = 100

_ME: Final = Identity(bytes(range(32)))
_NAME: Final = name_text(_ME.peer_id)
_STORE: Final = MemoryBlockstore()


def _public(data: bytes, codec: int = 0x55) -> Cid:
    block = MadeBlock.of(data, codec)
    _STORE.put_many([block], floor=Visibility.PUBLIC)
    return block.cid


_LEAF: Final = _public(b"0123456789" * 5)
_FOLDER: Final = _public(
    dag_pb.encode(PbNode(unixfs.encode(unixfs.UnixFsData(unixfs.Kind.DIRECTORY)), (PbLink(_LEAF, "a b", 50),))), DAG_PB
)
_DOCUMENT: Final = _public(dag_cbor.encode({"a": [_LEAF, _FOLDER]}), DAG_CBOR)
_RECORD: Final = make_record(_ME, f"/ipfs/{_FOLDER}/a b", sequence=7, unix_s=UNIX_S)
_SITE: Final = Site(public_view(_STORE, Roots(_STORE)), {_ME.peer_id: _RECORD}.get, MAX_REPLY_BYTES)

_CAR: Final = b"application/vnd.ipld.car; version=1; order=dfs; dups=y"
# A request as one input: the path and the query, then a header a line.
_REQUESTS: Final = (
    b'/ipfs/%s/a%%20b?format=raw&filename=x%%C3%%A9.bin&download=true\nrange: bytes=0-4, -3\nif-none-match: W/"x", *'
    % str(_FOLDER).encode(),
    b"/ipfs/%s?dag-scope=entity&entity-bytes=0:*&car-dups=y\naccept: %s, */*;q=0.1" % (str(_FOLDER).encode(), _CAR),
    b"/ipfs/%s/a/0\naccept: application/vnd.ipld.dag-cbor;q=0.5, text/html\ncache-control: only-if-cached"
    % str(_DOCUMENT).encode(),
    b'/ipns/%s/?format=ipns-record\nif-range: "x"\nrange: bytes=1-' % _NAME.encode(),
    b"/ipns/%s\nrange: bytes=2-9,20-29,-1\nrange: bytes=4-" % _NAME.encode(),
)


def _asked(data: bytes) -> object:
    first, *lines = data.split(b"\n")
    path, _, query = first.partition(b"?")
    return read_request(path, query, [(name, value) for name, _, value in (line.partition(b":") for line in lines)])


def _answered(data: bytes) -> object:
    """Read a request, and the reply up to its end: nothing but what is no request may raise before the body."""
    reply = answer(_SITE, _asked(data), UNIX_S)  # type: ignore[arg-type]
    for name, value in reply.headers:
        if any(char in name + value for char in "\r\n\0"):
            raise AssertionError(f"a header is split: {name}: {value!r}")
    return [len(piece) for piece in islice(reply.body, MAX_PIECES_READ)]


def _field(number: int, body: bytes) -> bytes:
    return bytes([number << 3 | 2]) + frame(body)


def _legacy_record() -> bytes:
    """A record with the copies of version 1, and with its key."""
    value, validity = f"/ipfs/{_FOLDER}".encode(), ipns.validity_text((UNIX_S + 60) * 10**9).encode()
    data = dag_cbor.encode({"Value": value, "Validity": validity, "ValidityType": 0, "Sequence": 5, "TTL": 9})
    key = _ME.peer_id[2:]
    return b"".join(
        (
            _field(1, value),
            _field(2, bytes(64)),
            b"\x18\x00",
            _field(4, validity),
            b"\x28\x05\x30\x09",
            _field(7, key),
            _field(8, _ME.sign(b"ipns-signature:" + data)),
            _field(9, data),
        )
    )


def _unsigned(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """The parts of a record behind its signature are read as if it fitted: else hardly an input got that far."""

    def of(data: bytes) -> object:
        return read(_field(8, _ME.sign(b"ipns-signature:" + data)) + _field(9, data))

    return of


def _record(data: bytes) -> object:
    return read_record(data, _ME.peer_id, UNIX_S)


_RECORD_DATA: Final = dag_cbor.encode(
    {
        "Value": b"/ipfs/x",
        "Validity": b"2030-01-02T03:04:05.123456789Z",
        "ValidityType": 0,
        "Sequence": 1 << 40,
        "TTL": 3 * 10**11,
    }
)


def _rsa_name() -> tuple[bytes, ...]:
    """An RSA key and a secp256k1 key as libp2p writes them."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    numbers = rsa.RSAPublicNumbers(65537, (1 << 2047) + 1789)
    der = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    point = ec.derive_private_key(7, ec.SECP256K1()).public_key()
    raw = point.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    curve = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    other = curve.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return tuple(bytes((8, kind, 18)) + frame(key) for kind, key in ((0, der), (2, raw), (3, other)))


def _key(data: bytes) -> object:
    key = ipns_keys.PublicKey.read(data)
    return key.names, key.verifies(bytes(64), b"data")


def _latin(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("latin-1"))


_PARENT: Final = Cid.of(b"parent", DAG_CBOR)


def _artifact(kind: str) -> bytes:
    made = artifacts.KINDS[kind](
        name="name",
        version=2,
        files=_LEAF,
        n_bytes=50,
        parents=(artifacts.Parent(entry=_PARENT, role="previous"),),
        metrics={"loss": 1.5},
        created_unix_s=UNIX_S,
    )
    return bytes([list(artifacts.KINDS).index(kind)]) + dag_cbor.encode(artifacts.artifact_content(made))


def _read_artifact(data: bytes) -> object:
    """The kind is the first byte, the content the rest, in an entry that its publisher signed all the same."""
    kinds = list(artifacts.KINDS)
    content = dag_cbor.decode(data[1:])
    if not isinstance(content, dict):
        return None
    return artifacts.describe(make_entry(_ME, kinds[data[0] % len(kinds)], "name", 3, [_PARENT], content))


def _frames(data: bytes) -> object:
    reader = FrameReader(MAX_FRAME_BYTES)
    cut = len(data) // 3
    return [len(message) for part in (data[:cut], data[cut:]) for message in reader.feed(part)]


def _lines(data: bytes) -> object:
    lines = kubo_rpc.Lines()
    cut = len(data) // 3
    return [*lines.feed(data[:cut]), *lines.feed(data[cut:]), *lines.rest()]


def _blocks_of_dag(data: bytes) -> object:
    feed = CarFeed()
    cut = len(data) // 3
    found = [block for part in (data[:cut], data[cut:]) for block in feed.feed(part)]
    assert all(block.cid.matches(block.data) for block in found)
    return found, feed.is_cut_off


_ADDRESS: Final = f"/ip4/192.0.2.7/tcp/4701/p2p/{_ME.peer_id}"
_CIRCUIT: Final = f"{_ADDRESS}/p2p-circuit/p2p/{_ME.peer_id}"
_AAD: Final = b"purpose"
_ROUTING: Final = Routing(_SITE, _ME.peer_id, list, "http://127.0.0.1:4702")
_PEER: Final = (
    b'{"Schema": "peer", "ID": "%s", "Addrs": ["/ip4/192.0.2.7/tcp/4701", "/dns/x/tcp/443/https"], "Protocols": ["a"]}'
    % str(_ME.peer_id).encode()
)


def _routed(data: bytes) -> object:
    target, *lines = data.split(b"\n")
    path, _, query = target.partition(b"?")
    return answer_routing(_ROUTING, Wish("GET", path, query, [(b"accept", line) for line in lines]), [_ADDRESS], UNIX_S)


READERS: Final = (
    Reader("gateway-request", _asked, (Refusal,), _REQUESTS),
    Reader("gateway-answer", _answered, (Refusal, StorageError), _REQUESTS),
    Reader(
        "gateway-range",
        _latin(lambda text: read_ranges(text, 1000)),
        (Refusal,),
        (b"bytes=0-499", b"bytes= 1-2, 5-,-7", b"bytes=-500"),
    ),
    Reader("ipns-record", _record, (Remote,), (_RECORD, _legacy_record())),
    Reader("ipns-signed", _unsigned(_record), (Remote,), (_RECORD_DATA,)),
    Reader("ipns-key", _key, (Remote,), (_ME.peer_id[2:], *_rsa_name())),
    Reader("ipns-name", _latin(ipns.parse_name), (Remote,), (_NAME.encode(), str(PeerId(_ME.peer_id)).encode())),
    Reader(
        "ipns-validity",
        _latin(ipns.parse_validity),
        (Remote,),
        (b"2030-01-02T03:04:05.123456789Z", b"2030-01-02T03:04:05+01:30"),
    ),
    Reader("artifact", _read_artifact, (Remote, StorageError), tuple(map(_artifact, artifacts.KINDS))),
    Reader("cose", lambda data: cose.verify(data, _AAD), (Remote,), (cose.sign(_ME, b"payload", _AAD),)),
    Reader(
        "cose-detached",
        lambda data: cose.verify_detached(data, b"payload", _AAD),
        (Remote,),
        (cose.sign_detached(_ME, b"payload", _AAD),),
    ),
    Reader("frames", _frames, (Remote,), (frame(b"x" * 200) + frame(b"") + frame(b"y" * 9),)),
    Reader("peer-address", _latin(PeerInfo.parse), (Remote,), (_ADDRESS.encode(), str(_ME.peer_id).encode())),
    Reader(
        "multiaddr", _latin(addresses.parse), (), (_ADDRESS.encode(), b"/dns4/example.org/tcp/443/wss", b"/ip6/::1")
    ),
    Reader("addresses", _latin(lambda text: addresses.to_texts([text])), (), (_ADDRESS.encode(), _CIRCUIT.encode())),
    Reader(
        "relay-hop",
        partial(relay.read, relay.HOP_FORM),
        (Remote,),
        (
            relay.write(relay.HOP_FORM, relay.Message(relay.Kind.CONNECT, _ME.peer_id)),
            relay.write(relay.HOP_FORM, relay.Message(relay.Kind.STATUS, None, UNIX_S, relay.Limit(120, 1 << 17), 100)),
        ),
    ),
    Reader(
        "relay-stop",
        partial(relay.read, relay.STOP_FORM),
        (Remote,),
        (relay.write(relay.STOP_FORM, relay.Message(relay.Kind.CONNECT, _ME.peer_id, None, relay.Limit(1, 2), 100)),),
    ),
    Reader("mdns-txt", mdns.read_txt, (), (mdns.write_txt([_ADDRESS, f"/ip6/::1/tcp/1/p2p/{_ME.peer_id}"]),)),
    Reader("router-peer", delegated_routing.read_peer, (), (_PEER.replace(b'"a"', b'"transport-bitswap"'), _PEER)),
    Reader("router-peers", delegated_routing.read_peers, (Remote,), (b'{"Providers": [%s, %s]}' % (_PEER, _PEER),)),
    Reader(
        "routing-request",
        _routed,
        (),
        (
            b"/routing/v1/providers/%s?filter-addrs=tcp,!http&filter-protocols=unknown\napplication/x-ndjson"
            % str(_LEAF).encode(),
            b"/routing/v1/ipns/%s\napplication/vnd.ipfs.ipns-record" % _NAME.encode(),
            b"/routing/v1/peers/%s" % _NAME.encode(),
        ),
    ),
    Reader(
        "http-source",
        _latin(HttpSource.parse),
        (Remote,),
        (b"https://gate.example:8443/below/", b"kubo+http://[::1]:5001"),
    ),
    Reader(
        "http-address",
        _latin(HttpSource.of_address),
        (),
        (b"/dns4/gate.example/tcp/443/tls/http", b"/ip6/::1/tcp/80/http/p2p/x"),
    ),
    Reader(
        "car-of-a-block",
        lambda data: arrived_in_car(_LEAF, data),
        (Remote,),
        (header([_LEAF]) + section(_LEAF, b"0123456789" * 5),),
    ),
    Reader(
        "car-of-a-dag",
        _blocks_of_dag,
        (Remote,),
        (header([_LEAF]) + section(_LEAF, b"0123456789" * 5) + section(Cid.of(b"x"), b"x"), header([_LEAF])),
    ),
    Reader("kubo-lines", _lines, (Remote,), (b'{"a": 1}\n\n{"b": 2}\n{"c"',)),
)
