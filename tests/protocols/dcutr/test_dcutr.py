"""Two ends of a relayed connection agree when to dial: at the same moment, thrice at most, and only such ends."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from protocols.dcutr.shell import ANSWER_TIMEOUT_S, ATTEMPTS, TURNS_S, answering, punch
from protocols.dcutr.wire import PROTOCOL, Kind, read, write
from protocols.endpoints import Endpoint
from protocols.errors import Malformed, ProtocolRefused, TimedOut
from protocols.framing import frame, read_frame
from protocols.net import Link, PeerInfo, Stream
from simulations.net import SimNetwork, SimWorld
from storage.keys import Identity, PeerId

BROUGHT, CAME = (Identity(bytes([number]) * 32).peer_id for number in (1, 2))
SEEN = {BROUGHT: Endpoint("8.8.8.1", 11), CAME: Endpoint("8.8.8.2", 22)}


class Scene:
    """One whom a relay brought, and one who came over it. `dials` tells who dialled whom when."""

    def __init__(self, world: SimWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        self.brought, self.came = world.node(BROUGHT), world.node(CAME)
        self.dials: list[tuple[PeerId, tuple[Endpoint, ...], bool, float]] = []
        self.works_at = 1
        self.link = Link(BROUGHT, "/p2p/x/p2p-circuit", True, 1, 0, 0, is_relayed=True)
        for node in (self.brought, self.came):
            monkeypatch.setattr(node, "observed_addresses", lambda peer=node.peer_id: [SEEN[peer].text])
        monkeypatch.setattr(self.came, "connections", lambda: [self.link])
        self.came.serve(PROTOCOL, answering(self.came, self.meet))

    async def meet(self, peer: PeerId, endpoints: Sequence[Endpoint], is_dialler: bool) -> bool:
        self.dials.append((peer, tuple(endpoints), is_dialler, trio.current_time()))
        await trio.sleep(1)
        return len(self.dials) >= 2 * self.works_at

    async def punch(self) -> bool:
        await self.brought.connect(PeerInfo(CAME, (self.came.address,)))
        return await punch(self.brought, CAME, self.meet)


@pytest.fixture
def scene(sim_world: SimWorld, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> Scene:
    return Scene(sim_world, monkeypatch)


async def test_both_dial_at_the_same_moment_and_one_of_them_is_the_dialler(
    scene: Scene, autojump_clock: MockClock
) -> None:
    assert await scene.punch()
    times = {dial[0]: dial[3] for dial in scene.dials}
    assert abs(times[BROUGHT] - times[CAME]) < 0.01  # a trip takes up to 0.05 s, and varies by a tenth of that
    assert {dial[:3] for dial in scene.dials} == {
        (BROUGHT, (SEEN[BROUGHT],), True),
        (CAME, (SEEN[CAME],), False),
    }


@pytest.mark.parametrize(("works_at", "expected"), [(3, True), (4, False)])
async def test_it_is_tried_thrice(scene: Scene, works_at: int, expected: bool, autojump_clock: MockClock) -> None:
    scene.works_at = works_at
    assert await scene.punch() is expected
    assert len(scene.dials) == 2 * ATTEMPTS
    for peer, parts in ((BROUGHT, [True, False, True]), (CAME, [False, True, False])):  # as who dials it
        assert [dial[2] for dial in scene.dials if dial[0] == peer] == parts
    await trio.sleep(TURNS_S)
    await scene.punch()
    assert [dial[2] for dial in scene.dials if dial[0] == BROUGHT][ATTEMPTS]


async def test_who_is_connected_directly_or_did_not_want_the_connection_dials_nobody(
    scene: Scene, autojump_clock: MockClock
) -> None:
    for link in (scene.link._replace(is_relayed=False), scene.link._replace(is_dialled=False)):
        scene.link = link
        assert not await scene.punch()
    assert not scene.dials


async def test_who_is_seen_by_nobody_does_not_begin(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(scene.brought, "observed_addresses", list)
    assert not await scene.punch() and not scene.dials


async def test_who_tells_no_address_is_not_dialled(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(scene.came, "observed_addresses", lambda: ["/ip4/10.0.0.1/tcp/1"])
    assert not await scene.punch() and not scene.dials


async def said(scene: Scene, *messages: bytes) -> list[bytes]:
    """What the one who came answers to these."""
    await scene.brought.connect(PeerInfo(CAME, (scene.came.address,)))
    stream = await scene.brought.open_stream(CAME, [PROTOCOL])
    answers = []
    for message in messages:
        await stream.write(frame(message))
    await stream.finish()
    while (answer := await read_frame(stream, 4096)) is not None:
        answers.append(answer)
    await stream.aclose()
    return answers


async def test_what_comes_out_of_turn_ends_it(scene: Scene, autojump_clock: MockClock) -> None:
    connect = write(Kind.CONNECT, [SEEN[BROUGHT]])
    assert await said(scene, write(Kind.SYNC)) == []
    assert [read(answer).kind for answer in await said(scene, connect, connect)] == [Kind.CONNECT]
    assert len(await said(scene, connect)) == 1
    assert not scene.dials


@pytest.mark.parametrize(
    ("answer", "error"), [(frame(write(Kind.SYNC)), Malformed), (frame(b"\x08\x01"), Malformed), (b"", TimedOut)]
)
async def test_an_answer_that_is_none_is_the_end(
    scene: Scene, answer: bytes, error: type[Exception], autojump_clock: MockClock
) -> None:
    async def lie(stream: Stream) -> None:
        await stream.write(answer)
        await trio.sleep(2 * ANSWER_TIMEOUT_S)

    scene.came.serve(PROTOCOL, lie)
    with pytest.raises(error):
        await scene.punch()
    assert not scene.dials


async def test_a_peer_that_knows_nothing_of_it_is_left_alone(
    scene: Scene, sim_world: SimWorld, autojump_clock: MockClock
) -> None:
    other: SimNetwork = sim_world.node(Identity(bytes([7]) * 32).peer_id)
    await scene.brought.connect(PeerInfo(other.peer_id, (other.address,)))
    with pytest.raises(ProtocolRefused):
        await punch(scene.brought, other.peer_id, scene.meet)
