"""Servers over real sockets: where redirects may lead, what is private, and who does not answer."""

import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
import trio.testing

from protocols import web_http
from protocols.errors import HttpFailed, TooBig
from protocols.web import Ask, Reply, whole
from protocols.web_http import CRUMB_BYTES, MAX_CRUMBS, MAX_REDIRECTS, MAX_SITES, PIECES_A_TURN, web_opened

WAIT_S = 20
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.ipld.raw; x=y\r\nContent-Length: 5\r\n\r\nbytes"


class Site:
    """A server that answers each path with the bytes it is given; `asked` holds the heads of requests."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.says: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.n_connections = 0
        self.hangs_up = False

    async def serve(self, stream: trio.SocketStream) -> None:
        self.n_connections += 1
        held = b""
        with trio.move_on_after(WAIT_S):
            while data := await stream.receive_some(4096):
                held += data
                while b"\r\n\r\n" in held:
                    head, _, held = held.partition(b"\r\n\r\n")
                    self.asked.append(head.decode())
                    said = self.says.get(head.split(b" ")[1].decode(), OK)
                    await stream.send_all(said)
                    if self.hangs_up or not said:
                        return


@asynccontextmanager
async def listening() -> AsyncIterator[Site]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        site = Site(listeners[0].socket.getsockname()[1])
        nursery.start_soon(partial(trio.serve_listeners, site.serve, listeners))
        yield site
        nursery.cancel_scope.cancel()


def redirect(there: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode()


async def get(send: Callable, url: str, method: str = "GET", max_bytes: int = 1000) -> tuple[Reply, bytes]:
    with trio.fail_after(WAIT_S):
        async with send(Ask(url, "application/vnd.ipld.raw", method)) as reply:
            return reply, await whole(reply, max_bytes, "it")


async def test_a_named_server_is_asked_wherever_it_is_and_its_connection_is_kept():
    async with listening() as site, web_opened([site.url]) as send:
        for _ in range(3):
            reply, body = await get(send, f"{site.url}/ipfs/x?format=raw")
            assert (reply.status, reply.kind, body) == (200, "application/vnd.ipld.raw", b"bytes")
        assert site.n_connections == 1
        head = site.asked[0].lower()
        assert head.startswith("get /ipfs/x?format=raw http/1.1") and f"host: 127.0.0.1:{site.port}" in head
        assert "accept: application/vnd.ipld.raw" in head and "accept-encoding: identity" in head


async def test_what_a_server_has_a_visitor_carry_is_neither_kept_nor_sent_back():
    async with listening() as site, web_opened([site.url]) as send:
        for cookie in (b"id=7; Max-Age=1000", b"\xff=\xff"):
            site.says["/x"] = OK.replace(b"\r\n", b"\r\nSet-Cookie: " + cookie + b"\r\n", 1)
            await get(send, f"{site.url}/x")
        await get(send, f"{site.url}/x")
        assert len(site.asked) == 3 and len(set(site.asked)) == 1


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "[::ffff:10.0.0.1]"]
)
async def test_nobody_that_was_not_named_is_asked_in_a_private_network(host):
    async with web_opened(["http://127.0.0.1:1"]) as send:
        with pytest.raises(HttpFailed, match="private network"):
            await get(send, f"http://{host}:4702/")


async def test_a_redirect_within_the_named_server_is_followed():
    async with listening() as site, web_opened([site.url]) as send:
        site.says = {"/a": redirect("/b", 301), "/b": redirect(f"{site.url}/c", 307)}
        assert (await get(send, f"{site.url}/a"))[1] == b"bytes"
        assert [head.split(" ")[1] for head in site.asked] == ["/a", "/b", "/c"]


async def test_a_redirect_to_what_is_private_is_not_followed_even_on_the_same_machine():
    async with listening() as site, listening() as secret, web_opened([site.url]) as send:
        site.says["/a"] = redirect(f"{secret.url}/admin")
        with pytest.raises(HttpFailed, match=f"127.0.0.1:{secret.port} is in a private network"):
            await get(send, f"{site.url}/a")
        assert secret.asked == []


@pytest.mark.parametrize("there", ["file:///etc/passwd", "ftp://x/", "http://user:word@x/", "gopher://x"])
async def test_a_redirect_to_what_is_no_web_is_not_followed(there):
    async with listening() as site, web_opened([site.url]) as send:
        site.says["/a"] = redirect(there)
        with pytest.raises(HttpFailed, match="not followed"):
            await get(send, f"{site.url}/a")


async def test_redirects_come_to_an_end():
    async with listening() as site, web_opened([site.url]) as send:
        site.says["/a"] = redirect("/a")
        with pytest.raises(HttpFailed, match="for ever"):
            await get(send, f"{site.url}/a")
        assert len(site.asked) == MAX_REDIRECTS + 1


async def test_a_post_is_not_sent_elsewhere():
    async with listening() as site, web_opened([site.url]) as send:
        site.says["/a"] = redirect("/b")
        with pytest.raises(HttpFailed, match="elsewhere"):
            await get(send, f"{site.url}/a", "POST")


async def test_a_name_is_connected_to_where_it_was_looked_up_to_be(monkeypatch):
    looked_up = []

    def lookup(host, port):
        looked_up.append(host)
        return ["127.0.0.1"]

    async with listening() as site, web_opened([f"http://gate.example:{site.port}"]) as send:
        monkeypatch.setattr(web_http, "look_up", lookup)
        for _ in range(2):
            await get(send, f"http://gate.example:{site.port}/")
        assert looked_up == ["gate.example"]
        assert f"host: gate.example:{site.port}" in site.asked[0].lower()
        with pytest.raises(HttpFailed, match="private network"):
            await get(send, f"http://other.example:{site.port}/")


async def test_of_several_addresses_the_next_is_tried(monkeypatch):
    def lookup(host, port):
        return ["127.0.0.2", "127.0.0.1"]

    async with listening() as site, web_opened([f"http://gate.example:{site.port}"]) as send:
        monkeypatch.setattr(web_http, "look_up", lookup)
        assert (await get(send, f"http://gate.example:{site.port}/"))[1] == b"bytes"


async def test_who_is_not_there_cannot_be_reached_and_is_looked_up_afresh():
    async with listening() as site:
        url = site.url
    async with web_opened([url]) as send:
        for _ in range(2):
            with pytest.raises(HttpFailed, match="cannot be reached"):
                await get(send, url)
        with pytest.raises(HttpFailed):
            await get(send, "http://[::1")


async def test_many_who_ask_at_once_who_is_not_there_are_each_told_so():
    told = []

    async def ask(send, url):
        try:
            await get(send, url)
        except HttpFailed as error:
            told.append(str(error))

    async with listening() as site:
        url = site.url
    async with web_opened([url]) as send, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(ask, send, url)
    assert len(told) == 8 and all("cannot be reached" in text for text in told)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
    ],
)
async def test_an_answer_that_is_none_fails_typed(said):
    async with listening() as site, web_opened([site.url]) as send:
        site.says["/"] = said
        site.hangs_up = True
        with pytest.raises(HttpFailed):
            await get(send, f"{site.url}/")


async def test_a_server_that_stops_in_the_middle_is_given_up(monkeypatch):
    monkeypatch.setattr(web_http, "IDLE_LIMIT_S", 1.0)
    async with listening() as site, web_opened([site.url]) as send:
        site.says["/"] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"
        with pytest.raises(HttpFailed, match="broke off"):
            await get(send, f"{site.url}/")


@pytest.mark.parametrize("head", [b"Content-Length: 1001\r\n", b""])
async def test_a_body_over_its_limit_is_not_read_on(head):
    async with listening() as site, web_opened([site.url]) as send:
        site.says["/"] = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + bytes(1001)
        site.hangs_up = True
        with pytest.raises(TooBig):
            await get(send, f"{site.url}/")


async def test_servers_that_were_not_asked_for_longest_make_room(monkeypatch):
    def lookup(host, port):
        return ["127.0.0.1"]

    async with listening() as site, web_opened([]) as send:
        monkeypatch.setattr(web_http, "look_up", lookup)
        monkeypatch.setattr(web_http, "is_public", lambda address: True)
        monkeypatch.setattr(web_http, "MAX_SITES", 3)
        for number in range(5):
            await get(send, f"http://gate{number}.example:{site.port}/")
        assert site.n_connections == 5 < MAX_SITES
        gates = [f"http://gate{number}.example:{site.port}/" for number in range(5, 9)]
        async with send(Ask(gates[0])), send(Ask(gates[1])), send(Ask(gates[2])):
            with pytest.raises(HttpFailed, match="the limit"):
                await get(send, gates[3])


def test_how_long_a_server_asks_to_be_left_alone_is_read_and_bounded():
    def reply(text):
        return Reply(429, {"retry-after": text}, None)

    assert [reply(text).retry_after_s for text in ("8", " 9 ", "", "-1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT")] == [
        8.0,
        9.0,
        None,
        None,
        None,
        None,
    ]
    assert reply("9" * 400).retry_after_s == 3600.0


async def test_names_that_nobody_answers_for_keep_neither_named_servers_nor_other_work_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lookup goes on in its thread when nobody waits for it any more; providers may tell of any number of names."""
    is_over = threading.Event()

    def look_up_slowly(host: str, port: int) -> list[str]:
        if host.endswith(".example"):
            is_over.wait()
        return [host]

    monkeypatch.setattr(web_http, "look_up", look_up_slowly)
    monkeypatch.setattr(web_http, "CONNECT_LIMIT_S", math.inf)  # no lookup is given up: what waits for one waits long
    async with listening() as site, web_opened([site.url]) as send:
        try:
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(get, send, f"http://{number}.example/")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            with trio.fail_after(WAIT_S):
                await trio.to_thread.run_sync(bool)
                assert (await get(send, f"{site.url}/"))[1] == b"bytes"
                with pytest.raises(HttpFailed, match="private network"):
                    await get(send, "http://127.0.0.1:9/")
        finally:
            is_over.set()


async def test_an_answer_that_comes_in_crumbs_is_given_up_and_one_with_some_is_not():
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with listening() as site, web_opened([site.url]) as send:
        site.says["/some"] = head + b"1\r\nx\r\n" * MAX_CRUMBS + b"0\r\n\r\n"
        site.says["/all"] = head + b"1\r\nx\r\n" * (MAX_CRUMBS + 1) + b"0\r\n\r\n"
        site.says["/large"] = head + (b"1\r\nx\r\n400\r\n" + bytes(1024) + b"\r\n") * MAX_CRUMBS + b"0\r\n\r\n"
        for path, n_bytes in (("/some", MAX_CRUMBS), ("/large", 1025 * MAX_CRUMBS)):
            _, body = await get(send, site.url + path, max_bytes=1 << 21)
            assert len(body) == n_bytes
        with pytest.raises(HttpFailed, match="in crumbs"):
            await get(send, f"{site.url}/all", max_bytes=1 << 21)


async def test_others_have_their_turn_while_many_pieces_come_at_once():
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    pieces = [b"x" * CRUMB_BYTES] * (10 * PIECES_A_TURN)
    async with trio.open_nursery() as nursery:
        response = httpx.Response(200, content=_all_at_once(pieces))
        nursery.start_soon(others)
        assert [piece async for piece in web_http._chunks(httpx.URL("http://x"), response)] == pieces
        nursery.cancel_scope.cancel()
    assert turns >= 5


async def _all_at_once(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_server_that_never_comes_to_its_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(web_http, "HEAD_LIMIT_S", 0.2)
    async with listening() as site, web_opened([site.url]) as send:
        site.says["/x"] = b"HTTP/1.1 103 Early Hints\r\n\r\n"
        with pytest.raises(HttpFailed, match="does not come to its answer"):
            await get(send, f"{site.url}/x")
