"""IPNS with strangers: each publishes over the DHT, the others resolve. No record is handed over by hand.

Kubo's library has no call that publishes or resolves a name, and its download takes CIDs alone: Kubo is tried as a
server of the DHT that judges our records, keeps them and gives them out.
"""

import time
from typing import Any

import pytest
import trio

from protocols.bitswap.shell import Exchange
from protocols.errors import Replayed
from protocols.ipns import make_record, name_text, parse_name, read_record
from protocols.net import PeerInfo
from storage.cid import Cid
from storage.keys import Identity

Stranger = Any  # the class stands in conftest.py, which tests cannot import
CIDS = [Cid.of(b"what a name stands for, %d" % number) for number in range(3)]


def record(owner: Identity, number: int) -> bytes:
    return make_record(owner, f"/ipfs/{CIDS[number]}", sequence=number, unix_s=time.time())


async def publish(node: Exchange, owner: Identity, number: int) -> None:
    """Until a stranger has taken it: it serves the DHT for us only after it was identified."""
    while await node.network.publish_record(owner.peer_id, record(owner, number), time.time()) < 1:
        await trio.sleep(0.2)


def report(what: str, began_s: float) -> None:
    print(f"\n  {what:<46} {1e3 * (trio.current_time() - began_s):6.0f} ms")


async def test_helia_resolves_what_covey_publishes(helia: Stranger, exchange: Exchange) -> None:
    owner = Identity.generate()
    await exchange.network.connect(helia.info)
    for number in (1, 2):  # and the newer one once there is a newer one
        await publish(exchange, owner, number)
        began_s = trio.current_time()
        assert await helia.ask(do="resolve", name=name_text(owner.peer_id)) == f"/ipfs/{CIDS[number]}"
        report("Helia resolves a name of Covey's", began_s)


async def test_covey_resolves_what_helia_publishes(
    helia: Stranger, exchange: Exchange, other_exchange: Exchange
) -> None:
    """The first by asking Helia; the second after Helia is gone: its record was put to us."""
    await exchange.network.connect(helia.info)
    sequences = []
    for number in (1, 2):
        name = parse_name(await helia.ask(do="publish", key="word", cid=str(CIDS[number])))
        began_s = trio.current_time()
        raw = await exchange.network.find_record(name, time.time())
        report("Covey resolves a name of Helia's", began_s)
        assert raw is not None
        found = read_record(raw, name, time.time())
        assert found.value == f"/ipfs/{CIDS[number]}".encode()
        sequences.append(found.sequence)
    assert sequences == sorted(set(sequences))
    await exchange.network.disconnect(helia.info.peer)
    helia.process.kill()
    await other_exchange.network.connect(PeerInfo.parse(exchange.network.addresses()[0]))
    raw = None
    while raw is None:
        raw = await other_exchange.network.find_record(name, time.time())
    assert read_record(raw, name, time.time()).value == f"/ipfs/{CIDS[2]}".encode()


async def test_a_stranger_keeps_a_name_for_covey_that_others_find_there(
    stranger: Stranger, exchange: Exchange, other_exchange: Exchange
) -> None:
    """Kubo and Helia as the one server of the DHT between two of ours: put to it, and got from it."""
    owner = Identity.generate()
    await exchange.network.connect(stranger.info)
    await publish(exchange, owner, 1)
    await publish(exchange, owner, 2)
    await exchange.network.disconnect(stranger.info.peer)
    await other_exchange.network.connect(stranger.info)
    with trio.fail_after(60):
        while (raw := await other_exchange.network.find_record(owner.peer_id, time.time())) is None:
            await trio.sleep(0.2)
    assert raw == record_of(raw, owner)
    with pytest.raises(Replayed):
        await other_exchange.network.publish_record(owner.peer_id, record(owner, 1), time.time())


def record_of(raw: bytes, owner: Identity) -> bytes:
    found = read_record(raw, owner.peer_id, time.time())
    assert (found.value, found.sequence) == (f"/ipfs/{CIDS[2]}".encode(), 2)
    return found.raw
