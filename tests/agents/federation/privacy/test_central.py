"""Noise that its coordinator draws: part of what is agreed on, computed again by all, refused where it is none."""

from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from agents.federation.events.book import Book
from agents.federation.events.said import Said
from agents.federation.events.soundness import why_not
from agents.federation.plans import privacy_accounts
from agents.federation.plans.privacy_accounts import Accounts, lattice_of, told
from agents.federation.privacy.ledger import Budget
from agents.federation.privacy.noise import MAX_DEVIATION, MAX_MAGNITUDE
from agents.federation.privacy.spent import Spent
from agents.federation.results import verify
from agents.federation.results.outcome import Outcome, Submitted, compute, draw_noise
from agents.federation.updates.tensors import MAX_TENSORS_BYTES, Layout, flush, new_vector, read_vector
from protocols.entry import make_entry
from protocols.rounds import Close, Event, Plan, Promise, Submit, Vote, content_of, read_plan, scope_of
from storage.cid import RAW, Cid
from tests.agents.federation.members.test_member import LONG_S, begin, is_done, kill_when, results
from tests.agents.federation.village import cid_of, identity, make_plan

LAYOUT = Layout.of({"weight": (20, 20)})
PRIVACY = {"noise": "central", "bound": 1.0, "multiplier": 0.5, "budget": {"epsilon": 100.0, "delta": 1e-5}}
N = 4


def plan(**changes: object) -> Plan:
    return read_plan(make_plan(N, **({"privacy": PRIVACY, "min_participants": 3} | changes))[1])


def write(path: Path, values: object, layout: Layout = LAYOUT) -> Path:
    vector = new_vector(path, layout)
    vector[:] = np.asarray(values, np.float32)
    flush(vector, path)
    return path


def run(folder: Path, noise: Path, scale: float = 0.01) -> Outcome:
    base = write(folder / "base", np.zeros(400))
    ones = []
    for number in range(N):
        path = write(folder / f"update-{number}", np.full(400, scale * (number + 1)))
        submit = Submit(round=1, base=Cid.of(b"base", RAW), update=Cid.of(path.read_bytes(), RAW), n_samples=1)
        ones.append(Submitted(identity(number).peer_id, submit, path, 0))
    (folder / "out").mkdir()
    return compute(plan(), base, ones, folder / "out", seed=b"", noise=noise)


def test_the_result_is_the_mean_of_clipped_updates_with_that_noise_and_no_other(tmp_path: Path) -> None:
    noise = write(tmp_path / "noise", 1000.0 * np.resize([1, -1], 400) * np.arange(1, 5).repeat(100))
    found = run(tmp_path, noise, scale=1.0)  # norms of 20 and more: all are clipped to 1
    grid = lattice_of(plan())
    assert not found.failed and grid is not None
    mean = np.array(read_vector(found.tensors, LAYOUT), np.float64)
    values = np.array(read_vector(noise, LAYOUT), np.float64)
    np.testing.assert_allclose(mean - values * grid.step / N, 1.0 / 20.0, rtol=2e-2)


def test_drawn_noise_has_the_grids_deviation_and_is_new_each_time(tmp_path: Path) -> None:
    base = write(tmp_path / "tensors", np.zeros(400))
    draw_noise(plan(), 1, base, tmp_path / "one")
    draw_noise(plan(), 1, base, tmp_path / "other")
    one, other = (np.array(read_vector(tmp_path / name, LAYOUT), np.float64) for name in ("one", "other"))
    assert 0.7 < one.std() / MAX_DEVIATION < 1.3 and (one != other).mean() > 0.9  # of 400: eight deviations and more
    assert not run(tmp_path, tmp_path / "one").failed


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.zeros(400), "far less than the plan"),
        (np.resize([1.0, -1.0], 400), "far less than the plan"),
        (np.full(400, 9000.0), "far more than the plan"),
        (np.full(400, 0.5), "whole steps"),
        (np.full(400, np.nan), "whole steps"),
        (np.full(400, np.inf), "whole steps"),
        (np.full(400, float(MAX_MAGNITUDE)), "whole steps"),
    ],
)
def test_noise_that_was_dropped_or_is_none_leaves_the_tensors_what_they_were(
    tmp_path: Path, values: object, why: str
) -> None:
    found = run(tmp_path, write(tmp_path / "noise", values))
    assert why in found.failed
    assert not np.array(read_vector(found.tensors, LAYOUT)).any()


@pytest.mark.parametrize("data", [b"", b"noise", bytes(1700)])
def test_noise_that_is_no_file_of_the_bases_form_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "noise").write_bytes(data)
    assert "the noise cannot be read" in run(tmp_path, tmp_path / "noise").failed


def test_noise_of_other_shapes_is_refused(tmp_path: Path) -> None:
    other = write(tmp_path / "noise", np.ones(4), Layout.of({"weight": (2, 2)}))
    assert "does not fit the base" in run(tmp_path, other).failed


@pytest.mark.parametrize("kind", ["close", "vote", "result"])
def test_a_deputy_ends_the_round_with_the_noise_that_was_countersigned(kind: str) -> None:
    village = begin(7, n_members=N, privacy=PRIVACY, min_participants=3, n_rounds=1)
    kill_when(village, village.villagers[0], kind)
    village.run(LONG_S, lambda: not village.villagers[0].is_up and is_done(village))
    results(village)
    final = village.villagers[1].book.final(1)
    assert final is not None and isinstance(final.event, Close) and final.event.noise is not None
    if kind == "result":
        assert final.event.term == 0
    assert sum(final.event.noise in one.updates for one in village.villagers) >= 3  # held by who countersigned


def test_a_close_without_the_noise_that_its_plan_asks_for_is_not_sound() -> None:
    village = begin(7, n_members=N, privacy=PRIVACY, min_participants=3, n_rounds=1)
    village.run(LONG_S, lambda: is_done(village))
    book = village.villagers[1].book
    final = book.final(1)
    assert final is not None and why_not(book, final) == ""
    bare = Said(
        final.entry, Close(**{name: getattr(final.event, name) for name in ("round", "term", "submissions", "joined")})
    )
    assert "none where the plan asks for it" in why_not(book, bare)
    plain = begin(7, n_members=N, n_rounds=1)
    plain.run(LONG_S, lambda: is_done(plain))
    book = plain.villagers[1].book
    found = book.final(1)
    assert found is not None and isinstance(found.event, Close)
    noisy = Close(
        round=1, term=0, submissions=found.event.submissions, joined=found.event.joined, noise=Cid.of(b"n", RAW)
    )
    assert "noise where none belongs" in why_not(book, Said(found.entry, noisy))


def test_fewer_reports_cost_more_under_distributed_noise_and_colluders_count_for_nothing() -> None:
    secure = {"secure": {"n_colluders": 1}, "max_norm": 1.0, "privacy": PRIVACY | {"noise": "distributed"}}
    the_plan = plan(**secure)
    assert told(the_plan, 3).multiplier < told(the_plan, 4).multiplier
    assert told(the_plan, 3).multiplier == pytest.approx(0.5, rel=1e-2)  # two of three, as the plan promises
    assert told(the_plan, 1).multiplier == 0.0


def test_a_round_is_accounted_with_the_noise_of_those_who_reported_in_it() -> None:
    secure = {"secure": {"n_colluders": 1}, "max_norm": 1.0, "privacy": PRIVACY | {"noise": "distributed"}}
    village = begin(9, n_members=N, min_participants=3, n_rounds=1, **secure)
    kill_when(village, village.villagers[3], "submit")
    village.run(LONG_S, lambda: not village.villagers[3].is_up and is_done(village))
    book = village.villagers[0].book
    assert len(book.selected(1) or ()) == N and book.result(1) is not None
    budget = Budget(100.0, 1e-5)
    assert Accounts().epsilon(book) == budget.cost([told(book.plan, 3)]) > budget.cost([told(book.plan, N)])


@pytest.mark.parametrize(("n_paid_for", "is_borne"), [(3, True), (N, False)])
def test_a_round_begins_where_the_budget_bears_it_with_the_fewest_that_it_needs(
    n_paid_for: int, is_borne: bool
) -> None:
    """More may drop out than have by now, and take their noise along."""
    noise = PRIVACY | {"noise": "distributed"}
    settings = {"secure": {"n_colluders": 1}, "max_norm": 1.0, "min_participants": 3}
    paid = Budget(100.0, 1e-5).cost([told(plan(privacy=noise, **settings), n_paid_for)])
    privacy = noise | {"budget": {"epsilon": paid, "delta": 1e-5}}
    village = begin(9, n_members=N, privacy=privacy, n_rounds=1, **settings)
    village.run(30.0)
    book = village.villagers[0].book
    assert book.minimum(1) == 3 and Accounts().bears(book, 1) == is_borne


def test_a_round_that_the_budget_does_not_bear_never_begins() -> None:
    tight = PRIVACY | {"budget": {"epsilon": 1.0, "delta": 1e-5}}
    village = begin(8, n_members=N, privacy=tight, min_participants=3)
    for one in village.villagers:
        one.member._bears = Accounts().bears
    village.run(100.0)
    assert all(not one.book.opened(1) for one in village.villagers)
    assert Accounts().epsilon(village.villagers[0].book) == 0.0
    assert Accounts().bears(Book(make_plan(N)[1]), 1)


@pytest.mark.parametrize(("noise", "what"), [("central", "told"), ("examples", "told_of_examples")])
def test_what_many_rounds_alike_told_is_worked_out_once(monkeypatch: pytest.MonkeyPatch, noise: str, what: str) -> None:
    task = {"task": "softmax", "n_features": 4, "n_classes": 3, "n_epochs": 1}
    village = begin(8, n_members=N, privacy=PRIVACY | {"noise": noise}, min_participants=3, n_rounds=5, task=task)
    village.run(LONG_S, lambda: is_done(village))
    n_asked, work_out = Counter[int](), getattr(privacy_accounts, what)

    def counted(plan: Plan, n: int) -> Spent:
        n_asked[n] += 1
        return cast(Spent, work_out(plan, n))

    monkeypatch.setattr(privacy_accounts, what, counted)
    assert (Accounts().epsilon(village.villagers[0].book) or 0.0) > 0.0
    assert n_asked and set(n_asked.values()) == {1}


@pytest.mark.parametrize(("part", "verdict"), [(1.0 - 1e-7, "not decidable"), (1.0 - 1e-4, "proved")])
def test_a_round_that_costs_the_budget_to_its_last_bits_refutes_nobody(part: float, verdict: str) -> None:
    cost = Budget(100.0, 1e-5).cost([told(plan(), 3)])
    privacy = PRIVACY | {"budget": {"epsilon": cost * part, "delta": 1e-5}}
    village = begin(8, n_members=N, privacy=privacy, min_participants=3, n_rounds=1)
    village.run(LONG_S, lambda: is_done(village))
    book = village.villagers[0].book
    assert not Accounts().bears(book, 1) and book.final(1) is not None
    found = [one for one in verify.verify(book, cast(verify.Files, None)) if one.round == 1]
    assert [one.verdict for one in found] == [verdict, *(["refuted"] * N if verdict == "proved" else [])]


class Room:
    """A round with noise that is none, closed by whom it says; with the files that verifying asks for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write(folder / "base", np.zeros(400))
        self.noise = cid_of("noise")
        write(folder / "noise", np.zeros(400))
        self.book = Book(make_plan(N, privacy=PRIVACY, min_participants=3)[1])
        self._next = dict.fromkeys(range(N), 0)

    def path(self, cid: Cid, max_bytes: int = MAX_TENSORS_BYTES) -> Path:
        return self.folder / ("noise" if cid == self.noise else "base")

    def say(self, number: int, event: Event) -> Said:
        self._next[number] += 1
        scope = scope_of(self.book.experiment)
        entry = make_entry(identity(number), event.kind, scope, self._next[number] - 1, [], content_of(event))
        said = self.book.add(entry)
        assert said is not None
        return said

    def close(self, by: int, term: int, *promises: Cid) -> Said:
        event = Close(round=1, term=term, submissions=(), joined=(), noise=self.noise, promises=promises)
        return self.say(by, event)

    def blamed(self, final: Said) -> list[int]:
        found = {one.by for one in verify._noise_faults(self.book, final, cast(verify.Files, self))}
        return [number for number in range(N) if identity(number).peer_id in found]


def test_who_drew_noise_that_is_none_is_blamed_and_neither_its_deputy_nor_who_names_it_besides(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.close(3, 0)  # an accomplice, whose turn it is not
    final = room.close(1, 1)
    room.close(0, 0)  # and one whose turn it was, once it knows of the other
    assert room.blamed(final) == [1]
    vote = room.say(2, Vote(round=1, term=1, close=final.cid))
    promise = room.say(2, Promise(round=1, term=2, vote=vote.cid))
    assert room.blamed(room.close(2, 2, promise.cid)) == [1], "a deputy is bound to what was countersigned"
