"""Ann and Bob, who meet."""

import pytest

from agents.ask.serve import Host, serve
from agents.cache.seated import SeatedEngine
from agents.models import Desk
from protocols.net import PeerInfo
from simulations.world import make_node
from tests.agents.ask.nodes import TERMS, SlowEngine


@pytest.fixture
def meeting(sim_world, tmp_path):
    """Ann, who answers as told, and Bob, whom she trusts, connected."""

    async def meet(engine=None, terms=TERMS, *, trusts=True):
        ann, bob = (make_node(sim_world, name, tmp_path) for name in ("ann", "bob"))
        ann.add_model()
        if trusts:
            ann.ports.catalog.peers.trust(bob.peer, ["ask"], 1.0)
        engine = engine or SlowEngine()
        desk = Desk(engine)
        serve(Host(ann.ports, desk, lambda peer, model: SeatedEngine(engine, desk, model), terms), ann.ports)
        info = PeerInfo.parse(ann.network.addresses()[0])
        await bob.network.connect(info)
        return ann, bob, info, engine

    return meet
