"""Whole members in a secure round over the simulated network: files, masks, and what anybody can prove of the sum."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from agents.federation.files.audit import audit, verdict_of
from agents.federation.members.actions import Deal
from protocols.entry import make_entry
from protocols.rounds import Close, Result, Unmask, content_of, scope_of
from simulations.net import SimWorld
from tests.agents.federation.node.test_service import Home, begun, connected, until
from tests.agents.federation.secure.liars import false_shares

SECURE: dict[str, Any] = {"secure": {}, "max_norm": 4.0, "min_participants": 3, "lease_s": 5.0, "deadline_s": 60.0}


@pytest.fixture
def four(sim_world: SimWorld, tmp_path: Path) -> list[Home]:
    return [Home(sim_world, name, tmp_path) for name in ("ada", "bob", "cleo", "dan")]


@asynccontextmanager
async def all_up(homes: list[Home]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for home in homes:
            await stack.enter_async_context(home.running())
        await connected(homes)
        yield


@pytest.mark.parametrize("server", [None, {"server": "fedavgm", "beta": 0.85}])
async def test_members_come_to_one_sum_and_each_proves_it(
    four: list[Home], autojump_clock: Any, server: dict[str, Any] | None
) -> None:
    async with all_up(four):
        plan = four[0].plan(four, **SECURE, server=server)
        ones = await begun(four, plan)
        await until(lambda: all(one.is_over for one in ones))
        assert len({one.book.result(2) for one in ones}) == 1
        book, ports = ones[3].book, four[3].node.ports
        assert {submit.n_samples for _, submit in book.all_of(type(book.submissions(1).popitem()[1].event))} == {1}
        findings = audit(ports, plan, book.entries(), four[3].folder / "scratch")
        assert [one.verdict for one in findings if one.round] == ["proved", "proved"]
        assert verdict_of(findings) == "proved"


def private(noise: str, epsilon: float, **changes: Any) -> dict[str, Any]:
    budget = {"epsilon": epsilon, "delta": 1e-5}
    return {"privacy": {"noise": noise, "bound": 1.0, "multiplier": 1.0, "budget": budget}, **changes}


@pytest.mark.parametrize("noise", ["central", "distributed"])
async def test_an_experiment_ends_when_its_budget_is_spent_and_anybody_can_prove_its_results(
    four: list[Home], autojump_clock: Any, noise: str
) -> None:
    async with all_up(four):
        changes = SECURE if noise == "distributed" else {"min_participants": 3}
        plan = four[0].plan(four, **private(noise, 9.0, n_rounds=9), **changes)
        ones = await begun(four, plan)
        await until(lambda: all(one.is_over for one in ones))
        n_done = ones[0].book.current() - 1
        assert 1 < n_done < 9 and not ones[0].is_borne
        assert len({one.book.result(n_done) for one in ones}) == 1
        for home, one in zip(four, ones, strict=True):
            budget = home.folder / "rounds" / f"{one.cid}.budget"
            n_told = sum(said.author == home.identity.peer_id for said, _ in one.book.all_of(Result))
            assert n_told <= budget.read_bytes().count(b'"round"') <= n_done  # each charged what it told
            assert (epsilon := one.secrets.epsilon(one.book)) is not None and 0.0 < epsilon <= 9.0
        findings = audit(four[3].node.ports, plan, ones[3].book.entries(), four[3].folder / "scratch")
        assert verdict_of(findings) == "proved", findings
        assert [one.verdict for one in findings if one.is_of_plan]
        assert "the privacy budget does not bear it" in findings[-1].what
        beyond = Result(round=n_done + 1, close=plan.cid, result=plan.cid)  # what no honest member says
        height, scope = ones[3].book.height(four[0].identity.peer_id), scope_of(ones[3].cid)
        entry = make_entry(four[0].identity, Result.kind, scope, height, [], content_of(beyond))
        findings = audit(four[3].node.ports, plan, [*ones[3].book.entries(), entry], four[3].folder / "scratch")
        refuted = [one for one in findings if one.verdict == "refuted"]
        assert [(one.round, one.by) for one in refuted] == [(n_done + 1, four[0].identity.peer_id)]


async def test_a_ledger_that_cannot_be_written_keeps_the_sum_masked(four: list[Home], autojump_clock: Any) -> None:
    async with all_up(four):
        plan = four[0].plan(four, **private("distributed", 9.0, n_rounds=1), **SECURE)
        for home in four:
            one = await home.rounds.follow(plan, home.data)
            one.secrets._budget_path.mkdir()  # a folder is no ledger, and no file takes its place
        ones = await begun(four, plan)
        await until(lambda: ones[0].book.final(1) is not None)
        with pytest.raises(trio.TooSlowError):
            await until(lambda: ones[0].book.current() > 1, 60.0)
        assert not ones[0].book.all_of(Unmask)
        assert "unmasking round 1" in ones[0].activity.trouble


async def test_a_masked_update_of_another_size_gets_no_receipt_and_is_left_out(
    four: list[Home], autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_up(four):
        plan = four[0].plan(four, **(SECURE | {"n_rounds": 1, "deadline_s": 20.0}))
        mallory = await four[3].rounds.follow(plan, four[3].data)
        mask = mallory.secrets.mask

        def longer(book: Any, number: int, update: Path, out: Path, n_samples: int) -> Any:
            gather = mask(book, number, update, out, n_samples)
            out.write_bytes(out.read_bytes() + bytes(4))
            return gather

        monkeypatch.setattr(mallory.secrets, "mask", longer)
        ones = await begun(four, plan)
        await until(lambda: all(one.is_over for one in ones[:3]))
        final = ones[0].book.final(1)
        assert final is not None and isinstance(final.event, Close) and len(final.event.submissions) == 3


async def test_nobody_but_its_user_can_read_secrets_and_they_go_with_the_round(
    four: list[Home], autojump_clock: Any
) -> None:
    async with all_up(four):
        ones = await begun(four, four[0].plan(four, **SECURE, n_rounds=1))
        await until(lambda: all(one.is_over for one in ones))
        path = four[0].folder / "rounds" / f"{ones[0].cid}.secrets"
        assert path.stat().st_mode & 0o077 == 0
        await until(lambda: b'"rounds":[]' in path.read_bytes())


async def test_a_dealer_of_false_shares_is_named_by_all_and_the_experiment_ends_without_it(
    four: list[Home], autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_up(four):
        plan = four[0].plan(four, **SECURE)
        mallory = await four[3].rounds.follow(plan, four[3].data)
        honest = mallory.secrets.answer

        def answer(book: Any, action: Any) -> Any:
            said = partial(honest, book, action)
            return false_shares("another secret", said, {1, 2, 3, 4}) if isinstance(action, Deal) else said()

        monkeypatch.setattr(mallory.secrets, "answer", answer)
        ones = (await begun(four, plan))[:3]
        await until(lambda: all(one.is_over for one in ones))
        assert len({one.book.result(2) for one in ones}) == 1
        for number in (1, 2):
            final = ones[0].book.final(number)
            assert final is not None and isinstance(final.event, Close) and len(final.event.submissions) == 3
        findings = audit(four[1].node.ports, plan, ones[1].book.entries(), four[1].folder / "scratch")
        assert {one.by for one in findings if one.verdict == "refuted"} == {four[3].identity.peer_id}
        assert [one.verdict for one in findings if one.round] == ["proved", "proved"]
