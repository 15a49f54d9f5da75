"""Which models does a peer offer? Asked by name and fingerprint, answered to those who may see them."""

import msgspec
import pytest
import trio

from agents.artifacts.models import Wish, Words, pull_model, store_model
from agents.artifacts.offers import ANSWER_BURST, find_offer, serve_offers
from agents.engine.model_folder import make_card, write_card
from agents.errors import UnknownName
from protocols import models as wire
from protocols.errors import ProtocolError
from protocols.framing import read_frame, write_frame
from protocols.message import encode
from protocols.models import Ask, Offer
from protocols.net import PeerInfo
from simulations.net import open_world
from simulations.world import make_node, run_node, unix_now_s, write_model
from storage.blockstore import Visibility
from storage.catalog.models import ModelRow
from storage.cid import DAG_CBOR, Cid

SOURCE = Cid.of(b"its gguf", DAG_CBOR)


@pytest.fixture
async def world(tmp_path):
    """`await start(name, trusts=...)` gives a node that runs and answers, connected to all before it."""
    async with open_world(seed=3) as sim, trio.open_nursery() as nursery:
        nodes = []

        async def start(name, *, trusts=()):
            node = make_node(sim, name, tmp_path)
            for other in trusts:
                node.ports.catalog.peers.trust(other.peer, ["models"], unix_now_s())
                other.ports.catalog.peers.trust(node.peer, ["models"], unix_now_s())
            serve_offers(node.ports)
            await nursery.start(run_node, node)
            for other in nodes:
                await node.network.connect(PeerInfo(other.peer, (other.network.address,)))
            nodes.append(node)
            return node

        yield start
        for node in nodes:
            node.scope.cancel()


def publish(node, tmp_path, name="tiny", seed=0, version=None, visibility=Visibility.FLOCK):
    folder = write_model(tmp_path / node.name / "models" / name, seed=seed)
    card = make_card(folder, name, str(SOURCE))
    write_card(folder, card)
    row = ModelRow(
        name=name,
        fingerprint=card.fingerprint,
        derived_from=card.derived_from,
        folder=str(folder),
        source="here",
        card=msgspec.to_builtins(card),
        added_unix_s=1.0,
    )
    return store_model(node.ports, row, Words(version=version, visibility=visibility))[0]


async def test_a_model_is_found_by_its_name_and_by_either_base_that_adapters_name(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    row = publish(ann, tmp_path)
    for question in (Ask(name="tiny"), Ask(base=Cid.parse(row.base)), Ask(base=SOURCE), Ask()):
        offer, providers = await find_offer(bob.ports, question)
        assert (offer.manifest, offer.n_bytes, str(offer.base)) == (row.manifest, row.n_bytes, row.base)
        assert [info.peer for info in providers] == [ann.peer]
    for question in (Ask(name="other"), Ask(base=Cid.of(b"another", DAG_CBOR))):
        assert await find_offer(bob.ports, question) is None


async def test_the_newest_version_is_taken_and_of_different_models_none(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob, eve = await world("bob", trusts=[ann]), await world("eve")
    first = publish(ann, tmp_path)
    second = publish(ann, tmp_path, version=2)
    assert (await find_offer(bob.ports, Ask(name="tiny"), 1))[0].manifest == first.manifest
    assert await find_offer(bob.ports, Ask(name="tiny"), 3) is None
    assert (await find_offer(bob.ports, Ask(name="tiny")))[0].manifest == second.manifest
    bob.ports.catalog.peers.trust(eve.peer, ["models"], unix_now_s())
    eve.ports.catalog.peers.trust(bob.peer, ["models"], unix_now_s())
    publish(eve, tmp_path, seed=9)
    with pytest.raises(UnknownName, match="2 different models"):
        await find_offer(bob.ports, Ask(name="tiny"))


async def test_what_a_peer_may_not_see_is_not_offered_to_it_nor_is_anybody_else_asked(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob, eve = await world("bob", trusts=[ann]), await world("eve")
    publish(ann, tmp_path, visibility=Visibility.PRIVATE)
    assert await find_offer(bob.ports, Ask()) is None
    publish(ann, tmp_path, "open")
    assert (await find_offer(bob.ports, Ask()))[0].name == "open"
    assert await find_offer(eve.ports, Ask()) is None  # trusts nobody: asks nobody
    assert await wire.ask(eve.network, ann.peer, Ask()) == []


async def test_what_is_not_held_here_is_not_offered(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    row = publish(ann, tmp_path)
    for name, is_shared, n_offered in (("one", False, 0), ("two", True, 1)):
        wish = Wish(name, is_shared, [PeerInfo(ann.peer)])
        await pull_model(bob.ports, tmp_path / "bob" / "models", row.manifest, wish, lambda *told: None)
        assert len(await wire.ask(ann.network, bob.peer, Ask())) == n_offered


async def test_who_asks_too_often_gets_no_answer(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    publish(ann, tmp_path)
    answers = [await wire.ask(bob.network, ann.peer, Ask()) for _ in range(ANSWER_BURST + 2)]
    assert [len(answer) for answer in answers] == [1] * ANSWER_BURST + [0, 0]


async def test_a_peer_that_is_silent_or_answers_garbage_costs_no_more_than_its_time(autojump_clock, world, tmp_path):
    ann, mallory, sleeper = await world("ann"), await world("mallory"), await world("sleeper")
    bob = await world("bob", trusts=[ann, mallory, sleeper])
    row = publish(ann, tmp_path)

    async def lie(stream):
        await stream.write(b"\xff" * 5000)

    async def sleep(stream):
        await trio.sleep(600)

    mallory.network.serve(wire.PROTOCOL, lie)
    sleeper.network.serve(wire.PROTOCOL, sleep)
    began_s = trio.current_time()
    assert (await find_offer(bob.ports, Ask(name="tiny")))[0].manifest == row.manifest
    assert trio.current_time() - began_s < 10


async def said(stream):
    """What the other end answers; None where it ends the stream in whatever way."""
    try:
        return await read_frame(stream, wire.MAX_OFFER_BYTES)
    except ProtocolError:
        return None


@pytest.mark.parametrize("question", [b"", b"\xa0", b"\xff" * 40, bytes(wire.MAX_ASK_BYTES + 1)])
async def test_a_question_that_breaks_the_protocol_harms_nobody(autojump_clock, world, tmp_path, question):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    publish(ann, tmp_path)
    stream = await bob.network.open_stream(ann.peer, [wire.PROTOCOL])
    await write_frame(stream, question, 1 << 20)
    assert await said(stream) is None
    assert len(await wire.ask(bob.network, ann.peer, Ask())) == 1


async def test_no_more_is_read_than_the_limit(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    offer = Offer(manifest=SOURCE, name="tiny", version=1, n_bytes=1, base=SOURCE)

    async def flood(stream):
        for _ in range(10 * wire.MAX_OFFERS):
            await write_frame(stream, encode(offer, wire.MAX_OFFER_BYTES), wire.MAX_OFFER_BYTES)

    ann.network.serve(wire.PROTOCOL, flood)
    assert len(await wire.ask(bob.network, ann.peer, Ask())) == wire.MAX_OFFERS
