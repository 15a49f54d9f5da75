"""Who asked for what it may not see is told of: behind the answer, and a bounded number of times."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from daemon.withheld import LOOK_S, MAX_NOTED, Withheld
from storage.blockstore import MadeBlock
from storage.cid import Cid
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore

ANN, BEN = (Identity(bytes([number]) * 32).peer_id for number in (1, 2))
BLOCKS = [MadeBlock.of(b"block %d" % number) for number in range(2 * MAX_NOTED)]


@pytest.fixture
def cids() -> Sequence[Cid]:
    return [block.cid for block in BLOCKS]


async def test_blocks_that_are_here_are_told_of_once_they_were_looked_up(
    autojump_clock: MockClock, nursery: trio.Nursery, cids: Sequence[Cid]
) -> None:
    store, told = MemoryBlockstore(), list[tuple[PeerId, Cid]]()
    store.put_many(BLOCKS)
    withheld = Withheld(store, lambda *about: told.append(about))
    await nursery.start(withheld.run)
    withheld.note(ANN, [Cid.of(b"not here"), cids[0]])
    withheld.note(BEN, cids[1:2])
    assert not told
    await trio.sleep(LOOK_S + 1)
    assert told == [(ANN, cids[0]), (BEN, cids[1])]


async def test_of_a_peer_that_asks_for_much_few_are_looked_up_at_a_time(
    autojump_clock: MockClock, nursery: trio.Nursery, cids: Sequence[Cid]
) -> None:
    store, told = MemoryBlockstore(), list[tuple[PeerId, Cid]]()
    store.put_many(BLOCKS)
    withheld = Withheld(store, lambda *about: told.append(about))
    await nursery.start(withheld.run)
    for cid in cids:
        withheld.note(ANN, [cid, cid])
    await trio.sleep(LOOK_S + 1)
    assert len(told) == MAX_NOTED
    withheld.note(ANN, cids[:1])
    await trio.sleep(LOOK_S)
    assert len(told) == MAX_NOTED + 1
