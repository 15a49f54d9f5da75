"""Who asked for what it may not see is told of: behind the answer, and a bounded number of times."""

import pytest
import trio
from trio.testing import MockClock

from daemon.withheld import MAX_NOTED, Withheld
from storage.blockstore import MadeBlock
from storage.cid import Cid
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore

ANN, BEN = (Identity(bytes([number]) * 32).peer_id for number in (1, 2))
MAX_TOLD = 4 * MAX_NOTED
BLOCKS = [MadeBlock.of(b"block %d" % number) for number in range(2 * MAX_NOTED)]


CIDS = [block.cid for block in BLOCKS]

Told = trio.MemoryReceiveChannel[tuple[PeerId, Cid]]


@pytest.fixture
async def looking(autojump_clock: MockClock, nursery: trio.Nursery) -> tuple[Withheld, Told]:
    """It looks, and what it tells of blocks that are all here."""
    store, (tell, told) = MemoryBlockstore(), trio.open_memory_channel[tuple[PeerId, Cid]](MAX_TOLD)
    store.put_many(BLOCKS)
    withheld = Withheld(store, lambda *about: tell.send_nowait(about))
    await nursery.start(withheld.run)
    return withheld, told


async def test_blocks_that_are_here_are_told_of_once_they_were_looked_up(looking: tuple[Withheld, Told]) -> None:
    withheld, told = looking
    withheld.note(ANN, [Cid.of(b"not here"), CIDS[0]])
    withheld.note(BEN, CIDS[1:2])
    assert not told.statistics().current_buffer_used
    assert [await told.receive() for _ in range(2)] == [(ANN, CIDS[0]), (BEN, CIDS[1])]


async def test_of_a_peer_that_asks_for_much_few_are_looked_up_at_a_time(looking: tuple[Withheld, Told]) -> None:
    withheld, told = looking
    for cid in CIDS:
        withheld.note(ANN, [cid, cid])
    assert [await told.receive() for _ in range(MAX_NOTED)] == [
        (ANN, cid) for cid in CIDS[: MAX_NOTED // 2] for _ in "ab"
    ]
    withheld.note(ANN, CIDS[-1:])
    assert await told.receive() == (ANN, CIDS[-1])  # nothing of what was noted beyond
