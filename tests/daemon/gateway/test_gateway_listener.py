"""The listener: it serves over real sockets, and gives up on clients that do not end what they begin."""

import socket
import tracemalloc
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair

from daemon.api import served
from daemon.api.gateway.answer import Site
from daemon.api.gateway.asgi import BrokenOff, GatewayApp, Limits
from daemon.api.gateway.view import public_view
from daemon.api.served import PacedStream, Patience, http_served
from daemon.api.shares import Shares
from daemon.errors import BadConfig
from protocols.ipns import name_text
from storage.blockstore import MadeBlock, Visibility
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from storage.roots import Roots

WAIT_S = 20


@pytest.fixture
def store():
    return MemoryBlockstore()


class Watched(GatewayApp):
    """Tells when its first request begins, and when one is over."""

    def __init__(self, *args):
        super().__init__(*args)
        self.is_begun, self.is_over = trio.Event(), trio.Event()

    async def __call__(self, scope, receive, send):
        self.is_begun.set()
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.is_over.set()


@pytest.fixture
def app(store):
    return Watched(Site(public_view(store, Roots(store)), {}.get, 1 << 36), lambda: 1.8e9)


def put(store, data):
    block = MadeBlock.of(data)
    store.put_many([block], floor=Visibility.PUBLIC)
    return block.cid


def scope_of(path, query=b"", version="1.1"):
    return {
        "type": "http",
        "http_version": version,
        "method": "GET",
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [],
    }


def connect(url):
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=WAIT_S)


def said(url, request):
    """Send bytes; everything that comes until the other side closes."""
    with connect(url) as connection:
        connection.sendall(request)
        return rest(connection)


def rest(connection):
    received = b""
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionResetError:
        received += b"<reset>"
    return received


async def exchanged(url, request):
    return await trio.to_thread.run_sync(partial(said, url, request))


async def test_it_serves_over_a_socket_and_a_connection_is_used_again(store, app):
    cid = put(store, b"hello")
    one = f"GET /ipfs/{cid} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    last = f"HEAD /ipfs/{cid} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    async with http_served(app, "127.0.0.1", 0) as url:
        received = await exchanged(url, one + last)
    assert received.count(b"HTTP/1.1 200") == 2
    assert received.count(b"hello") == 1


async def test_what_is_no_http_is_refused(app):
    async with http_served(app, "127.0.0.1", 0) as url:
        assert b"HTTP/1.1 400" in await exchanged(url, b"nonsense\r\n\r\n")
        assert b"HTTP/1.1 431" in await exchanged(url, b"GET / HTTP/1.1\r\nX: " + b"a" * (served.MAX_HEAD_BYTES + 1))
        upgrade = b"GET /ipfs/x HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        assert b"101" not in (await exchanged(url, upgrade + key)).split(b"\r\n")[0]


@asynccontextmanager
async def connected(app, patience):
    """A connection in memory, on the virtual clock; the socket is asked for its names alone."""
    ours, theirs = memory_stream_pair()
    ours.socket, other = trio.socket.socketpair()
    with ours.socket, other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served._serve_connection, app, set(), Shares(1), patience, ours)
            yield theirs
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("begun", [b"", b"GET /ipfs/x HTTP/1.1\r\nHost:"])
async def test_a_head_that_never_ends_is_cut(app, autojump_clock, begun):
    async with connected(app, Patience(head_s=7)) as client:
        began_s = trio.current_time()
        await client.send_all(begun)
        assert await client.receive_some() == b""
        assert trio.current_time() - began_s == 7


async def test_a_head_that_drips_is_cut_too(app, autojump_clock):
    """One byte after the other: each is in time, the head never is."""

    async def drip(client):
        with suppress(trio.BrokenResourceError):
            for byte in b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50:
                await client.send_all(bytes([byte]))
                await trio.sleep(1)

    async with connected(app, Patience(head_s=7)) as client, trio.open_nursery() as nursery:
        began_s = trio.current_time()
        nursery.start_soon(drip, client)
        assert await client.receive_some() == b""
        assert trio.current_time() - began_s == 7


async def test_a_client_that_stops_reading_is_cut(store, app):
    cid = put(store, b"x" * (2 << 20))
    root = MadeBlock.of(dag_cbor.encode([cid] * 40), DAG_CBOR)
    store.put_many([root], floor=Visibility.PUBLIC)
    request = f"GET /ipfs/{root.cid}?format=car&car-dups=y HTTP/1.1\r\nHost: x\r\n\r\n".encode()

    def stall(url, is_over):
        with connect(url) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(request)
            trio.from_thread.run(is_over.wait)
            return len(rest(connection))

    async with http_served(app, "127.0.0.1", 0, Patience(stall_s=0.3)) as url, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, stall, url, app.is_over)
        with trio.fail_after(WAIT_S):
            await app.is_over.wait()
    assert app.n_running == 0


async def test_a_stalled_piece_closes_the_connection(autojump_clock):
    ours, _theirs = lockstep_stream_pair()
    ours.socket = None
    stream = PacedStream(ours, served.STALL_LIMIT_S)
    began_s = trio.current_time()
    with pytest.raises(trio.BrokenResourceError, match="does not read"):
        await stream.send_all(b"x")
    assert trio.current_time() - began_s == served.STALL_LIMIT_S
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")


async def test_a_slow_reader_that_takes_each_piece_in_time_gets_all(autojump_clock):
    ours, theirs = lockstep_stream_pair()
    ours.socket = None
    stream = PacedStream(ours, served.STALL_LIMIT_S)
    n_bytes = 5 * served.SEND_BYTES
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, b"x" * n_bytes)
        while n_bytes:
            await trio.sleep(served.STALL_LIMIT_S / 2)
            n_bytes -= len(await theirs.receive_some(served.SEND_BYTES))


async def test_connections_beyond_the_limit_are_closed(app):
    async with http_served(app, "127.0.0.1", 0, Patience(n_connections=1)) as url:
        with connect(url) as first:
            first.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await trio.to_thread.run_sync(first.recv, 1)  # it is answered, and stays
            assert await exchanged(url, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") in (b"", b"<reset>")


async def test_stopping_does_not_wait_for_clients(store, app):
    cid = put(store, b"x" * (2 << 20))
    root = MadeBlock.of(dag_cbor.encode([cid] * 40), DAG_CBOR)
    store.put_many([root], floor=Visibility.PUBLIC)
    with trio.fail_after(WAIT_S):
        async with http_served(app, "127.0.0.1", 0) as url:
            connection = connect(url)
            request = f"GET /ipfs/{root.cid}?format=car&car-dups=y HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            await trio.to_thread.run_sync(connection.sendall, request)
            await app.is_begun.wait()
    received = await trio.to_thread.run_sync(rest, connection)
    connection.close()
    assert not received.endswith(b"\r\n0\r\n\r\n")


async def test_a_stream_that_breaks_off_lacks_its_end(store, app):
    root = MadeBlock.of(dag_cbor.encode([Cid.of(b"never")]), DAG_CBOR)
    store.put_many([root], floor=Visibility.PUBLIC)
    request = f"GET /ipfs/{root.cid}?format=car HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with http_served(app, "127.0.0.1", 0) as url:
        received = await exchanged(url, request)
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n")


async def test_a_port_that_is_taken_is_told_with_its_setting(app):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(BadConfig, match="covey config set gateway"):
        async with http_served(app, "127.0.0.1", other.getsockname()[1]):
            pass


async def test_an_address_of_version_6_stands_in_brackets(app):
    async with http_served(app, "::1", 0) as url:
        assert url.startswith("http://[::1]:")


async def test_requests_beyond_the_limit_are_told_to_come_again(store, app, ask_app):
    cid = put(store, b"x")
    busy = GatewayApp(app.site, lambda: 1.8e9, Limits(n_requests=0))
    for method in ("GET", "HEAD"):
        reply = await ask_app(busy, method, f"/ipfs/{cid}")
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")


async def test_a_reply_over_its_time_is_broken_off(store, app, ask_app, autojump_clock):
    cid = put(store, b"x" * 1000)
    slow = GatewayApp(app.site, lambda: 1.8e9, Limits(request_s=10))

    async def send_slowly(message):
        await trio.sleep(60)

    scope = scope_of(f"/ipfs/{cid}", b"")
    began_s = trio.current_time()
    with pytest.raises(BrokenOff):
        await slow(scope, trio.sleep_forever, send_slowly)
    assert trio.current_time() - began_s == 10
    assert slow.n_running == 0


async def test_a_client_that_goes_away_ends_its_request(store, app, autojump_clock):
    cid = put(store, b"x")
    sent = []

    async def gone():
        await trio.sleep(1)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        await trio.sleep_forever()

    scope = scope_of(f"/ipfs/{cid}", b"")
    await app(scope, gone, send)
    assert len(sent) == 1
    assert app.n_running == 0


async def test_other_versions_of_http_and_other_protocols_are_not_served(app, ask_app):
    await app({"type": "websocket"}, trio.sleep_forever, trio.sleep_forever)
    replies = []

    async def send(message):
        await trio.lowlevel.checkpoint()
        replies.append(message)

    await app(scope_of("/", version="2"), trio.sleep_forever, send)
    assert replies[0]["status"] == 505


async def test_a_bug_ends_its_own_request_alone(app, ask_app):
    def broken(_name):
        raise ZeroDivisionError("a secret")

    site = Site(app.site.store, broken, 1)
    with pytest.raises(BrokenOff):
        await ask_app(GatewayApp(site, lambda: 1.8e9), "GET", f"/ipns/{name_text(Identity(b'1' * 32).peer_id)}")


class Generated(MemoryBlockstore):
    """Blocks of 1 MiB that are made when they are read."""

    def __init__(self, n_leaves):
        super().__init__()
        self.leaves = {Cid.of(self._bytes(index)): index for index in range(n_leaves)}

    def _bytes(self, index):
        return index.to_bytes(4) * (1 << 18)

    def get(self, cid):
        return self._bytes(self.leaves[cid]) if cid in self.leaves else super().get(cid)

    def seen(self, cid):
        return super().seen(ANY) if cid in self.leaves else super().seen(cid)


ANY = Cid.of(b"any")


async def test_a_long_car_takes_little_memory():
    store = Generated(60)
    root = MadeBlock.of(dag_cbor.encode(list(store.leaves)), DAG_CBOR)
    store.put_many([root, MadeBlock.of(b"any")], floor=Visibility.PUBLIC)
    app = GatewayApp(Site(public_view(store, Roots(store)), {}.get, 1 << 36), lambda: 1.8e9)
    n_bytes = 0

    async def send(message):
        nonlocal n_bytes
        await trio.lowlevel.checkpoint()
        n_bytes += len(message.get("body", b""))

    scope = scope_of(f"/ipfs/{root.cid}", b"format=car")
    tracemalloc.start()
    try:
        await app(scope, trio.sleep_forever, send)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_bytes > 60 << 20
    assert peak < 8 << 20


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
async def test_an_address_of_another_machine_is_told_by_its_setting(app, host):
    with pytest.raises(BadConfig, match=r"covey config set gateway\.host 127\.0\.0\.1$"):
        async with http_served(app, host, 0):
            pass
