"""A fault of this program's own ends no node, and no experiment but the one that it is in."""

from typing import Any

import pytest

from agents.errors import AgentError
from agents.federation.members.actions import Action, Train
from tests.agents.federation.node.test_service import Home, begun, homes, until, village

__all__ = ["homes"]


async def test_a_step_that_fails_by_a_fault_of_ours_is_told_and_tried_again(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    async with village(homes):
        ones = await begun(homes, homes[0].plan(homes))
        act, failed = ones[0]._act, list[str]()

        async def act_later(action: Action) -> None:
            if isinstance(action, Train) and not failed:
                failed.append("once")
                raise IndexError("no such half")
            await act(action)

        monkeypatch.setattr(ones[0], "_act", act_later)
        await until(lambda: ones[0].is_over)
        told = [event.fields for event in homes[0].node.events if event.kind == "round_trouble"]
        assert failed and [(one["code"], one["text"]) for one in told] == [("IndexError", "no such half")]
        assert ones[0].book.result(2) == ones[1].book.result(2)


async def test_an_experiment_that_cannot_go_on_stops_alone_until_the_next_start(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    def fail(now_s: float) -> list[Action]:
        raise IndexError("no such round")

    async with village(homes):
        broken = await begun(homes, homes[0].plan(homes, title="broken"))
        monkeypatch.setattr(broken[0].member, "tick", fail)
        others = await begun(homes, homes[0].plan(homes, title="other"))
        await until(lambda: all(one.is_over for one in (*others, *broken[1:])))
        assert not broken[0].is_over and "no such round" in broken[0].activity.trouble
        with pytest.raises(AgentError, match=r"until the next start .IndexError: no such round"):
            await broken[0].do(lambda now_s: [])
    homes[0].rounds = homes[0].fresh()
    async with village(homes):
        again = homes[0].rounds.get(broken[0].cid)
        await until(lambda: again.is_over)
