"""Members without a coordinator: real cores and files over a simulated network, on a virtual clock."""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from agents.aggregation.updates import Vector
from agents.federation.events.book import Book
from agents.federation.events.said import Said
from agents.federation.members.actions import Action, Fetch
from agents.federation.results.neighbours import Round, rounds, verify_gossip
from agents.federation.updates.tensors import Layout
from protocols.entry import Entry, make_entry
from protocols.rounds import Mix, Score, Start, State, content_of, read_event, scope_of
from simulations.neighbourhood import Neighbourhood, Training
from storage.cid import Cid

N = 9
ZEROS = np.zeros(4, np.float32)
WAYS = [
    ("moshpit", "flock"),
    *((mixing, topology) for mixing in ("d_psgd", "push_sum") for topology in ("ring", "exponential", "full", "flock")),
]


def first_of(number: int) -> Vector:
    """Of each member, other numbers; whole ones, of which sums are exact."""
    return np.array([number, -number, number * number, 9.0], np.float32) * 9


def at_first(number: int, round_number: int, model: Vector) -> Vector:
    """In the first round each becomes what it is; then nobody trains."""
    return first_of(number) if round_number == 1 else model


GOAL = np.mean([first_of(number).astype(np.float64) for number in range(N)], axis=0)


def begun(
    folder: Path, mixing: str, topology: str = "flock", n_rounds: int = 12, train: Training = at_first, **changes: Any
) -> Neighbourhood:
    gossip = {"mixing": mixing, "topology": topology, "n_neighbours": 4, "n_dimensions": 2}
    made = Neighbourhood(N, 5, folder, ZEROS, train, gossip=gossip, n_rounds=n_rounds, **changes)
    made.start()
    return made


def ended(crowd: Neighbourhood, until_s: float = 2000.0) -> list[Vector]:
    crowd.run(until_s)
    last = crowd.members[0].book.plan.n_rounds
    means = [crowd.mean(number, last) for number, is_up in enumerate(crowd.is_up) if is_up]
    return [crowd.model(mean.tensors) for mean in means if mean is not None]


def verdicts(crowd: Neighbourhood, by: int = 0) -> set[str]:
    return {one.verdict for one in crowd.findings(by) if not one.is_of_plan}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where it can be: hundreds of files are written, and synced."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as name:
        yield Path(name)


@pytest.mark.parametrize(("mixing", "topology"), WAYS)
def test_all_come_to_the_mean_of_all_and_each_step_is_proved(folder: Path, mixing: str, topology: str) -> None:
    crowd = begun(folder, mixing, topology, n_rounds=20 if topology == "ring" else 10)
    models = ended(crowd)
    assert len(models) == N
    for model in models:
        np.testing.assert_allclose(model, GOAL, rtol=0.05 if topology == "ring" else 2e-3)
    assert verdicts(crowd) == {"proved"}


def test_weights_that_do_not_come_to_the_number_of_members_are_no_proof(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mean follows from what it names, and still something is not known: it is said to be undecided."""
    crowd = begun(folder, "push_sum", n_rounds=2)
    ended(crowd)

    def heavier(book: Book) -> Iterator[Round]:
        return (one._replace(under_way=1.0) for one in rounds(book))

    monkeypatch.setattr("agents.federation.results.neighbours.rounds", heavier)
    findings = [one for one in crowd.findings(0) if not one.is_of_plan]
    assert {one.verdict for one in findings} == {"proved", "not decidable"}
    assert any("were handed out: not all states are known here" in one.what for one in findings)


def test_a_full_grid_holds_the_exact_mean_after_a_round_for_each_dimension(folder: Path) -> None:
    crowd = begun(folder, "moshpit", n_rounds=2)
    models = ended(crowd)
    assert len(models) == N and all((model == GOAL).all() for model in models)


def test_the_same_exchanges_bring_the_same_bits(folder: Path) -> None:
    found = []
    for run in ("one", "two"):
        (folder / run).mkdir()
        crowd = begun(folder / run, "push_sum", n_rounds=4)
        ended(crowd)
        found.append([mean.tensors for number in range(N) if (mean := crowd.mean(number, 4)) is not None])
    assert found[0] == found[1] and len(found[0]) == N


def weights(crowd: Neighbourhood, number: int, of: set[int]) -> list[float]:
    return [mean.weight for one in of if (mean := crowd.mean(one, number)) is not None]


@pytest.mark.parametrize("topology", ["exponential", "flock"])
def test_push_sum_loses_no_mass_when_members_drop_out_and_come_back(folder: Path, topology: str) -> None:
    """Who is away is given less and less, and what it was given waits for it."""
    crowd = begun(folder, "push_sum", topology, n_rounds=20)
    crowd.run(30.0)
    crowd.is_up[3] = crowd.is_up[7] = False
    crowd.run(70.0)
    crowd.is_up[3] = crowd.is_up[7] = True
    models = ended(crowd)
    last = crowd.members[0].book.plan.n_rounds
    *_, end = rounds(crowd.members[0].book)
    held = math.fsum(weights(crowd, last, set(range(N))))
    assert held + end.under_way == pytest.approx(N, abs=1e-9)
    total = sum(
        model.astype(np.float64) * weight
        for model, weight in zip(models, weights(crowd, last, set(range(N))), strict=True)
    )
    if end.under_way == 0:
        np.testing.assert_allclose(total / N, GOAL, rtol=1e-6)
    assert verdicts(crowd) == {"proved"}


@pytest.mark.parametrize("mixing", ["moshpit", "d_psgd", "push_sum"])
def test_who_dies_for_good_is_waited_for_a_lease_and_no_longer(folder: Path, mixing: str) -> None:
    crowd = begun(folder, mixing, "exponential", n_rounds=10)
    crowd.run(12.0)
    crowd.is_up[4] = False
    models = ended(crowd, 400.0)
    assert len(models) == N - 1 and crowd.now_s < 300.0
    spread = np.ptp(np.array(models), axis=0)
    assert (spread < 1.0).all()
    assert "refuted" not in verdicts(crowd)


def test_who_is_given_nothing_gives_no_more_once_hardly_a_weight_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a weight that is halved and halved nothing is left in the end, and no mean either."""
    monkeypatch.setattr("agents.federation.neighbours.views.LEAST_SPLIT", 0.01)
    crowd = begun(folder, "push_sum", "full", n_rounds=6)
    for number in range(1, N):
        crowd.neighbour(number)._receivers = lambda number, now_s: ()  # type: ignore[method-assign]
    assert (ended(crowd)[0] == first_of(0)).all()
    weights_of = [mean.weight for r in range(1, 7) if (mean := crowd.mean(0, r)) is not None]
    assert weights_of == [pytest.approx(w) for w in (1 / 9, 1 / 81, 1 / 729, 1 / 729, 1 / 729, 1 / 729)]
    assert verdicts(crowd) == {"proved"}


def test_who_has_said_all_that_is_taken_of_one_member_says_no_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("events.book", "members.neighbour"):
        monkeypatch.setattr(f"agents.federation.{module}.MAX_EVENTS_OF_AUTHOR", 8)
    crowd = begun(folder, "push_sum", "full", n_rounds=6)
    crowd.run(200.0)
    assert {crowd.members[0].book.height(one.peer_id) for one in crowd.identities} == {8}


def test_nobody_takes_more_weight_than_there_are_members(folder: Path) -> None:
    """As members could give who fork, each to a few of them alone: it would count for more than all others."""
    crowd = begun(folder, "push_sum", "full", n_rounds=1)
    ended(crowd)
    views = crowd.neighbour(0).views
    own, *others = [said for said, _ in views.book.all_of(State)]
    heavy = [replace(cast_state(said), weight=5.0 * N) for said in others[:2]]
    given = [Said(others[0].entry, heavy[0]), others[2], Said(others[1].entry, heavy[1])]
    assert [said.event for said in views.borne(cast_state(own), given)] == [heavy[0], others[2].event]


def test_who_lists_in_a_group_what_it_gives_to_nobody_is_waited_for_until_the_deadline(folder: Path) -> None:
    crowd = begun(folder, "moshpit", n_rounds=2, deadline_s=20.0)
    crowd.train_s = [5.0] * N
    crowd.train_s[6] = 2.0
    carry_out, kept = crowd._do, set[Cid]()

    def keeps_its_own(number: int, entry: Entry) -> None:
        if (number, entry.kind) == (6, State.kind):
            kept.add(entry.cid)

    def fails(number: int, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Fetch) and action.submission in kept and number != 6:
                crowd.after(2.0, lambda failed=action: crowd.members[number].failed(failed))  # type: ignore[misc]
            else:
                carry_out(number, [action])

    crowd.on_say, crowd._do = keeps_its_own, fails  # type: ignore[method-assign]
    assert len(ended(crowd, 200.0)) == N and crowd.now_s < 100.0
    mates = crowd.neighbour(0).views.neighbours(crowd.identities[6].peer_id, 1)
    lists = [mean.states for n in range(N) if crowd.identities[n].peer_id in mates and (mean := crowd.mean(n, 1))]
    assert [len(one) for one in lists] == [2, 2] and lists[0] == lists[1]
    assert verdicts(crowd) == {"proved"}


def test_a_straggler_is_waited_for_until_the_deadline_and_its_mass_is_taken_late(folder: Path) -> None:
    crowd = begun(folder, "push_sum", "exponential", n_rounds=8, deadline_s=20.0)
    crowd.train_s[2] = 50.0
    ended(crowd)
    late = [mean for number in range(N) for r in range(1, 9) if (mean := crowd.mean(number, r)) is not None]
    views = crowd.neighbour(0).views
    rounds = [(mix.round, cast_state(views.book.get(link)).round) for mix in late for link in mix.states]
    assert any(at > of for at, of in rounds) and all(at >= of for at, of in rounds)
    assert verdicts(crowd) == {"proved"}


def cast_state(said: Any) -> State:
    assert isinstance(said.event, State)
    return said.event


def test_a_member_that_is_restarted_goes_on_and_says_nothing_twice(folder: Path) -> None:
    crowd = begun(folder, "push_sum", n_rounds=6)
    for until_s in (8.0, 15.0, 22.0):
        crowd.run(until_s)
        crowd.restart(1)
    assert len(ended(crowd)) == N and not crowd.members[0].book.broken() and verdicts(crowd) == {"proved"}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda model: model * np.float32(np.nan), "NaN or infinity"),
        (lambda model: model + np.float32(np.inf), "NaN or infinity"),
        (lambda model: model + np.float32(1e6), "away from its receiver's"),
        (lambda model: model[:3], "has shape"),
    ],
)
def test_a_hostile_state_is_refused_by_all_and_the_reason_is_told_and_proved(
    folder: Path, spoil: Callable[[Vector], Vector], says: str
) -> None:
    crowd = begun(folder, "push_sum", "full", n_rounds=3, max_norm=10_000.0)
    real = crowd.shelf.add

    def add(layout: Layout, vector: Vector) -> Cid:
        bad = spoil(vector) if (vector == first_of(6)).all() else vector
        return real(Layout.of({"w": (len(bad),)}), bad)

    def falls_silent(number: int, entry: Entry) -> None:
        crowd.is_up[6] = crowd.is_up[6] and (number, entry.kind) != (6, State.kind)

    crowd.shelf.add, crowd.on_say = add, falls_silent  # type: ignore[method-assign]
    models = ended(crowd, 300.0)
    assert len(models) == N - 1 and all(np.isfinite(model).all() for model in models)
    unfit = [one for n in range(N) if n != 6 and (mean := crowd.mean(n, 1)) for one in mean.unfit]
    assert len(unfit) == N - 1 and all(says in one.reason for one in unfit)
    assert not [one for one in crowd.findings() if one.verdict == "refuted" and one.by != crowd.identities[6].peer_id]


def forge(
    crowd: Neighbourhood, who: int, kind: str, change: Callable[[dict[str, Any]], dict[str, Any]], at: int = 1
) -> None:
    """The event of that kind that a member says of a round says something else."""
    scope, done = scope_of(crowd.plan.body_cid), []

    def lie(number: int, entry: Entry) -> None:
        if (number, entry.kind, entry.content.get("round")) == (who, kind, at) and not done:
            done.append(entry)
            said = crowd._log.pop()[1]
            false = make_entry(
                crowd.identities[who], kind, scope, said.sequence, list(said.prev), change(dict(said.content))
            )
            crowd.say(who, false)
            crowd.is_up[who] = False

    crowd.on_say = lie


@pytest.mark.parametrize(
    ("at", "kind", "change", "says"),
    [
        (1, State.kind, lambda said: said | {"weight": 1e-30}, "a first state follows nothing, with weight 1"),
        (1, State.kind, lambda said: said | {"weight": 9.0}, "a first state follows nothing, with weight 1"),
        (1, State.kind, lambda said: said | {"to": said["to"][::-1]}, "stand in order"),
        (1, State.kind, lambda said: said | {"round": 2}, "names no mean that it follows"),
        (1, State.kind, lambda said: said | {"round": 7}, "of a round that there is not"),
        (2, State.kind, lambda said: said | {"weight": said["weight"] * 2}, "not that of the mean before it"),
        (1, Mix.kind, lambda said: said | {"weight": said["weight"] / 2}, "its weight is"),
        (1, Mix.kind, lambda said: said | {"states": []}, "no mean of its author's own state"),
        (1, Mix.kind, lambda said: said | {"states": said["states"][::-1]}, "do not stand in order"),
    ],
)
def test_an_event_that_does_not_hold_is_refuted_by_name_and_not_taken(
    folder: Path, at: int, kind: str, change: Callable[[dict[str, Any]], dict[str, Any]], says: str
) -> None:
    crowd = begun(folder, "push_sum", "full", n_rounds=3)
    forge(crowd, 6, kind, change, at)
    assert len(ended(crowd, 300.0)) == N - 1
    refuted = [one for one in crowd.findings() if one.verdict == "refuted"]
    assert {one.by for one in refuted} == {crowd.identities[6].peer_id}
    assert any(says in one.what for one in refuted), refuted
    if kind == State.kind:
        said_by = crowd.members[0].book.said_by(crowd.identities[6].peer_id, State)
        liar = {said.cid for said, state in said_by if state.round >= at}
        taken = {
            link for n in range(N) if n != 6 for r in (1, 2, 3) if (mix := crowd.mean(n, r)) for link in mix.states
        }
        assert not liar & taken


def test_a_mean_of_a_state_that_is_not_known_here_blames_nobody(folder: Path) -> None:
    crowd = begun(folder, "push_sum", "full", n_rounds=3)
    ended(crowd)
    entries = crowd.members[0].book.entries()
    for at in [at for at, entry in enumerate(entries) if entry.kind == State.kind][:N]:
        book = Book(crowd.plan)
        book.add_all(entries[:at] + entries[at + 1 :])
        found = {one.verdict for one in verify_gossip(book, crowd.shelf) if not one.is_of_plan}
        assert "refuted" not in found and "not decidable" in found


def test_who_scores_what_is_not_its_mean_is_refuted_by_name(folder: Path) -> None:
    crowd = begun(folder, "push_sum", "full", n_rounds=1)
    ended(crowd, 100.0)
    scope, own = scope_of(crowd.plan.body_cid), crowd.mean(3, 1)
    assert own is not None
    for said, blamed in ((own.tensors, set()), (crowd.shelf.add(crowd.layout, ZEROS), {crowd.identities[3].peer_id})):
        book = Book(crowd.plan)
        book.add_all(crowd.members[0].book.entries())
        score = content_of(Score(round=1, result=said, n_samples=1))
        book.add(
            make_entry(crowd.identities[3], Score.kind, scope, book.height(crowd.identities[3].peer_id), [], score)
        )
        assert {one.by for one in verify_gossip(book, crowd.shelf) if one.verdict == "refuted"} == blamed


@pytest.mark.parametrize("weight", [0.0, -1.0, 2000.0])
def test_a_weight_that_no_member_can_have_is_no_event(folder: Path, weight: float) -> None:
    crowd = begun(folder, "push_sum", "full", n_rounds=1)
    forge(crowd, 6, State.kind, lambda said: said | {"weight": weight})
    crowd.run(60.0)
    assert crowd.n_refused == N - 1
    assert crowd.neighbour(0).views.state(crowd.identities[6].peer_id, 1) is None


def test_a_false_mean_is_refuted_by_its_files(folder: Path) -> None:
    crowd = begun(folder, "d_psgd", "ring", n_rounds=2)
    false = crowd.shelf.add(crowd.layout, ZEROS + 1)
    forge(crowd, 6, Mix.kind, lambda said: said | {"tensors": false})
    ended(crowd, 300.0)
    refuted = [one for one in crowd.findings() if one.verdict == "refuted"]
    assert [one.by for one in refuted] == [crowd.identities[6].peer_id] and f"the mean {false} is not" in refuted[
        0
    ].what


def test_a_state_is_taken_once_and_a_replay_is_refuted(folder: Path) -> None:
    crowd = begun(folder, "push_sum", "full", n_rounds=3)
    crowd.run(100.0)
    views, me = crowd.neighbour(0).views, crowd.identities[6].peer_id
    first, second = views.mix(me, 1), views.mix(me, 2)
    assert first is not None and second is not None and isinstance(second.event, Mix) and isinstance(first.event, Mix)
    old = next(link for link in first.event.states if link != (views.state(me, 1) or first).cid)
    content = dict(second.entry.content) | {"states": sorted([*second.event.states, old])}
    scope = scope_of(crowd.plan.body_cid)
    replayed = make_entry(crowd.identities[6], Mix.kind, scope, second.entry.sequence, list(second.entry.prev), content)
    said = Said(replayed, read_event(replayed, crowd.plan.body_cid))
    assert views.fault_of_mix(said) == "it takes a state that its author took before"


def test_two_states_of_one_round_break_the_rules_and_are_given_to_nobody_any_more(folder: Path) -> None:
    crowd = begun(folder, "push_sum", "full", n_rounds=3)
    scope = scope_of(crowd.plan.body_cid)

    def lie(number: int, entry: Entry) -> None:
        if number == 6 and entry.kind == State.kind and entry.content["round"] == 1:
            other = dict(entry.content) | {"n_samples": 99}
            crowd.say(6, make_entry(crowd.identities[6], State.kind, scope, entry.sequence, list(entry.prev), other))

    crowd.on_say = lie
    ended(crowd, 300.0)
    liar = crowd.identities[6].peer_id
    assert all(liar in crowd.members[n].book.broken() for n in range(N))
    assert liar not in crowd.neighbour(0).views.active()
    assert any(one.by == liar for one in crowd.findings())


def test_who_went_by_another_list_of_the_author_is_not_to_blame_where_that_is_left_out(folder: Path) -> None:
    crowd = begun(folder, "push_sum", "full", n_rounds=2)
    ended(crowd, 200.0)
    entries = crowd.members[0].book.entries()
    (start,) = (one for one in entries if one.kind == Start.kind)
    fewer = dict(start.content) | {"joined": start.content["joined"][1:]}
    other = make_entry(crowd.identities[0], start.kind, start.scope, start.sequence, list(start.prev), fewer)
    book = Book(crowd.plan)
    book.add_all([other if one == start else one for one in entries])
    findings = list(verify_gossip(book, crowd.shelf))
    assert {one.by for one in findings if one.verdict == "refuted"} == {crowd.identities[0].peer_id}
    assert any("another list that the plan's author signed" in one.what for one in findings)


@pytest.mark.parametrize("kind", [State.kind, Mix.kind])
def test_of_an_experiment_that_its_author_cancelled_no_more_rounds_are_to_be_proved(folder: Path, kind: str) -> None:
    crowd = begun(folder, "push_sum", "full", n_rounds=3)
    cancelled = []

    def cancels(number: int, entry: Entry) -> None:
        if not cancelled and (entry.kind, entry.content["round"]) == (kind, 2):
            cancelled.append(entry)
            crowd._do(0, crowd.members[0].cancel("enough"))

    crowd.on_say = cancels
    crowd.run(100.0)
    found = [one for one in crowd.findings() if not one.is_of_plan]
    assert {one.verdict for one in found} == {"proved"}
    ended_by_it = [one.round for one in found if "cancelled the experiment" in one.what]
    assert ended_by_it == ([3] if kind == Mix.kind else [2, 3])


def test_a_later_round_takes_no_more_to_prove_than_an_early_one(folder: Path) -> None:
    crowd = begun(folder, "push_sum", "ring", n_rounds=40)
    ended(crowd)
    n_lines = Counter[int]()

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        n_lines["federation/" in frame.f_code.co_filename] += event == "line"
        return trace

    before, taken = 0, dict[int, int]()
    findings = verify_gossip(crowd.members[0].book.copy(), crowd.shelf)
    sys.settrace(trace)
    try:
        for one in findings:
            taken[one.round], before = n_lines[True] - before, n_lines[True]
    finally:
        sys.settrace(None)
    assert taken[40] == taken[3]
