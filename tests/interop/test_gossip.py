"""Topics with Kubo: whole conversations both ways, signed, in the form that each side takes for a stranger's."""

from pathlib import Path

import trio

from protocols.net_libp2p import NetConfig, open_network
from storage.keys import Identity
from tests.interop.conftest import kubo_arguments, start

TOPIC = "covey-interop"
N_MESSAGES = 10


async def test_kubo_and_covey_hear_each_other(nursery: trio.Nursery, kubo_command: list[str], tmp_path: Path) -> None:
    kubo = await start(nursery, [*kubo_command, *kubo_arguments(tmp_path)], tmp_path)
    number = await kubo.ask(do="listen", topic=TOPIC)
    config = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
    async with open_network(Identity.generate(), config) as node, node.subscribe(TOPIC) as heard:
        await kubo.ask(do="connect", address=node.addresses()[0])
        while not node.topic_peers(TOPIC):
            await trio.sleep(0.05)
        await trio.sleep(1.5)  # a heartbeat of Kubo's: it has us in its mesh
        theirs, ours = ([f"{who} says {at}" for at in range(N_MESSAGES)] for who in ("Kubo", "Covey"))
        for their, our in zip(theirs, ours, strict=True):
            await kubo.ask(do="say", topic=TOPIC, data=their)
            await node.publish(TOPIC, our.encode())
        assert [(await heard.receive()).data.decode() for _ in range(N_MESSAGES)] == theirs
        said: list[str] = []
        while len([one for one in said if one in ours]) < N_MESSAGES:
            said.append(await kubo.ask(do="hear", number=number))
        assert sorted(one for one in said if one in ours) == ours  # Kubo checks messages side by side: in any order
        assert node.gossip.router.score(node.peers()[0]) >= 0
    kubo.process.kill()
