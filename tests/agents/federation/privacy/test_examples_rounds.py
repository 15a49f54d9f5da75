"""Participants that hide their own examples: what each sends is counted before it leaves, and ends with its budget."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from agents.federation.events.book import Book
from agents.federation.files.audit import audit, verdict_of
from agents.federation.files.shelf import Keep
from agents.federation.members.member import Member
from agents.federation.node import secrets as secrets_module
from agents.federation.node.secrets import Secrets
from agents.federation.plans.privacy_accounts import Accounts, examples_of, told_of_examples, uses_of_examples
from agents.federation.privacy.ledger import Ledger
from agents.federation.tasks import Made, Work, task_of
from agents.federation.updates.tensors import read_layout, read_vector
from agents.training.settings import ExampleNoise
from protocols.rounds import Leave, State, Submit
from simulations.net import SimWorld
from storage.cid import Cid
from tests.agents.federation.node.test_service import TASK, Home, begun, until
from tests.agents.federation.secure.test_secure_service import SECURE, all_up

DELTA = 1e-5
HIDDEN: dict[str, Any] = {"task": TASK | {"batch": 8}, "is_evaluated": False}


def private(epsilon: float, **budget: Any) -> dict[str, Any]:
    budget = {"epsilon": epsilon, "delta": DELTA, **budget}
    return HIDDEN | {"privacy": {"noise": "examples", "bound": 1.0, "multiplier": 2.0, "budget": budget}}


@pytest.fixture
def three(sim_world: SimWorld, tmp_path: Path) -> list[Home]:
    return [Home(sim_world, name, tmp_path) for name in ("ada", "bob", "cleo")]


def ledger_of(home: Home, one: Any) -> Ledger:
    privacy = examples_of(one.plan)
    assert privacy is not None
    return Ledger(home.folder / "rounds" / f"{one.cid}.budget", one.cid, privacy.budget)


async def test_an_experiment_ends_when_too_few_have_something_left_and_is_proved_as_far_as_it_can_be(
    three: list[Home], autojump_clock: Any
) -> None:
    async with all_up(three):
        plan = three[0].plan(three, n_rounds=9, **private(4.0))
        ones = await begun(three, plan)
        await until(lambda: all(one.is_over for one in ones))
        n_done = ones[0].book.current() - 1
        assert 1 < n_done < 9 and not ones[0].is_borne
        assert len({one.book.result(n_done) for one in ones}) == 1
        submitted = [event for _, event in ones[0].book.all_of(Submit)]
        assert {event.loss for event in submitted} == {None} and {event.n_samples for event in submitted} == {36}
        for home, one in zip(three, ones, strict=True):
            ledger = ledger_of(home, one)
            own = [event.update for _, event in one.book.said_by(home.identity.peer_id, Submit)]
            assert [charge.result for charge in ledger.charges] == [str(update) for update in own]
            assert 0.0 < ledger.epsilon <= 4.0 < ledger._file.budget.cost([*ledger.charges[0].told] * (n_done + 1))
            assert one.secrets.epsilon(one.book) == pytest.approx(ledger.epsilon)
            assert "bears no other" in one.activity.trouble
        await until(lambda: len(ones[0].book.all_of(Leave)) == 3)
        findings = audit(three[2].node.ports, plan, ones[2].book.entries(), three[2].folder / "scratch")
        assert verdict_of(findings) == "proved", findings
        assert any("its noise is its own secret" in one.what for one in findings if one.verdict == "not decidable")
        assert "the privacy budget does not bear it" in findings[-1].what


async def test_who_hears_of_updates_behind_the_close_that_lists_them_ends_where_the_others_do(
    three: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    """What it counted for nothing meanwhile would have it open, and close, a round that there is not."""
    monkeypatch.setattr(Secrets, "check_examples", lambda secrets: None)  # who finds nothing left would leave
    ada = three[0]
    async with all_up(three):
        plan = ada.plan(three, n_rounds=9, **private(4.0))
        ones = await begun(three, plan)
        await until(lambda: all(one.is_over for one in ones))
        number, me = ones[0].book.current(), ada.identity.peer_id
        heard = Book(plan)  # where nobody computed anything: a round is over there once over half have told its result
        await until(lambda: not heard.add_all(ones[0].book.entries()) and heard.current() == number)
        entries = list(ones[0].book.entries())
    late = {said.cid for said, event in ones[0].book.all_of(Submit) if event.round == number - 1 and said.author != me}
    book = Book(plan)
    secrets = Secrets(ada.node.ports, book, Keep(ada.node.ports, ones[0].cid, book.plan), ada.folder / "j", ada.folder)
    member = Member(ada.identity, book, secrets.bears)
    before, _ = member.receive([one for one in entries if one.cid not in late], 0.0)
    assert book.current() == number
    after, _ = member.receive([one for one in entries if one.cid in late], 1.0)
    assert [*before, *after, *member.tick(2.0 + book.plan.deadline_s)] == []


async def test_who_has_nothing_left_leaves_and_the_others_go_on(three: list[Home], autojump_clock: Any) -> None:
    labels = np.arange(400) % 3
    for home in three[:2]:  # of more examples each step takes a smaller part, and the same noise tells less
        np.savez(home.data, x=np.eye(4)[labels], y=labels)
    async with all_up(three):
        changes = private(1.9) | {"task": TASK | {"batch": 8, "n_epochs": 1}}
        plan = three[0].plan(three, n_rounds=3, **changes)
        ones = await begun(three, plan)
        await until(lambda: all(one.is_over for one in ones))
        assert ones[0].book.current() == 4 and ones[0].is_borne
        assert [said.author for said, _ in ones[0].book.all_of(Leave)] == [three[2].identity.peer_id]
        uses, privacy = uses_of_examples(ones[0].book, 4), examples_of(ones[0].plan)
        assert privacy is not None and sorted(map(len, uses.values())) == [2, 3, 3]
        assert all(privacy.budget.cost(one) <= 1.9 for one in uses.values())


async def test_of_two_who_ask_for_a_budget_at_once_one_opens_its_ledger(
    three: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    """What one charges the other would not know, and write over."""
    async with all_up(three):
        one = await three[0].rounds.follow(three[0].plan(three, n_rounds=1, **private(9.0)), three[0].data)
        secrets, alone = one.secrets, list[bool]()

        def opened(*args: Any) -> Ledger:
            alone.append(secrets._opening.locked())
            return Ledger(*args)

        monkeypatch.setattr(secrets_module, "Ledger", opened)
        secrets._ledger = None
        assert not secrets.trouble and not secrets.trouble and alone == [True]


async def test_an_update_that_cannot_be_counted_is_shown_to_nobody(
    three: list[Home], autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Cid] = []
    monkeypatch.setattr(Keep, "show", lambda keep, cid, show=Keep.show: (shown.append(cid), show(keep, cid)))
    async with all_up(three):
        plan = three[0].plan(three, n_rounds=1, **private(9.0))
        for home in three:
            one = await home.rounds.follow(plan, home.data)
            one.secrets._budget_path.mkdir()  # a folder is no ledger, and no file takes its place
        ones = await begun(three, plan)
        with pytest.raises(trio.TooSlowError):
            await until(lambda: bool(ones[0].book.all_of(Submit)), 30.0)
        assert "training round 1" in ones[0].activity.trouble and "budget" in ones[0].activity.trouble
        assert set(shown) == {ones[0].plan.initial}


async def test_under_masks_each_keeps_its_account_alone_and_tells_no_number_of_examples(
    three: list[Home], autojump_clock: Any
) -> None:
    async with all_up(three):
        plan = three[0].plan(three, n_rounds=2, **(SECURE | private(20.0)))
        ones = await begun(three, plan)
        await until(lambda: all(one.is_over for one in ones))
        assert {event.n_samples for _, event in ones[0].book.all_of(Submit)} == {1}
        assert uses_of_examples(ones[0].book, 3) == {} and Accounts().epsilon(ones[0].book) == 0.0
        for home, one in zip(three, ones, strict=True):
            assert [charge.told for charge in ledger_of(home, one).charges] == [(told_of_examples(one.plan, 36),)] * 2
            assert one.secrets.epsilon(one.book) == ledger_of(home, one).epsilon > 0.0


async def test_without_a_coordinator_each_state_is_counted_before_it_is_given_to_anybody(
    three: list[Home], autojump_clock: Any
) -> None:
    async with all_up(three):
        gossip = {"mixing": "push_sum", "topology": "full"}
        plan = three[0].plan(three, n_rounds=2, gossip=gossip, **private(20.0))
        ones = await begun(three, plan)
        await until(lambda: all(one.is_over for one in ones))
        for home, one in zip(three, ones, strict=True):
            states = [event for _, event in one.book.said_by(home.identity.peer_id, State)]
            assert {(event.loss, event.n_samples) for event in states} == {(None, 36)}
            ledger = ledger_of(home, one)
            assert {charge.result for charge in ledger.charges} == {str(event.tensors) for event in states}
            assert one.secrets.epsilon(one.book) == ledger.epsilon > 0.0


@pytest.mark.parametrize(
    "changes", [{"task": {"task": "of nobody here"}}, {"task": {"task": "given"}}, {"multiplier": 9000.0}]
)
async def test_who_follows_a_plan_whose_updates_it_cannot_account_for_goes_on(
    three: list[Home], autojump_clock: Any, changes: dict[str, Any]
) -> None:
    async with all_up(three):
        fields = private(4.0)
        fields["privacy"] |= {key: value for key, value in changes.items() if key != "task"}
        plan = three[0].plan(three, **fields | {key: value for key, value in changes.items() if key == "task"})
        one = await three[0].rounds.follow(plan)
        assert uses_of_examples(one.book, 5) == {} and one.is_borne


async def trained(folder: Path, data: Path, noise: ExampleNoise | None, **changes: Any) -> tuple[Made, Any]:
    task = task_of(TASK | changes)
    folder.mkdir()
    task.initial(folder / "base")
    made = await task.train(Work(folder / "base", data, bytes(32), folder / "update", noise=noise))
    return made, read_vector(folder / "update", read_layout(folder / "update"))


async def test_softmax_learns_through_the_noise_and_never_the_same_twice(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).integers(0, 3, 2000)
    np.savez(tmp_path / "many.npz", x=np.eye(4)[labels], y=labels)
    noise = ExampleNoise(bound=1.0, multiplier=1.0)
    settings = {"batch": 200, "n_epochs": 4, "learning_rate": 1.0}
    first, update = await trained(tmp_path / "one", tmp_path / "many.npz", noise, **settings)
    _, again = await trained(tmp_path / "two", tmp_path / "many.npz", noise, **settings)
    plain, exact = await trained(tmp_path / "three", tmp_path / "many.npz", None, **settings)
    assert (first.n_samples, first.n_steps) == (plain.n_samples, plain.n_steps) == (1800, 36)
    assert (update != again).any()
    assert plain.loss is not None and first.loss is not None and first.loss < plain.loss + 0.1 < 1.0
    cosine = update @ exact / np.linalg.norm(update) / np.linalg.norm(exact)
    assert 0.9 < cosine < 1.0


async def test_without_much_noise_a_step_over_all_is_the_mean_of_shortened_gradients(tmp_path: Path) -> None:
    x = np.array([[1.0, 0, 0, 0], [0, 0, 0, 200.0]])
    np.savez(tmp_path / "two.npz", x=x, y=np.array([0, 2]))
    noise = ExampleNoise(bound=0.5, multiplier=1e-3)
    _, update = await trained(
        tmp_path / "one", tmp_path / "two.npz", noise, n_epochs=1, batch=9, held_out=0.0, learning_rate=1.0
    )
    error = np.full((2, 3), 1 / 3) - np.eye(3)[[0, 2]]
    exact = np.concatenate([error, (x[:, :, None] * error[:, None, :]).reshape(2, -1)], axis=1)
    exact *= np.minimum(1.0, 0.5 / np.linalg.norm(exact, axis=1))[:, None]
    assert np.abs(update + exact.mean(axis=0)).max() < 0.005
