"""Who asked for what it may not see is told of: behind the answer, and a bounded number of times."""

from collections.abc import Sequence

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


@pytest.fixture
def cids() -> Sequence[Cid]:
    return [block.cid for block in BLOCKS]


async def test_blocks_that_are_here_are_told_of_once_they_were_looked_up(
    autojump_clock: MockClock, nursery: trio.Nursery, cids: Sequence[Cid]
) -> None:
    store, (tell, told) = MemoryBlockstore(), trio.open_memory_channel[tuple[PeerId, Cid]](MAX_TOLD)
    store.put_many(BLOCKS)
    withheld = Withheld(store, lambda *about: tell.send_nowait(about))
    await nursery.start(withheld.run)
    withheld.note(ANN, [Cid.of(b"not here"), cids[0]])
    withheld.note(BEN, cids[1:2])
    assert not told.statistics().current_buffer_used
    assert [await told.receive() for _ in range(2)] == [(ANN, cids[0]), (BEN, cids[1])]


async def test_of_a_peer_that_asks_for_much_few_are_looked_up_at_a_time(
    autojump_clock: MockClock, nursery: trio.Nursery, cids: Sequence[Cid]
) -> None:
    store, (tell, told) = MemoryBlockstore(), trio.open_memory_channel[tuple[PeerId, Cid]](MAX_TOLD)
    store.put_many(BLOCKS)
    withheld = Withheld(store, lambda *about: tell.send_nowait(about))
    await nursery.start(withheld.run)
    for cid in cids:
        withheld.note(ANN, [cid, cid])
    assert [await told.receive() for _ in range(MAX_NOTED)] == [
        (ANN, cid) for cid in cids[: MAX_NOTED // 2] for _ in "ab"
    ]
    withheld.note(ANN, cids[-1:])
    assert await told.receive() == (ANN, cids[-1])  # nothing of what was noted beyond
