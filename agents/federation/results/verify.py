"""Check an experiment from its events and updates alone: proved, refuted and by whom, or not decidable and why.

Nothing is believed. Each round's selection, receipts, promises and countersignatures are read out of the book again,
and each result is computed again from the updates that the final close lists.
"""

import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple, Protocol, cast

from agents.aggregation.aggregate import Aggregating
from agents.aggregation.updates import CannotAggregate
from agents.federation.events.book import Book, Said
from agents.federation.events.grants import readers
from agents.federation.events.secure_complaints import because
from agents.federation.events.secure_stages import Stages, Unmasking
from agents.federation.events.soundness import unknown_to, why_not
from agents.federation.plans.compatibility import undecidable
from agents.federation.plans.privacy_accounts import SLACK, Accounts
from agents.federation.results.findings import Finding as Finding
from agents.federation.results.outcome import (
    Outcome,
    Submitted,
    compute,
    document,
    false_noise,
    read_document,
    refusals,
)
from agents.federation.results.statements import (
    at_all,
    beyond_budget,
    in_round,
    unless_by_another_start,
    without_start,
)
from agents.federation.secure.sides import FalseShares
from agents.federation.updates.tensors import MAX_TENSORS_BYTES, BadTensors, longest_update
from protocols.rounds import Close, Complain, Promise, Result, Submit, Unmask, Vote
from storage.cid import Cid
from storage.errors import CorruptBlock, NotFound
from storage.keys import PeerId

MAX_NAMED: Final = 4  # members, in a finding


class Files(Protocol):
    """What a round reads and writes: blocks, and files of the store where they can be mapped."""

    def block(self, cid: Cid) -> bytes:
        """A block. Raises: NotFound."""
        ...

    def path(self, cid: Cid, max_bytes: int = MAX_TENSORS_BYTES) -> Path:
        """A file's bytes, at a path. Raises: NotFound, also for more than that."""
        ...

    def cid(self, path: Path) -> Cid:
        """The CID that a file has when it is added; from then on it is found by it."""
        ...


class CheckedFiles(Files, Protocol):
    """The same for who checks one round after the other."""

    def remember(self, found: "Computed") -> None:
        """Have a result's document, and its files, found by their CIDs while the next rounds are checked."""
        ...


class StillMasked(NotFound):
    """Too few true answers are known to unmask a sum. Wait for members who submitted to come back."""

    code = "still_masked"


class Computed(NamedTuple):
    """A result, computed here: its document, and what it was made into."""

    result: Cid
    data: bytes
    tensors: Cid
    states: tuple[Cid, ...]
    outcome: Outcome


def recompute(
    book: Book, number: int, close: Close, files: Files, folder: Path, aggregating: Aggregating | None = None
) -> Computed:
    """The result of a close, from its updates. Raises: NotFound for what is missing, BadTensors, OSError."""
    base, states = tensors_before(book, number, files)
    base_path = files.path(base)
    max_bytes = longest_update(base_path.stat().st_size)
    submitted = []
    for link in close.submissions:
        said = book.get(link)
        if said is None or not isinstance(submit := said.event, Submit):
            raise NotFound(f"the submission {link} is not known")
        submitted.append(
            Submitted(said.author, submit, files.path(submit.update, max_bytes), staleness(book, number, submit, files))
        )
    unmasking = None
    if book.secure is not None:
        unmasking = unmasking_of(book, close)
    outcome = compute(
        book.plan,
        base_path,
        submitted,
        folder,
        seed=book.seed(number) or b"",
        number=number,
        states=[files.path(cid) for cid in states],
        aggregating=aggregating,
        unmasking=unmasking,
        noise=files.path(close.noise) if close.noise is not None else None,
        bound=bound_before(book, number, files),
    )
    tensors, new_states = files.cid(outcome.tensors), tuple(files.cid(path) for path in outcome.states)
    result, data = document(book.experiment, number, base, outcome, tensors, new_states)
    return Computed(result, data, tensors, new_states, outcome)


def unmasking_of(book: Book, close: Close) -> Unmasking:
    """What unmasks a final close. Raises: StillMasked."""
    final = book.final(close.round)
    found = Stages(book, close.round).unmasking(final) if final is not None else None
    if found is None or found.n_lacking:
        n_lacking = found.n_lacking if found is not None else book.threshold(close.round)
        raise StillMasked(f"{n_lacking} more true answers are needed to unmask the sum of round {close.round}")
    return found


def tensors_before(book: Book, number: int, files: Files) -> tuple[Cid, tuple[Cid, ...]]:
    """The tensors and server states that a round starts from. Raises: NotFound."""
    result = book.result(number - 1)
    if result is None:
        raise NotFound(f"the result of round {number - 1} is not known")
    if result == book.plan.initial:
        return book.plan.initial, ()
    found = read_document(files.block(result))
    return found.tensors, found.states


def bound_before(book: Book, number: int, files: Files) -> float | None:
    """The clip bound of a round, where the plan has it follow the norms; None for the plan's own. Raises: NotFound."""
    result = book.result(number - 1)
    if result is None or result == book.plan.initial or not (book.plan.privacy or {}).get("quantile"):
        return None
    return read_document(files.block(result)).bound


def staleness(book: Book, number: int, submit: Submit, files: Files) -> int | None:
    """How many results lie between an update's base and the round's; None for what is none that its rule may take.

    No further back: who came late has no documents of then, and whoever names a base that is none would have it look.
    """
    for age in range(min(number, (book.buffer.max_staleness if book.buffer is not None else 0) + 1)):
        if tensors_before(book, number - age, files)[0] == submit.base:
            return age
    return None


def verify(book: Book, files: CheckedFiles, scratch: Path | None = None, me: PeerId | None = None) -> Iterator[Finding]:
    """Check every round that is final, in order. `book` must have settled nothing itself: see `Book.settle`.

    scratch: where tensors are written until they were compared; without it, where the system has room for such.
    me: who asks, and is told of what is missing whether it could be had.
    """
    yield from _of_all(book)
    if book.start() is None:
        yield without_start(book)
        return
    accounts, is_on_word = Accounts(), False
    for number in range(1, book.plan.n_rounds + 1):
        if not accounts.bears(book, number):
            yield from _not_borne(book, number)
            return
        said = _closed(book, number)
        if isinstance(said, Finding):
            yield said
            return
        close = cast(Close, said.event)
        if close.void:
            yield Finding(number, "proved", f"void: {close.void}")
            yield from in_round(book, number, said, None)
            continue
        if book.secure is not None:
            yield from (unless_by_another_start(book, one) for one in _secure_faults(book, said))
        try:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                found = recompute(book, number, close, files, Path(folder))
                files.remember(found)
        except StillMasked as error:
            yield Finding(number, "not decidable", f"the sum is still masked: {_unanswered(book, said, error)}")
            return
        except (NotFound, CorruptBlock) as error:
            yield Finding(number, "not decidable", f"an update is missing: {error}{_where(book, number, me)}")
            if book.result(number) is None:
                return
            is_on_word = True  # who joined later has the base of its own first round, and it is what over half say
            continue
        except FalseShares as error:
            yield unless_by_another_start(book, Finding(number, "refuted", str(error), error.dealer))
            return
        except (BadTensors, CannotAggregate) as error:  # not of an update: those are judged
            if is_on_word:
                yield Finding(number, "not decidable", f"what over half say came before is no base: {error}")
                return
            what = f"the plan's first tensors are none that its rounds could go on from: {error}"
            yield Finding(number, "refuted", what, book.author)
            return
        if close.noise is not None and found.outcome.failed:
            yield from _noise_faults(book, said, files)
        results = (unless_by_another_start(book, one) for one in _compare(book, number, said, found))
        compared = chain(results, in_round(book, number, said, found.result))
        yield from map(_on_word, compared) if is_on_word else compared
        book.settle(number, found.result)


def _where(book: Book, number: int, me: PeerId | None) -> str:
    """Who has what is missing of a round, where the one that asks is none of them."""
    if me is None or me in readers(book, number):
        return ""
    return ". It is for who was in that round, and this node was not: a CAR of one who was proves it (covey fl export)"


def _not_borne(book: Book, number: int) -> Iterator[Finding]:
    """Of the rounds from that one on, which the privacy budget does not bear by the accounts made here."""
    if Accounts(SLACK).bears(book, number):
        what = "its cost is so near to the privacy budget that another machine may find it borne"
        yield Finding(number, "not decidable", what)
        return
    yield Finding(number, "proved", "there is no such round: the privacy budget does not bear it")
    yield from beyond_budget(book, number)


def _closed(book: Book, number: int) -> Said | Finding:
    """The close that ended a round and is sound, or why nothing can be gone on from."""
    said = book.final(number)
    if said is None:
        return _without_close(book, number)
    if why := unknown_to(book, said):
        return Finding(number, "not decidable", f"the close rests on what is not known here: {why}")
    if why := why_not(book, said, is_final=True):
        return unless_by_another_start(book, Finding(number, "refuted", f"the close is not sound: {why}", said.author))
    return said


def _without_close(book: Book, number: int) -> Finding:
    """Of a round that no close is known to have ended."""
    if book.cancelled() is None:
        return Finding(number, "not decidable", "no close is known that over half of the selected countersigned")
    voters = book.countersigners(number)
    counts = [
        (len(voters.get((close.term, said.cid), ())), book.n_votes_needed(close) or 1)
        for said, close in book.said_in(number, Close)
        if said.author == book.coordinator(close.term) and not close.void
    ]
    if not counts:
        return Finding(number, "proved", "it came to no close: the plan's author cancelled the experiment")
    n_votes, n_needed = max(counts)
    what = (
        f"the plan's author cancelled the experiment, and a close is known that {n_votes} of {n_needed} countersigned: "
        f"{n_needed - n_votes} more votes for it, if there are any, would decide it"
    )
    return Finding(number, "not decidable", what)


def _unanswered(book: Book, final: Said, error: StillMasked) -> str:
    """Who could still unmask a sum; nobody does any more once the author has cancelled."""
    unmasking = Stages(book, cast(Close, final.event).round).unmasking(final)
    silent = [peer for peer in unmasking.active if peer not in unmasking.answers] if unmasking is not None else []
    what = f"{error}, of any of {', '.join(map(str, silent[:MAX_NAMED]))}" if silent else str(error)
    if len(silent) > MAX_NAMED:
        what += f" and {len(silent) - MAX_NAMED} others"
    if book.cancelled() is None:
        return f"{what}. They decide it"
    return (
        f"{what}. The plan's author cancelled the experiment, so nobody answers any more: only answers that were "
        "signed before, and are not known here, would decide it"
    )


def _noise_faults(book: Book, final: Said, files: Files) -> Iterator[Finding]:
    """Central noise that is none: who drew it is to blame, and a deputy that was bound to its close is not.

    Whatever other close names the same noise: who signs one where it was not its turn, or bound nobody, drew nothing.
    """
    close = cast(Close, final.event)
    number, noise = close.round, cast(Cid, close.noise)
    why = false_noise(book.plan, number, files.path(tensors_before(book, number, files)[0]), files.path(noise))
    if not why:
        return
    drawn = final
    while (bound := _bound_to(book, drawn)) is not None and cast(Close, bound.event).noise == noise:
        drawn = bound
    yield Finding(number, "refuted", f"it closed the round with noise that is none: {why}", drawn.author)


def _bound_to(book: Book, said: Said) -> Said | None:
    """The close of an earlier term that the promises of a close bound it to."""
    close = cast(Close, said.event)
    promises = [one for one in map(book.get, close.promises) if one is not None]
    at = (close.round, close.term)
    return book.highest_vote(
        one for one in promises if isinstance(one.event, Promise) and (one.event.round, one.event.term) == at
    )


def _of_all(book: Book) -> Iterator[Finding]:
    """Of the experiment as a whole: who broke the rules, and what its plan leaves to anybody's word."""
    for peer, (first, second) in sorted(book.broken().items()):
        what = f"two events contradict each other: {first.cid} and {second.cid}"
        yield Finding(0, "refuted", because(second) if isinstance(second.event, Complain) else what, peer)
    yield from at_all(book)
    for why in undecidable(book.plan):
        yield Finding(0, "not decidable", why, is_of_plan=True)


def _on_word(finding: Finding) -> Finding:
    """What was found where an earlier round could not be computed: who says otherwise may be right from there on."""
    what = f"{finding.what}; from what over half say came of the rounds before"
    return finding._replace(verdict="proved" if finding.verdict == "proved" else "not decidable", what=what)


def _secure_faults(book: Book, final: Said) -> Iterator[Finding]:
    """Members who told false shares, or were ready to open two active sets of a round."""
    close = cast(Close, final.event)
    unmasking = Stages(book, close.round).unmasking(final)
    for peer in unmasking.liars if unmasking is not None else ():
        yield Finding(close.round, "refuted", "it answered with shares that their dealers did not vouch for", peer)
    for peer in unmasking.false_dealers() if unmasking is not None and not unmasking.n_lacking else ():
        yield Finding(close.round, "refuted", "it dealt shares that are not those of its secrets", peer)
    seen: dict[PeerId, tuple[Cid, ...]] = {}
    consents: list[tuple[Said, Vote | Unmask]] = [
        *book.said_in(close.round, Vote),
        *book.said_in(close.round, Unmask),
    ]
    for said, event in consents:
        named = book.get(event.close)
        if named is None or not isinstance(named.event, Close) or named.event.void:
            continue
        if seen.setdefault(said.author, named.event.submissions) != named.event.submissions:
            yield Finding(close.round, "refuted", "it consented to two active sets of one round", said.author)


def _compare(book: Book, number: int, final: Said, found: Computed) -> Iterator[Finding]:
    """What was computed here beside what members said it came to."""
    n_agree = 0
    for said, event in book.said_in(number, Result):
        if event.close == final.cid:
            n_agree += event.result == found.result
            if event.result != found.result:
                yield Finding(number, "refuted", f"the result {event.result} is not {found.result}", said.author)
            elif event.refused != refusals(found.outcome):
                yield Finding(number, "refuted", "other updates were refused, or for other reasons", said.author)
    refused = [verdict for verdict in found.outcome.verdicts if verdict.reason]
    what = f"{found.result}: {len(found.outcome.admitted)} updates admitted, {len(refused)} refused, {n_agree} agree"
    if n_stale := sum(update.staleness > 0 for update in found.outcome.admitted):
        what += f", {n_stale} of earlier bases"
    if found.outcome.failed:
        what += f"; the tensors stay what they were: {found.outcome.failed}"
    yield Finding(number, "proved", what)
