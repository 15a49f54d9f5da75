"""The control API from the other side: standard library only, for it starts with every command."""

import http.client
import io
import json
import select
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from daemon.api.faults import ANSWER_HEADER, Fault
from daemon.paths import Home

CONNECT_LIMIT_S: Final = 5.0
MAX_LINE_BYTES: Final = 32 << 20
MAX_ANSWER_BYTES: Final = 256 << 20
CHUNK_BYTES: Final = 64 << 10

LOOK_BACK_EVENTS: Final = 50
CUT: Final = Fault("cut_short", "what came is not all: the daemon broke off", "See why: covey events; covey logs")
STOPPED: Final = Fault("connection_lost", "the daemon stopped before it had answered", "See why: covey logs")

Json = Any
Wait = Callable[[socket.socket], None]  # returns when there is something to read


class NotRunning(Exception):
    """No daemon answers in this home."""

    def __init__(self, home: Home) -> None:
        super().__init__(f"the daemon is not running in {home.root}. Start it: covey up")


class Unread(Exception):
    """Nobody reads what is printed any more."""


class Refused(Exception):
    """The daemon answered with an error."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


def while_read(opened: socket.socket) -> None:
    """Wait until something comes, while somebody reads our output. Raises: Unread.

    Who reads may have had enough (`covey fl watch CID | head -1`): the next line would show it, and may never come.
    """
    looking = select.poll()
    looking.register(opened, select.POLLIN)
    with suppress(io.UnsupportedOperation):  # an output that is no file
        looking.register(sys.stdout.fileno(), 0)  # its end is told unasked
    ended = select.POLLERR | select.POLLHUP  # no more: of a terminal macOS says that it cannot look at such
    if any(found != opened.fileno() and events & ended for found, events in looking.poll()):
        raise Unread


class _Socket(socket.socket):
    """A socket that waits in a way of its own before it reads."""

    wait: Wait | None = None

    def recv_into(self, *arguments: Any) -> int:
        """Read once there is something to read."""
        if self.wait is not None:
            self.wait(self)
        return super().recv_into(*arguments)


class _Connection(http.client.HTTPConnection):
    def __init__(self, home: Home, wait: Wait | None = None) -> None:
        super().__init__("localhost")
        self._home = home
        self._wait = wait

    def connect(self) -> None:
        """Connect to the home's socket. Raises: NotRunning."""
        self.sock = opened = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
        opened.wait = self._wait
        opened.settimeout(CONNECT_LIMIT_S)
        try:
            opened.connect(str(self._home.socket))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(self._home) from None
        except OSError as error:
            error.filename = error.filename or str(self._home.socket)  # of a socket the system names no file
            raise
        opened.settimeout(None)


def call(
    home: Home, name: str, params: Json = None, *, timeout_s: float | None = None, wait: Wait | None = None
) -> Json:
    """Run one operation (`noun/verb`) and return its result. Raises: NotRunning, Refused, TimeoutError, and `wait`'s.

    `wait` is called before each read and may end it by an error; without it, only the socket's own waiting is done.
    """
    with _request(home, name, params, timeout_s, wait) as response:
        return json.loads(response.read(MAX_ANSWER_BYTES))


def stream(home: Home, name: str, params: Json = None, *, wait: Wait | None = None) -> Iterator[Json]:
    """Run an operation that streams; yield its items as they come. Raises: NotRunning, Refused, and `wait`'s."""
    with _request(home, name, params, wait=wait) as response:
        for line in _lines(response):
            item = json.loads(line)
            if isinstance(item, dict) and set(item) == {"error"}:
                raise Refused(_fault(item["error"]))
            yield item


def stream_bytes(home: Home, name: str, params: Json = None) -> Iterator[bytes]:
    """Run an operation whose result is bytes; yield them as they come. Raises: NotRunning, Refused."""
    answer = ""
    try:
        with _request(home, name, params) as response:
            answer = response.headers.get(ANSWER_HEADER, "")
            while chunk := response.read1(CHUNK_BYTES):
                yield chunk
    except Refused as error:
        raise Refused(_why_cut(home, answer) if error.fault is STOPPED else error.fault) from None


def _why_cut(home: Home, answer: str) -> Fault:
    """Why this answer ended early: half of it had gone out, so that only the daemon's events can tell."""
    try:
        found = [
            event["fields"]
            for event in stream(home, "events/read", {"last": LOOK_BACK_EVENTS})
            if event["kind"] == "answer_cut_short" and event["fields"].get("answer") == answer
        ]
    except (NotRunning, Refused):
        return STOPPED
    if not found:
        return CUT
    return Fault(str(found[-1]["code"]), f"what came is not all: {found[-1]['text']}", CUT.hint)


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Each line as it comes. `response.readline` would take a body that was cut off for one that ended."""
    held = b""
    while chunk := response.read1(CHUNK_BYTES):
        *lines, held = (held + chunk).split(b"\n")
        yield from lines
        if len(held) > MAX_LINE_BYTES:
            raise Refused(Fault("too_large", "the daemon sent a line that is too long", "Please report it."))


@contextmanager
def _request(
    home: Home, name: str, params: Json, timeout_s: float | None = None, wait: Wait | None = None
) -> Iterator[http.client.HTTPResponse]:
    connection = _Connection(home, wait)
    try:
        body = json.dumps(params or {}).encode()
        connection.connect()
        connection.sock.settimeout(timeout_s)
        connection.request("POST", f"/v1/{name}", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise Refused(_fault(_error_in(response.read(MAX_LINE_BYTES))))
        yield response
    except (http.client.HTTPException, ConnectionError) as error:
        raise Refused(STOPPED) from error
    finally:
        connection.close()


def _error_in(body: bytes) -> Json:
    try:
        return json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {"text": body[:200].decode(errors="replace") or "the daemon gave no reason"}


def _fault(error: Json) -> Fault:
    return Fault(str(error.get("code", "failed")), str(error.get("text", "")), str(error.get("hint", "")))
