"""Topics with Kubo and Helia: whole conversations both ways, signed, in the form that each takes for a stranger's."""

from typing import Any

import trio

from protocols.net_libp2p import NetConfig, open_network
from storage.keys import Identity

Stranger = Any  # the class stands in conftest.py, which tests cannot import
TOPIC = "covey-interop"
N_MESSAGES = 10


async def hear(stranger: Stranger, number: object) -> str:
    """What the stranger hears next: Kubo counts who listens, Helia knows by the topic."""
    said = stranger.ask(do="hear", number=number) if stranger.name == "Kubo" else stranger.ask(do="hear", topic=TOPIC)
    return str(await said)


async def test_a_stranger_and_covey_hear_each_other(stranger: Stranger) -> None:
    number = await stranger.ask(do="listen", topic=TOPIC)
    config = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
    async with open_network(Identity.generate(), config) as node, node.subscribe(TOPIC) as heard:
        await stranger.ask(do="connect", address=node.addresses()[0])
        while not node.topic_peers(TOPIC):
            await trio.sleep(0.05)
        await trio.sleep(1.5)  # a heartbeat of the stranger's: it has us in its mesh
        theirs, ours = ([f"{who} says {at}" for at in range(N_MESSAGES)] for who in (stranger.name, "Covey"))
        for their, our in zip(theirs, ours, strict=True):
            await stranger.ask(do="say", topic=TOPIC, data=their)
            await node.publish(TOPIC, our.encode())
        assert [(await heard.receive()).data.decode() for _ in range(N_MESSAGES)] == theirs
        said: list[str] = []
        while len([one for one in said if one in ours]) < N_MESSAGES:
            said.append(await hear(stranger, number))
        assert sorted(one for one in said if one in ours) == ours  # some check messages side by side: in any order
        assert node.gossip.router.score(node.peers()[0]) >= 0
        if stranger.name == "Helia":  # Kubo 0.22 knows 1.1 at most
            speaks = await stranger.ask(do="speaks", peer=str(node.peer_id))
            print(f"\n  Helia of Covey: {', '.join(one for one in speaks if 'meshsub' in one)}")
            assert {"/meshsub/1.1.0", "/meshsub/1.2.0"} <= set(speaks)
