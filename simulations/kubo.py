"""A Kubo of the moment: the part of its RPC API that Covey uses, over HTTP on loopback, written from the reference.

It stores what it is given, keeps pins, and answers, refuses and streams in the forms of the reference
(docs.ipfs.tech/reference/kubo/rpc). `lies` replace the answer of a path: (status, body). `calls` notes every call.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from storage.blockstore import Block
from storage.cid import Cid
from storage.codecs import CODECS, links
from storage.dag import reach
from storage.errors import StorageError
from storage.memory import MemoryBlockstore

VERSION: Final = "0.99.0-sim"
_HASH_CODES: Final = {"sha2-256": 0x12, "sha2-512": 0x13, "blake3": 0x1E, "blake2b-256": 0xB220}
_PART: Final = re.compile(rb'name="file"[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n', re.IGNORECASE)


class Refused(Exception):
    """What becomes {Message, Code, Type} with a status of 500."""


class FakeKubo:
    """The state behind the API."""

    def __init__(self) -> None:
        self.store = MemoryBlockstore()
        self.pins: dict[Cid, tuple[str, str]] = {}
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.lies: dict[str, tuple[int, bytes]] = {}
        self.api = ""

    def answer(self, path: str, params: dict[str, str], body: bytes, kind: str) -> Iterator[bytes]:
        """The pieces of an answer. Raises: Refused, KeyError for no such path."""
        handlers = {
            "version": self._version,
            "block/get": self._get,
            "block/put": self._put,
            "pin/add": self._pin,
            "pin/rm": self._unpin,
            "pin/ls": self._pins,
        }
        return handlers[path](params, body, kind)

    def _version(self, _params: dict[str, str], _body: bytes, _kind: str) -> Iterator[bytes]:
        yield _json({"Version": VERSION, "Commit": "abc", "Repo": "16", "System": "amd64/linux", "Golang": "go1.25"})

    def _get(self, params: dict[str, str], _body: bytes, _kind: str) -> Iterator[bytes]:
        cid = _cid(params)
        if not self.store.has(cid):
            raise Refused(f"block was not found locally (offline): ipld: could not find {cid}")
        yield self.store.get(cid)

    def _put(self, params: dict[str, str], body: bytes, kind: str) -> Iterator[bytes]:
        codec = next(one.code for one in CODECS.values() if one.name == params.get("cid-codec", "raw"))
        for data in _files(body, kind):
            if len(data) > 1 << 20 and params.get("allow-big-block") != "true":
                raise Refused("produced block is over 1MiB: big blocks can't be exchanged with other peers")
            cid = Cid.of(data, codec, _HASH_CODES[params.get("mhtype", "sha2-256")])
            self.store.put_many([Block(cid, data)])
            yield _json({"Key": str(cid), "Size": len(data)})

    def _pin(self, params: dict[str, str], _body: bytes, _kind: str) -> Iterator[bytes]:
        cid = _cid(params)
        is_recursive = params.get("recursive", "true") == "true"
        for n_nodes, reached in enumerate(reach(self.store, cid) if is_recursive else (), 1):
            if reached.n_bytes is None:
                raise Refused(f"pin: block was not found locally (offline): ipld: could not find {reached.cid}")
            if params.get("progress") == "true":
                yield _json({"Progress": n_nodes})
        self.pins[cid] = ("recursive" if is_recursive else "direct", params.get("name", ""))
        yield _json({"Pins": [str(cid)]})

    def _unpin(self, params: dict[str, str], _body: bytes, _kind: str) -> Iterator[bytes]:
        cid = _cid(params)
        if self.pins.pop(cid, None) is None:
            raise Refused("not pinned or pinned indirectly")
        yield _json({"Pins": [str(cid)]})

    def _pins(self, params: dict[str, str], _body: bytes, _kind: str) -> Iterator[bytes]:
        for cid, (kind, name) in sorted(self.pins.items()):
            if params.get("type", "all") in ("all", kind):
                yield _json({"Cid": str(cid), "Name": name, "Type": kind})

    def is_whole(self, root: Cid) -> bool:
        """Is every block below `root` there?"""
        return all(reached.n_bytes is not None for reached in reach(self.store, root))

    def n_links(self, cid: Cid) -> int:
        """How many links a block has."""
        return len(links(cid, self.store.get(cid)))


@contextmanager
def kubo_running() -> Iterator[FakeKubo]:
    """Serve one on a free port of 127.0.0.1 until the block ends; `api` is its URL."""
    kubo = FakeKubo()

    class Handler(_Handler):
        served = kubo

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    kubo.api = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield kubo
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    served: FakeKubo
    protocol_version = "HTTP/1.1"
    timeout = 5

    def do_GET(self) -> None:
        """The API takes POST alone."""
        self._send(405, [b"405 - Method Not Allowed\n"], "text/plain")

    def do_POST(self) -> None:
        """Answer one call."""
        url = urlsplit(self.path)
        path = url.path.removeprefix("/api/v0/")
        params = {key: values[-1] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.served.calls.append((path, params))
        if path in self.served.lies:
            status, lie = self.served.lies[path]
            self._send(status, [lie], "application/json")
            return
        try:
            pieces = list(self.served.answer(path, params, body, self.headers.get("content-type", "")))
        except (Refused, StorageError) as error:
            self._send(500, [_json({"Message": str(error), "Code": 0, "Type": "error"})], "application/json")
        except KeyError:
            self._send(404, [b"404 page not found\n"], "text/plain")
        else:
            self._send(200, pieces, "text/plain" if path == "block/get" else "application/json")

    def _send(self, status: int, pieces: list[bytes], kind: str) -> None:
        """A chunked answer, as Kubo streams."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            if piece:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def _json(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _cid(params: dict[str, str]) -> Cid:
    try:
        return Cid.parse(params.get("arg", ""))
    except StorageError as error:
        raise Refused(f"invalid path {params.get('arg')!r}: {error}") from None


def _files(body: bytes, kind: str) -> Iterator[bytes]:
    """The files of a multipart body (RFC 7578). Raises: Refused."""
    found = re.fullmatch(r"multipart/form-data; boundary=([0-9A-Za-z'()+_,./:=?-]{1,70})", kind)
    if found is None:
        raise Refused("file argument 'data' is required")
    mark = b"--" + found[1].encode()
    first, *parts, last = body.split(mark)
    if first or last != b"--\r\n":
        raise Refused("multipart: NextPart: EOF")
    for part in parts:
        head = _PART.search(part)
        if not part.startswith(b"\r\n") or head is None or not part.endswith(b"\r\n"):
            raise Refused("multipart: malformed part")
        yield part[head.end() : -2]
