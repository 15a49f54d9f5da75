"""Who has content, and what a name stands for, by the routers of the settings; here the node's own one."""

from functools import partial
from types import SimpleNamespace

import pytest
import trio

from daemon.app import open_node
from daemon.config import Config, FetchConfig, GatewayConfig, KuboConfig
from daemon.errors import BadConfig
from protocols.ipns import make_record, name_text
from protocols.retrieval.shell import Retrieval
from protocols.sources import NoWeb
from storage.blockstore import MadeBlock, Visibility
from storage.keys import Identity
from tests.ports import held_port

ME = Identity(b"\x01" * 32)
OTHER = Identity(b"\x02" * 32)


def alone(port):
    return Config()


def routed_by_itself(port):
    url = f"http://127.0.0.1:{port}"
    return Config(
        gateway=GatewayConfig(is_enabled=True, port=port, has_routing=True),
        fetch=FetchConfig(routers=(url,), gateways=(url,)),
    )


def taking_names(port):
    return Config(
        gateway=GatewayConfig(is_enabled=True, port=port, has_routing=True, takes_names=True),
        fetch=FetchConfig(routers=(f"http://127.0.0.1:{port}",)),
    )


def beside_kubo(port):
    return Config(fetch=FetchConfig(has_kubo=True), kubo=KuboConfig(api="http://127.0.0.1:5001"))


def configured(config_of):
    return pytest.mark.parametrize("opened", [config_of], indirect=True)


@pytest.fixture
async def opened(home, lonely, ask, request):
    with held_port() as port:
        config = getattr(request, "param", alone)(port)
        async with open_node(home, ME, config, print, lonely.opened) as node:

            async def post(name, /, **params):
                return await trio.to_thread.run_sync(partial(ask, f"/v1/{name}", params))

            yield SimpleNamespace(node=node, post=post, port=port)


@configured(routed_by_itself)
async def test_routers_are_asked_beside_the_dht(opened):
    block = MadeBlock.of(b"for everybody")
    opened.node.store.put_many([block], floor=Visibility.PUBLIC)
    (told,) = (await opened.post("net/providers", cid=str(block.cid))).json
    assert told["peer"] == str(ME.peer_id) and told["said_by"] == ["routers"] and not told["is_connected"]
    assert f"/ip4/127.0.0.1/tcp/{opened.port}/http" in told["addresses"]
    assert (await opened.post("net/providers", cid=str(MadeBlock.of(b"nowhere").cid))).json == []
    assert (await opened.post("peer/find", peer=str(ME.peer_id))).json["addresses"] != []


@configured(routed_by_itself)
async def test_the_record_of_a_name_is_found_verified_and_kept(opened):
    block = MadeBlock.of(b"for everybody")
    opened.node.store.put_many([block], floor=Visibility.PUBLIC)
    published = (await opened.post("name/publish", cid=str(block.cid))).json
    found = (await opened.post("name/find", name=published["name"])).json
    assert found["value"] == f"/ipfs/{block.cid}" and not found["is_new"]
    missing = await opened.post("name/find", name=name_text(OTHER.peer_id))
    assert (missing.status, missing.json["error"]["code"]) == (404, "not_found")


async def test_without_a_router_the_dht_alone_is_asked(opened):
    answer = await opened.post("name/find", name=name_text(OTHER.peer_id))
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
    opened.node.network.records[OTHER.peer_id] = make_record(OTHER, "/ipfs/x", sequence=3, unix_s=1.9e9)
    assert (await opened.post("name/find", name=name_text(OTHER.peer_id))).json["sequence"] == 3
    assert (await opened.post("net/providers", cid=str(MadeBlock.of(b"x").cid))).json == []
    assert isinstance(opened.node.exchange.web, NoWeb) and opened.node.exchange.routers is None


@configured(beside_kubo)
async def test_the_kubo_beside_the_node_is_a_source_where_that_is_set(opened):
    web = opened.node.exchange.web
    assert isinstance(web, Retrieval) and list(web.named()) == ["kubo+http://127.0.0.1:5001"]


@pytest.mark.parametrize(
    "wish",
    [
        FetchConfig(gateways=("ipfs.example",)),
        FetchConfig(gateways=("kubo+http://127.0.0.1:5001",)),
        FetchConfig(routers=("ftp://router.example",)),
    ],
)
async def test_what_is_no_url_stops_the_start_and_names_the_setting(home, lonely, wish):
    with pytest.raises((BadConfig, ExceptionGroup)) as caught:
        async with open_node(home, ME, Config(fetch=wish), print, lonely.opened):
            pass
    error = caught.value
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, BadConfig) and "fetch" in str(error)


@configured(taking_names)
async def test_a_record_is_put_to_a_router_that_takes_some(opened):
    block = MadeBlock.of(b"for everybody")
    published = (await opened.post("name/publish", cid=str(block.cid), key="word")).json
    assert published["n_peers"] == 1  # its own router, here
    await opened.post("name/rm", name=published["name"])
    opened.node.network.records.clear()
    found = (await opened.post("name/find", name=published["name"])).json
    assert found["value"] == f"/ipfs/{block.cid}" and found["is_new"]
