"""Any member can prove an experiment from its events and updates, and name who lied."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agents.federation.events.book import Book
from agents.federation.results.neighbours import verify_gossip
from agents.federation.results.outcome import read_document, refusals
from agents.federation.results.verify import Computed, Finding, recompute, tensors_before, verify
from agents.federation.updates.tensors import MAX_TENSORS_BYTES, Layout, flush, new_vector, read_vector
from protocols.entry import Entry, make_entry
from protocols.rounds import (
    Cancel,
    Close,
    Event,
    Join,
    Open,
    Promise,
    Receipt,
    Refusal,
    Result,
    Start,
    Submit,
    Vote,
    content_of,
    scope_of,
)
from storage.cid import RAW, Cid
from storage.codecs import dag_cbor
from storage.errors import NotFound
from storage.keys import PeerId
from tests.agents.federation.village import identity, make_plan

LAYOUT = Layout.of({"weight": (8,)})
N = 5


class Shelf:
    """Files by CID, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blocks: dict[Cid, bytes] = {}

    def block(self, cid: Cid) -> bytes:
        try:
            return self._blocks[cid]
        except KeyError:
            raise NotFound(f"no block {cid}") from None

    def path(self, cid: Cid, max_bytes: int = MAX_TENSORS_BYTES) -> Path:
        path = self._folder / str(cid)
        if not path.exists():
            raise NotFound(f"no file {cid}")
        return path

    def cid(self, path: Path) -> Cid:
        return self.keep(path.read_bytes())

    def remember(self, found: Computed) -> None:
        self.put(found.data, found.result)

    def keep(self, data: bytes) -> Cid:
        cid = Cid.of(data, RAW)
        (self._folder / str(cid)).write_bytes(data)
        return cid

    def put(self, data: bytes, cid: Cid) -> None:
        self._blocks[cid] = data

    def lose(self, cid: Cid) -> None:
        (self._folder / str(cid)).unlink()

    def tensors(self, values: object) -> Cid:
        path = self._folder / "new"
        path.unlink(missing_ok=True)
        vector = new_vector(path, LAYOUT)
        vector[:] = np.asarray(values, np.float32)
        flush(vector, path)
        return self.cid(path)


class Experiment:
    """Writes the events of an experiment, honest unless told otherwise."""

    def __init__(self, shelf: Shelf, n_rounds: int = 2, **changes: object) -> None:
        self.shelf = shelf
        initial = shelf.tensors(np.zeros(8))
        settings = {"initial": initial, "n_rounds": n_rounds, "rule": {"rule": "median"}} | changes
        _, self.plan = make_plan(N + 1, **settings)
        self.entries: list[Entry] = []
        self._sequences: dict[int, int] = {}
        self.own = Book(self.plan)
        self.experiment = self.own.experiment

    def say(self, number: int, event: Event, sequence: int | None = None) -> Entry:
        at = self._sequences.get(number, 0) if sequence is None else sequence
        self._sequences[number] = max(self._sequences.get(number, 0), at + 1)
        entry = make_entry(identity(number), event.kind, scope_of(self.experiment), at, [], content_of(event))
        self.entries.append(entry)
        self.own.add(entry)
        return entry

    def begin(self) -> None:
        for number in range(N):
            self.say(number, Join())
        self.say(0, Start(joined=peers(range(N))))

    def submit(self, number: int, who: int) -> Entry:
        base = self.base(number)
        update = self.shelf.tensors(np.arange(8) + who + 10 * number)
        return self.say(who, Submit(round=number, base=base, update=update, n_samples=10))

    def base(self, number: int) -> Cid:
        return tensors_before(self.own, number, self.shelf)[0]

    def round(
        self,
        number: int,
        *,
        who: range = range(N),
        listed: Callable[[list[Entry]], list[Entry]] = lambda found: found,
        result: Callable[[int, Cid], Cid] = lambda member, result: result,
        voters: range = range(N),
    ) -> None:
        self.say(0, Open(round=number, term=0))
        found = [self.submit(number, member) for member in who]
        for entry in found:
            self.say(0 if entry.author != identity(0).peer_id else 1, Receipt(round=number, submission=entry.cid))
        links = tuple(sorted(entry.cid for entry in listed(found)))
        close = self.say(0, Close(round=number, term=0, submissions=links, joined=peers(range(N))))
        for member in voters:
            self.say(member, Vote(round=number, term=0, close=close.cid))
        self.settle(number, result)

    def settle(self, number: int, result: Callable[[int, Cid], Cid] = lambda member, result: result) -> None:
        said = self.own.final(number)
        if said is None:
            return
        assert isinstance(said.event, Close)
        folder = Path(self.shelf._folder) / f"round-{number}"
        folder.mkdir()
        found = recompute(self.own, number, said.event, self.shelf, folder)
        self.shelf.put(found.data, found.result)
        self.own.settle(number, found.result)
        for member in range(N):
            refused = self.says_refused(refusals(found.outcome))
            self.say(member, Result(round=number, close=said.cid, result=result(member, found.result), refused=refused))

    def says_refused(self, refused: tuple[Refusal, ...]) -> tuple[Refusal, ...]:
        """What members say was refused: the truth, unless a test has it otherwise."""
        return refused

    def check(self) -> list[Finding]:
        book = Book(self.plan)
        for entry in self.entries:
            book.add(entry)
        return list(verify(book, self.shelf))


def peers(numbers: range) -> tuple[PeerId, ...]:
    return tuple(sorted(identity(number).peer_id for number in numbers))


@pytest.fixture
def honest(tmp_path: Path) -> Experiment:
    experiment = Experiment(Shelf(tmp_path))
    experiment.begin()
    experiment.round(1)
    return experiment


def blamed(findings: list[Finding]) -> list[PeerId | None]:
    return [finding.by for finding in findings if finding.verdict == "refuted"]


def test_an_honest_experiment_is_proved_round_by_round(honest: Experiment) -> None:
    honest.round(2)
    findings = honest.check()
    assert [(finding.round, finding.verdict) for finding in findings] == [(1, "proved"), (2, "proved")]
    assert "5 updates admitted, 0 refused, 5 agree" in findings[0].what


def test_what_members_say_is_proved_in_any_order_of_arrival(honest: Experiment) -> None:
    honest.round(2)
    expected = honest.check()
    honest.entries.reverse()
    assert honest.check() == expected


def test_a_base_that_is_none_has_nobody_look_for_results_that_it_never_had(tmp_path: Path) -> None:
    late = Experiment(Shelf(tmp_path), n_rounds=3)
    late.begin()
    late.round(1)
    late.round(2)
    first = late.own.result(1)
    assert first is not None
    document = late.shelf._blocks.pop(first)  # who joined after it has none of it
    bases = iter([late.base(3)] * (N - 1) + [Cid.of(b"no result", RAW)])
    late.base = lambda number: next(bases)  # type: ignore[method-assign]
    late.round(3)
    assert late.own.result(3) is not None
    late.shelf.put(document, first)
    findings = late.check()
    assert "4 updates admitted, 1 refused" in findings[2].what and blamed(findings) == []


def test_a_result_off_by_one_ulp_is_refuted_by_name(honest: Experiment) -> None:
    def result(member: int, true: Cid) -> Cid:
        if member != 3:
            return true
        document = honest.shelf.block(true)
        path = honest.shelf.path(read_document(document).tensors)
        nudged = np.nextafter(read_vector(path, LAYOUT)[0], np.float32(np.inf))
        data = bytearray(path.read_bytes())
        at = len(LAYOUT.header())
        data[at : at + 4] = nudged.tobytes()
        other = Cid.of(bytes(data), RAW)
        lie = document.replace(bytes(read_document(document).tensors), bytes(other))
        return Cid.of(lie, true.codec)

    honest.round(2, result=result)
    findings = honest.check()
    assert blamed(findings) == [identity(3).peer_id]
    assert findings[-1].verdict == "proved" and "4 agree" in findings[-1].what


@pytest.mark.parametrize("lie", ["another weight", "an update left out", "another plan", "another round"])
def test_a_document_that_says_something_else_of_its_result_is_refuted_by_name(tmp_path: Path, lie: str) -> None:
    experiment = Experiment(Shelf(tmp_path), rule={"rule": "fedavg", "weights": "samples"}, max_samples=7)
    experiment.begin()

    def result(member: int, true: Cid) -> Cid:
        document = dag_cbor.decode(experiment.shelf.block(true))
        assert [one["weight"] for one in document["updates"]] == [7.0] * N, "as far as the claim of 10 counts"
        if lie == "another weight":
            document["updates"][0]["weight"] = 10.0
        elif lie == "an update left out":
            document["updates"] = document["updates"][1:]
        else:
            document |= {"plan": true} if lie == "another plan" else {"round": 2}
        return Cid.of(dag_cbor.encode(document), true.codec) if member == 3 else true

    experiment.round(1, result=result)
    findings = experiment.check()
    assert blamed(findings) == [identity(3).peer_id]
    assert findings[1].verdict == "proved" and "4 agree" in findings[1].what


def test_a_common_variate_that_is_another_is_refuted_by_name(tmp_path: Path) -> None:
    task = {"task": "test", "n_steps": 5, "learning_rate": 0.5}
    experiment = Experiment(Shelf(tmp_path), rule={"rule": "fedavg"}, server={"server": "scaffold"}, task=task)
    experiment.begin()
    experiment.round(1)

    def result(member: int, true: Cid) -> Cid:
        document = experiment.shelf.block(true)
        (variate,) = read_document(document).states
        other = experiment.shelf.tensors(read_vector(experiment.shelf.path(variate), LAYOUT) * np.float32(1.0001))
        lie = Cid.of(document.replace(bytes(variate), bytes(other)), true.codec)
        return lie if member == 2 else true

    experiment.round(2, result=result)
    findings = experiment.check()
    assert blamed(findings) == [identity(2).peer_id]
    assert findings[-1].verdict == "proved" and "4 agree" in findings[-1].what
    # Of six members five are in each round: their mean update of round 2 by all steps' reach, and a sixth of before.
    results = [result for number in (1, 2) if (result := experiment.own.result(number)) is not None]
    documents = [read_document(experiment.shelf.block(result)) for result in results]
    before, after = (read_vector(experiment.shelf.path(one.states[0]), LAYOUT) for one in documents)
    np.testing.assert_allclose(before, -5 / 6 * (np.arange(8) + 2 + 10) / 2.5, rtol=1e-6)
    np.testing.assert_allclose(after, before / 6 - 5 / 6 * (np.arange(8) + 2 + 20) / 2.5, rtol=1e-6)


def test_an_update_that_has_a_receipt_and_is_dropped_blames_the_coordinator(honest: Experiment) -> None:
    honest.round(2, listed=lambda found: found[:-1])
    assert set(blamed(honest.check())) == {identity(0).peer_id}


def test_a_close_by_somebody_whose_turn_it_is_not_counts_for_nothing(honest: Experiment) -> None:
    honest.say(0, Open(round=2, term=0))
    found = [honest.submit(2, member) for member in range(N)]
    close = honest.say(
        3, Close(round=2, term=0, submissions=tuple(sorted(one.cid for one in found)), joined=peers(range(N)))
    )
    for member in range(N):
        honest.say(member, Vote(round=2, term=0, close=close.cid))
    assert honest.check()[-1] == Finding(
        2, "not decidable", "no close is known that over half of the selected countersigned"
    )


def test_a_close_that_too_few_countersigned_proves_nothing(honest: Experiment) -> None:
    honest.round(2, voters=range(2))
    assert honest.check()[-1].verdict == "not decidable"


@pytest.mark.parametrize("is_known", [True, False])
def test_a_close_that_lists_what_is_no_submission_is_refuted_where_that_is_known(
    honest: Experiment, is_known: bool
) -> None:
    """What is not known here may be one: nobody is to blame for what has not come yet."""
    foreign = honest.entries[0].cid if is_known else Cid.of(b"no submission", honest.entries[0].cid.codec)
    honest.say(0, Open(round=2, term=0))
    found = [honest.submit(2, member) for member in range(N)]
    links = tuple(sorted([*(one.cid for one in found[1:]), foreign]))
    close = honest.say(0, Close(round=2, term=0, submissions=links, joined=peers(range(N))))
    for member in range(N):
        honest.say(member, Vote(round=2, term=0, close=close.cid))
    findings = honest.check()
    assert blamed(findings) == [identity(0).peer_id] * is_known
    assert is_known or (findings[-1].verdict, str(foreign) in findings[-1].what) == ("not decidable", True)


def test_two_closes_of_one_term_blame_their_coordinator(honest: Experiment) -> None:
    honest.round(2)
    honest.say(0, Close(round=2, term=0, submissions=(), joined=(), void="never mind"))
    assert identity(0).peer_id in blamed(honest.check())


def test_two_votes_of_one_term_blame_the_voter(honest: Experiment) -> None:
    honest.round(2)
    other = Cid.of(b"another close", honest.entries[0].cid.codec)
    honest.say(4, Vote(round=2, term=0, close=other))
    assert blamed(honest.check()) == [identity(4).peer_id]


def test_a_history_that_forks_blames_its_author(honest: Experiment) -> None:
    honest.round(2)
    honest.say(2, Open(round=1, term=7), sequence=0)
    assert blamed(honest.check()) == [identity(2).peer_id]


def test_a_deputy_that_passes_over_a_countersigned_close_is_refuted(honest: Experiment) -> None:
    """Three have countersigned all five updates; the deputy shows their promises and closes four."""
    honest.say(0, Open(round=2, term=0))
    found = [honest.submit(2, member) for member in range(N)]
    links = tuple(sorted(one.cid for one in found))
    close = honest.say(0, Close(round=2, term=0, submissions=links, joined=peers(range(N))))
    votes = [honest.say(member, Vote(round=2, term=0, close=close.cid)) for member in range(2)]
    honest.say(1, Open(round=2, term=1))
    promises = [
        honest.say(member, Promise(round=2, term=1, vote=votes[member].cid if member < 2 else None))
        for member in range(3)
    ]
    other = honest.say(
        1,
        Close(
            round=2,
            term=1,
            submissions=links[:-1],
            joined=peers(range(N)),
            promises=tuple(sorted(promise.cid for promise in promises)),
        ),
    )
    for member in range(2, N):
        honest.say(member, Vote(round=2, term=1, close=other.cid))
    findings = honest.check()
    assert blamed(findings) == [identity(1).peer_id]
    assert findings[-1].what.endswith("a close that was countersigned before it lists something else")


def test_a_result_of_another_plan_is_refuted(honest: Experiment) -> None:
    honest.round(2, result=lambda member, true: true if member != 2 else Cid.of(b"another plan's", true.codec))
    assert blamed(honest.check()) == [identity(2).peer_id]


def test_a_missing_update_is_not_decidable_and_said_to_be_missing(honest: Experiment) -> None:
    honest.round(2)
    said = honest.own.submissions(2)[identity(3).peer_id]
    assert isinstance(said.event, Submit)
    honest.shelf.lose(said.event.update)
    assert honest.check()[-1] == Finding(2, "not decidable", f"an update is missing: no file {said.event.update}")


def test_refused_updates_are_counted_and_the_round_is_proved(tmp_path: Path) -> None:
    experiment = Experiment(Shelf(tmp_path), n_rounds=1, max_norm=48.0)
    experiment.begin()
    experiment.round(1)
    (finding,) = experiment.check()
    assert finding.verdict == "proved" and "4 updates admitted, 1 refused" in finding.what


def test_who_says_that_others_were_refused_is_named(tmp_path: Path) -> None:
    experiment = Experiment(Shelf(tmp_path), n_rounds=1, max_norm=48.0)
    experiment.begin()
    experiment.says_refused = lambda refused: refused[1:]  # type: ignore[method-assign]
    experiment.round(1)
    findings = experiment.check()
    assert [one.verdict for one in findings] == ["refuted"] * N + ["proved"]
    assert "other updates were refused" in findings[0].what
    assert {one.by for one in findings[:-1]} == {identity(n).peer_id for n in range(N)}


def test_what_was_cancelled_is_proved_as_far_as_it_came(honest: Experiment) -> None:
    assert [finding.verdict for finding in honest.check()] == ["proved", "not decidable"]
    honest.say(0, Cancel())
    findings = honest.check()
    assert [finding.verdict for finding in findings] == ["proved", "proved"]
    assert "cancelled" in findings[1].what


@pytest.mark.parametrize("initial", [b"", b"no tensors at all"])
def test_a_plan_whose_first_tensors_are_none_is_its_authors_to_blame(tmp_path: Path, initial: bytes) -> None:
    shelf = Shelf(tmp_path)
    tensors, shelf.tensors = shelf.tensors, lambda values: shelf.keep(initial)  # type: ignore[method-assign]
    experiment = Experiment(shelf, n_rounds=1)
    shelf.tensors = tensors  # type: ignore[method-assign]
    experiment.begin()
    experiment.settle = lambda number, result=None: None  # type: ignore[assignment, method-assign, misc]
    experiment.round(1)
    (finding,) = experiment.check()
    assert (finding.round, finding.verdict, finding.by) == (1, "refuted", identity(0).peer_id)
    assert "first tensors" in finding.what


def test_who_computed_by_another_list_of_the_author_is_not_to_blame_where_that_is_left_out(tmp_path: Path) -> None:
    """The list decides who shares a bucket, and so the result."""
    experiment = Experiment(Shelf(tmp_path), n_rounds=1, before=({"before": "bucketing", "size": 2},))
    experiment.begin()
    experiment.round(1)
    experiment.entries = [one for one in experiment.entries if one.kind != Start.kind]
    experiment.say(0, Start(joined=peers(range(N + 1))))
    findings = experiment.check()
    assert not blamed(findings) and any("another list" in one.what for one in findings)


def test_without_a_start_nothing_is_decidable(tmp_path: Path) -> None:
    assert [finding.verdict for finding in Experiment(Shelf(tmp_path)).check()] == ["not decidable"]


@pytest.mark.parametrize("gossip", [None, {"mixing": "push_sum"}])
@pytest.mark.parametrize(("n_starts", "verdict"), [(0, "proved"), (2, "not decidable")])
def test_what_was_cancelled_before_its_start_is_proved_to_have_come_to_nothing(
    tmp_path: Path, n_starts: int, verdict: str, gossip: dict[str, str] | None
) -> None:
    """Of two starts none counts yet, and what counts may come."""
    experiment = Experiment(Shelf(tmp_path), gossip=gossip)
    for n_joined in range(N, N - n_starts, -1):
        experiment.say(0, Start(joined=peers(range(n_joined))))
    experiment.say(0, Cancel())
    findings = list((verify if gossip is None else verify_gossip)(experiment.own, experiment.shelf))
    assert findings[-1].verdict == verdict
    assert n_starts or "never began" in findings[-1].what
