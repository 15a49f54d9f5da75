"""Who lost a part of what it said itself says nothing before it has that again: a number is signed once."""

from typing import Any

import pytest

from agents.federation.members.duty import NOT_WHOLE, OwnEventsMissing
from agents.federation.node.journal import Journal
from agents.federation.node.service import UnreadJournal
from protocols.rounds import Join
from tests.agents.federation.node.test_service import Home, begun, connected, homes, until

__all__ = ["homes"]


@pytest.mark.parametrize("gossip", [None, {"mixing": "push_sum", "topology": "full"}])
async def test_who_lost_an_own_event_waits_for_others_to_tell_it_and_signs_no_number_twice(
    homes: list[Home], gossip: dict[str, Any] | None, autojump_clock: Any
) -> None:
    async with homes[0].running(), homes[1].running():
        async with homes[2].running():
            await connected(homes)
            ones = await begun(homes, homes[0].plan(homes, n_rounds=3, gossip=gossip))
            await until(lambda: ones[2].member.current() == 2)
        path = homes[2].folder / "rounds" / str(ones[0].cid)
        journal, entries = Journal.open(path)
        journal.close()
        lost = next(one for one in entries if (one.author, one.kind) == (homes[2].identity.peer_id, Join.kind))
        path.write_bytes(path.read_bytes().replace(lost.block, bytes(len(lost.block))))
        homes[2].rounds = homes[2].fresh()
        async with homes[2].running():
            again = homes[2].rounds.get(ones[0].cid)
            with pytest.raises(OwnEventsMissing):
                await again.do(again.member.leave)
            assert again.activity.trouble == NOT_WHOLE
            await until(lambda: again.is_over and ones[0].is_over)
            assert not again.activity.trouble
            assert not ones[0].book.forks() and not again.book.forks() and lost.cid in again.book


@pytest.mark.parametrize("is_cut", [False, True], ids=["a record", "its length"])
async def test_who_may_have_lost_the_last_that_it_said_waits_until_others_have_told_all(
    homes: list[Home], is_cut: bool, autojump_clock: Any
) -> None:
    async with homes[0].running(), homes[1].running():
        async with homes[2].running():
            await connected(homes)
            ones = await begun(homes, homes[0].plan(homes, n_rounds=3))
            await until(lambda: ones[2].member.current() == 2)
        path = homes[2].folder / "rounds" / str(ones[0].cid)
        journal, entries = Journal.open(path)
        journal.close()
        lost = max((one for one in entries if one.author == homes[2].identity.peer_id), key=lambda one: one.sequence)
        data = bytearray(path.read_bytes())
        at = data.index(lost.block)
        data[at - 8 if is_cut else at + 20] ^= 0xFF
        path.write_bytes(data)
        Journal.open(path)[0].close()  # at a start at which nobody else is there, and that cuts the file
        homes[2].rounds = homes[2].fresh()
        async with homes[2].running():
            again = homes[2].rounds.get(ones[0].cid)
            with pytest.raises(OwnEventsMissing):
                await again.do(again.member.leave)
            assert again.activity.trouble == NOT_WHOLE
            await until(lambda: again.is_over and ones[0].is_over)
            assert not again.activity.trouble
            assert not ones[0].book.forks() and not again.book.forks() and lost.cid in again.book


async def test_who_cannot_read_its_journal_is_told_so_when_it_joins_again_and_begins_no_other(
    homes: list[Home], autojump_clock: Any
) -> None:
    async with homes[0].running():
        plan = homes[0].plan(homes)
        one = await homes[0].rounds.follow(plan)
    path = homes[0].folder / "rounds" / str(one.cid)
    path.write_bytes(damaged := b"X" + path.read_bytes()[1:])
    homes[0].rounds = homes[0].fresh()
    async with homes[0].running():
        with pytest.raises(UnreadJournal, match="could not be read"):
            await homes[0].rounds.follow(plan)
    assert path.read_bytes() == damaged
