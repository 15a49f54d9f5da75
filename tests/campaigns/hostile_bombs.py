"""A server over HTTP that gives everything but what it is asked for: a gateway, and a router."""

import contextlib
import gzip
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

DRIP_S: Final = 0.5


class Bomber(BaseHTTPRequestHandler):
    """A gateway and a router that answer as the server's `mode` says: none of it is what was asked for."""

    server: "BombServer"

    def do_HEAD(self) -> None:
        """Claims to have everything."""
        self.send_response(200)
        self.send_header("content-type", "application/vnd.ipld.raw")
        self.send_header("content-length", "1000")
        self.end_headers()

    def do_GET(self) -> None:
        """Answers."""
        self.server.n_asked += 1
        with contextlib.suppress(OSError):
            getattr(self, f"_{self.server.mode}")()

    def _begin(self, **headers: str) -> None:
        self.send_response(200)
        for name, value in ({"content_type": "application/vnd.ipld.raw"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _gzip(self) -> None:
        """A GiB, in a megabyte."""
        bomb = self.server.bomb
        self._begin(content_encoding="gzip", content_length=str(len(bomb)))
        self.wfile.write(bomb)

    def _endless(self) -> None:
        self._begin()
        while not self.server.is_over.is_set():
            self.wfile.write(bytes(1 << 16))

    def _drip(self) -> None:
        self._begin(content_length="1000")
        while not self.server.is_over.is_set():
            self.wfile.write(b"x")
            time.sleep(DRIP_S)

    def _other(self) -> None:
        self._begin(content_length="1000")
        self.wfile.write(secrets.token_bytes(1000))

    def _headers(self) -> None:
        self.send_response(200)
        while not self.server.is_over.is_set():
            self.wfile.write(b"x-more: " + b"y" * 8000 + b"\r\n")

    def _redirect(self) -> None:
        self.send_response(302)
        self.send_header("location", self.path + "x")
        self.send_header("content-length", "0")
        self.end_headers()

    def _providers(self) -> None:
        """An answer of a router, of records without end."""
        self._begin(content_type="application/json")
        self.wfile.write(b'{"Providers": [')
        row = json.dumps({"Schema": "peer", "ID": "x" * 50, "Addrs": ["/ip4/127.0.0.1/tcp/1"] * 100}).encode()
        while not self.server.is_over.is_set():
            self.wfile.write(row + b",")

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class BombServer(ThreadingHTTPServer):
    """What answers, and how."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Bomber)
        self.mode = "other"
        self.n_asked = 0
        self.is_over = threading.Event()
        self.bomb = gzip.compress(bytes(64 << 20)) * 16

    def handle_error(self, *_: Any) -> None:
        """Its clients go away in the middle; that is what they should do."""


MODES: Final = ("gzip", "endless", "drip", "other", "headers", "redirect", "providers")


@contextmanager
def bombing() -> Iterator[BombServer]:
    """A hostile server, while the block runs."""
    server = BombServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_over.set()
        server.shutdown()
        server.server_close()
