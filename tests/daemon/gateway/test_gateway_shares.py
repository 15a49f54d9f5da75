"""Clients of one network leave room for others, however slow they are."""

import trio
from starlette.types import Message

from daemon.api.gateway.answer import Site
from daemon.api.gateway.asgi import GatewayApp, Limits
from daemon.api.gateway.view import public_view
from daemon.api.shares import MIN_SHARE, SHARE, Shares
from storage.memory import MemoryBlockstore
from storage.roots import Roots


def n_let_in(shares: Shares, host: str, n_asked: int = 100) -> int:
    return sum(shares.take(host) for _ in range(n_asked))


def test_one_network_has_a_quarter_and_a_proxy_nearby_all_that_is_left() -> None:
    shares = Shares(64)
    assert n_let_in(shares, "8.8.8.8") == 64 // SHARE
    assert n_let_in(shares, "8.8.8.9") == 0
    assert n_let_in(shares, "::ffff:9.9.9.9") == 64 // SHARE
    assert n_let_in(shares, "10.0.0.1") == 64 - 2 * 64 // SHARE
    assert n_let_in(shares, "127.0.0.1") == 0


def test_a_place_that_is_given_back_is_free_and_nothing_is_kept_of_who_is_gone() -> None:
    shares = Shares(64)
    for number in range(1000):
        assert shares.take(f"8.8.{number % 256}.1")
        shares.give(f"8.8.{number % 256}.1")
    assert not shares.n_taken and not shares._of_network


def test_where_places_are_few_one_node_has_as_many_as_it_asks_for() -> None:
    assert n_let_in(Shares(10), "8.8.8.8") == MIN_SHARE
    assert n_let_in(Shares(2), "8.8.8.8") == 2


async def test_slow_requests_of_one_network_leave_room_for_others() -> None:
    store = MemoryBlockstore()
    gateway = GatewayApp(Site(public_view(store, Roots(store)), {}.get, 1 << 36), lambda: 1.8e9, Limits(n_requests=16))
    assert n_let_in(gateway._shares, "8.8.8.8") == MIN_SHARE

    async def status_for(host: str) -> int:
        said: list[Message] = []

        async def send(message: Message) -> None:
            said.append(message)

        scope = {"type": "http", "http_version": "1.1", "method": "POST", "raw_path": b"/", "query_string": b""}
        await gateway(scope | {"headers": [], "client": (host, 1)}, trio.sleep_forever, send)
        return said[0]["status"]

    assert (await status_for("8.8.8.9"), await status_for("9.9.9.9")) == (503, 405)
    assert gateway.n_running == MIN_SHARE
