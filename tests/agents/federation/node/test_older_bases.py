"""A buffer's updates may be of earlier results: who came late looks for no more of those than it takes."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from agents.federation.files.bringing import BASES_S, FETCH_IDLE_S
from agents.federation.files.needs import older
from agents.federation.node.experiment import Experiment
from agents.federation.results.outcome import document
from protocols.errors import NoProviders
from protocols.rounds import Close, Submit
from storage.blockstore import MadeBlock
from storage.cid import RAW, Cid
from tests.agents.federation.members.test_buffers import buffered, counted
from tests.agents.federation.members.test_member import is_done
from tests.agents.federation.node.test_service import Home, homes, village  # noqa: F401


def kept(home: Home, one: Experiment, number: int) -> tuple[Cid, Cid]:
    """A result that is here: its document, and its tensors."""
    tensors = Cid.of(b"tensors %d" % number, RAW)
    outcome: Any = SimpleNamespace(admitted=(), failed="", bound=None)
    result, data = document(one.cid, number, one.plan.initial, outcome, tensors, ())
    home.node.ports.store.put_many([MadeBlock(result, data)])
    return result, tensors


async def test_nothing_is_looked_for_where_no_update_is_of_an_earlier_result(
    homes: list[Home],  # noqa: F811
    autojump_clock: Any,
) -> None:
    """Nobody has the documents any more; a round that does without them is computed at once."""
    async with village(homes):
        one = await homes[0].rounds.follow(homes[0].plan(homes))
        lost = [Cid.of(b"lost %d" % number, RAW) for number in range(4)]
        began_s = trio.current_time()
        await one.bring_bases((), lost)
        result, tensors = kept(homes[0], one, 3)
        await one.bring_bases({tensors}, [result, *lost])
        assert trio.current_time() == began_s
        with pytest.raises(NoProviders):
            await one.bring_bases({Cid.of(b"none", RAW)}, [result, *lost])
        assert trio.current_time() - began_s <= 2 * FETCH_IDLE_S  # of the first; the others are of no use without it


async def test_documents_that_come_slowly_hold_up_a_round_for_no_longer_than_their_turn(
    homes: list[Home],  # noqa: F811
    autojump_clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with homes[0].running():
        one = await homes[0].rounds.follow(homes[0].plan(homes))
        result, _ = kept(homes[0], one, 1)
        bring_document = one.bring_document

        async def slow(wanted: Cid) -> Any:
            await trio.sleep(FETCH_IDLE_S - 1.0)
            return await bring_document(wanted)

        monkeypatch.setattr(one, "bring_document", slow)
        began_s = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            await one.bring_bases({Cid.of(b"none", RAW)}, [result] * 100)
        assert trio.current_time() - began_s == pytest.approx(BASES_S)


def test_results_are_looked_at_as_far_back_as_the_plan_bears_and_the_newest_first() -> None:
    village = buffered()
    village.slow = {3: 50.0, 4: 45.0}
    village.run(2000.0, lambda: is_done(village))
    book = village.villagers[0].book
    n_stale = 0
    for number in range(1, 9):
        said = book.final(number)
        assert said is not None and isinstance(said.event, Close)
        base = book.result(number - 1)
        assert base is not None
        bases, results = older(book, said.event, base)
        found = list(results)
        assert found == [book.result(n) for n in range(number - 2, max(0, number - 5), -1)]
        assert bases == {submit.base for submit in counted(book)[number - 1] if isinstance(submit, Submit)} - {base}
        n_stale += len(bases)
    assert n_stale
