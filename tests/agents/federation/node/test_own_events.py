"""Who lost a part of what it said itself says nothing before it has that again: a number is signed once."""

from pathlib import Path
from typing import Any

import pytest

from agents.federation.members.duty import NOT_WHOLE, OwnEventsMissing
from agents.federation.node.experiment import Experiment
from agents.federation.node.journal import Journal
from agents.federation.node.service import UnreadJournal
from protocols.entry import Entry
from protocols.rounds import Join
from tests.agents.federation.node.test_service import Home, begun, connected, homes, until

__all__ = ["homes"]


async def left_behind(homes: list[Home], gossip: dict[str, Any] | None = None) -> tuple[Experiment, Path, list[Entry]]:
    """The third node stops in round two. Returns: the experiment of the first; the journal, and what it holds."""
    async with homes[2].running():
        await connected(homes)
        ones = await begun(homes, homes[0].plan(homes, n_rounds=3, gossip=gossip))
        await until(lambda: ones[2].member.current() == 2)
    path = homes[2].folder / "rounds" / str(ones[0].cid)
    journal, entries = Journal.open(path)
    journal.close()
    return ones[0], path, entries


async def waits_until_told(home: Home, one: Experiment, lost: Entry) -> None:
    """A node starts on a journal that lacks what it said: it says nothing until it has that of others, who end it."""
    home.rounds = home.fresh()
    async with home.running():
        again = home.rounds.get(one.cid)
        with pytest.raises(OwnEventsMissing):
            await again.do(again.member.leave)
        assert again.activity.trouble == NOT_WHOLE
        await until(lambda: again.is_over and one.is_over)
        assert not again.activity.trouble
        assert not one.book.forks() and not again.book.forks() and lost.cid in again.book


@pytest.mark.parametrize("gossip", [None, {"mixing": "push_sum", "topology": "full"}])
async def test_who_lost_an_own_event_waits_for_others_to_tell_it_and_signs_no_number_twice(
    homes: list[Home], gossip: dict[str, Any] | None, autojump_clock: Any
) -> None:
    async with homes[0].running(), homes[1].running():
        one, path, entries = await left_behind(homes, gossip)
        lost = next(one for one in entries if (one.author, one.kind) == (homes[2].identity.peer_id, Join.kind))
        path.write_bytes(path.read_bytes().replace(lost.block, bytes(len(lost.block))))
        await waits_until_told(homes[2], one, lost)


@pytest.mark.parametrize("is_cut", [False, True], ids=["a record", "its length"])
async def test_who_may_have_lost_the_last_that_it_said_waits_until_others_have_told_all(
    homes: list[Home], is_cut: bool, autojump_clock: Any
) -> None:
    async with homes[0].running(), homes[1].running():
        one, path, entries = await left_behind(homes)
        lost = max((one for one in entries if one.author == homes[2].identity.peer_id), key=lambda one: one.sequence)
        data = bytearray(path.read_bytes())
        at = data.index(lost.block)
        data[at - 8 if is_cut else at + 20] ^= 0xFF
        path.write_bytes(data)
        Journal.open(path)[0].close()  # at a start at which nobody else is there, and that cuts the file
        await waits_until_told(homes[2], one, lost)


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
