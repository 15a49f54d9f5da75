"""What the rounds of an experiment tell, read out of its book: any member comes to the same accounts.

A round is accounted with the noise of those who reported in it, which its close lists. A void round tells nothing.

Where participants hide their own examples, each has an account of its own: of what it submitted, by the number of
examples that it said it has. Under masks nobody says that, and each keeps its account alone.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from functools import cache, partial
from typing import Final, cast

import msgspec

from agents.federation.events.book import Book
from agents.federation.plans.options import BadOption, Privacy, options_of
from agents.federation.privacy import examples, rdp
from agents.federation.privacy.clipping import AdaptiveBound, noise_beside_count
from agents.federation.privacy.lattice import Lattice
from agents.federation.privacy.ledger import merged
from agents.federation.privacy.noise import MAX_DEVIATION
from agents.federation.privacy.spent import Spent
from agents.federation.tasks import BadTask, task_of
from agents.training.settings import ExampleNoise
from protocols.rounds import Close, Plan, Submit
from storage.cid import Cid
from storage.keys import PeerId

SLACK: Final = 2.0**-18  # two steps of what costs are rounded to: no two machines are further apart
MAX_VALUES: Final = 1 << 40  # of one result: at the deviation of a client's noise, not even so many change the account


def privacy_of(plan: Plan) -> Privacy | None:
    """The privacy of clients that a plan promises. Raises: BadOption."""
    privacy = options_of(plan).privacy
    return privacy if privacy is not None and privacy.noise != "examples" else None


def examples_of(plan: Plan) -> Privacy | None:
    """The privacy of single examples that a plan promises. Raises: BadOption."""
    privacy = options_of(plan).privacy
    return privacy if privacy is not None and privacy.noise == "examples" else None


def noise_of(plan: Plan) -> ExampleNoise | None:
    """The noise that each participant's training is done with; None without. Raises: BadOption."""
    privacy = examples_of(plan)
    return ExampleNoise(bound=privacy.bound, multiplier=privacy.multiplier) if privacy is not None else None


def told_of_examples(plan: Plan, n_examples: int) -> Spent:
    """What a round's update tells of each of so many examples. Raises: BadOption, BadTask."""
    noise = noise_of(plan)
    assert noise is not None
    batch, n_steps = task_of(plan.task).steps(n_examples)
    return examples.told(noise, examples.sampling(batch, n_examples, n_steps))


def beyond_budget(plan: Plan, n_examples: int) -> str:
    """Why who learns from so many examples can end no round with the plan's budget, or nothing.

    Raises: BadOption, BadTask.
    """
    privacy = examples_of(plan)
    if privacy is None or not n_examples:
        return ""
    budget = privacy.budget
    one_round = [told_of_examples(plan, n_examples)]
    if budget.is_within(one_round):
        return ""
    cost = budget.cost(one_round)
    return (
        f"one round tells epsilon {cost:.4g} of each of {n_examples:,} examples, and the plan's budget is"
        f" {budget.epsilon:g} at delta {budget.delta:g}: of more examples it tells less of each"
    )


def lattice_of(plan: Plan, bound: float | None = None) -> Lattice | None:
    """The grid that a plan's noise for clients is made on; None without such noise. `bound`: the round's, if it moves.

    Raises: BadOption.
    """
    privacy, secure = privacy_of(plan), options_of(plan).secure
    if privacy is None:
        return None
    n_needed = plan.min_participants - secure.n_colluders if privacy.noise == "distributed" and secure else 1
    n_needed, multiplier, bit_steps = max(n_needed, 1), privacy.multiplier, 0
    if privacy.quantile:
        deviation = privacy.count_noise or max(plan.min_participants / 20.0, 2.0 * privacy.multiplier)
        try:
            multiplier = noise_beside_count(multiplier, deviation)
        except ValueError as error:
            raise BadOption(f"count_noise of {deviation:g} clients: {error}") from None
        bit_steps = math.floor(MAX_DEVIATION * math.sqrt(n_needed) / (2.0 * deviation))
    return Lattice(bound or privacy.bound, multiplier, n_needed, bit_steps)


def next_bound(plan: Plan, bound: float | None, n_within: float | None, n_clients: int) -> float | None:
    """The clip bound after a round that told so much; None where the plan's does not move. Raises: BadOption."""
    privacy = privacy_of(plan)
    if privacy is None or not privacy.quantile:
        return None
    now = AdaptiveBound(bound or privacy.bound, privacy.quantile, privacy.rate)
    return (now if n_within is None else now.moved(n_within, n_clients)).bound


def told(plan: Plan, n_reported: int) -> Spent:
    """What a result of so many updates tells: those who may collude know their own noise, and count for nothing."""
    options, grid = options_of(plan), lattice_of(plan)
    assert options.privacy is not None and grid is not None
    if options.privacy.noise == "central":
        return Spent(grid.multiplier_of(1))
    n_colluders = options.secure.n_colluders if options.secure is not None else 0
    return Spent(
        grid.multiplier_of(n_reported, n_colluders),
        parts=max(n_reported - n_colluders, 1),
        part_deviation=float(MAX_DEVIATION),
        n_values=MAX_VALUES,
    )


def rounds_borne(plan: Plan, n_reported: int) -> int:
    """How many rounds of so many updates each the budget bears, of the plan's; all, where none of it is clients'.

    Raises: BadOption.
    """
    privacy = privacy_of(plan)
    return _borne(plan, privacy, told(plan, n_reported)) if privacy is not None else plan.n_rounds


def own_rounds_borne(plan: Plan, n_examples: int) -> int:
    """How many of the plan's rounds who learns from so many examples can train in; all, where none are hidden.

    Raises: BadOption, BadTask.
    """
    privacy = examples_of(plan)
    return _borne(plan, privacy, told_of_examples(plan, n_examples)) if privacy and n_examples else plan.n_rounds


def _borne(plan: Plan, privacy: Privacy, one: Spent) -> int:
    """One round tells `one`."""

    def is_beyond(n_rounds: int) -> bool:
        return not privacy.budget.is_within([msgspec.structs.replace(one, times=n_rounds * one.times)])

    if not is_beyond(plan.n_rounds):
        return plan.n_rounds
    return bisect_left(range(1, plan.n_rounds), True, key=is_beyond)


def uses(book: Book, before: int) -> list[Spent]:
    """What the final closes of the rounds before one told, those of as many updates together."""
    closes = (cast(Close, final.event) for final in map(book.final, range(1, before)) if final is not None)
    counts = Counter(len(close.submissions) for close in closes if not close.void)
    return [msgspec.structs.replace(told(book.plan, n), times=times) for n, times in counts.items()]


def _is_accounted(plan: Plan) -> bool:
    """Can it be told here what an update costs? Who only follows may lack the task, and nobody checked its plan."""
    noise = noise_of(plan)
    try:
        return noise is not None and task_of(plan.task).hides_examples and not examples.problem(noise)
    except BadTask:
        return False


def uses_of_examples(book: Book, before: int) -> dict[PeerId, list[Spent]]:
    """What each participant's updates told of its examples in the rounds before one, as the final closes list them."""
    found: dict[PeerId, list[Spent]] = {}
    told_of = cache(partial(told_of_examples, book.plan))  # many rounds, and few numbers of examples
    if book.secure is not None or not _is_accounted(book.plan):
        return found
    for number in range(1, before):
        final = book.final(number)
        for said in map(book.get, cast(Close, final.event).submissions if final is not None else ()):
            if said is not None and isinstance(said.event, Submit):
                found.setdefault(said.author, []).append(told_of(said.event.n_samples))
    return found


class Accounts:
    """One experiment's, remembered by what they were made of: looked at with every event.

    slack: what part more than the budget is borne, for who asks whether another machine may have said so.
    """

    def __init__(self, slack: float = 0.0) -> None:
        self._slack = slack
        self._costs: dict[tuple[Spent, ...], float] = {}
        self._within: dict[tuple[Spent, ...], bool] = {}
        self._borne: dict[tuple[Cid | None, ...], bool] = {}

    def epsilon(self, book: Book, until: int | None = None) -> float | None:
        """What the rounds so far told, or those until one of them; None where the plan promises no privacy.

        Of examples it is the most that any participant's updates told, by what it says of them.
        """
        before = (book.current() if until is None else until) + 1
        if (own := examples_of(book.plan)) is not None:
            return self._most(own, uses_of_examples(book, before).values())
        privacy = privacy_of(book.plan)
        return self._cost(privacy, uses(book, before)) if privacy is not None else None

    def bears(self, book: Book, number: int) -> bool:
        """Does the budget bear a round of the fewest that it needs, after all before it?

        Of examples: do enough participants have something left of theirs? Yes where that is not known: see `knows`.
        """
        if book.plan.privacy is None:
            return True
        if (own := examples_of(book.plan)) is not None:
            return self._bear(own, book, number)
        if (privacy := privacy_of(book.plan)) is None:
            return True
        after = [*uses(book, number), told(book.plan, book.minimum(number))]
        return self._is_within(privacy, after)

    def knows(self, book: Book, number: int) -> bool:
        """Is all known that says whether a round is borne? Of examples, each update of the rounds before.

        Who counted one that is not heard yet for nothing would go on where all others have ended.
        """
        if examples_of(book.plan) is None or book.secure is not None or _finals(book, number) in self._borne:
            return True
        closes = [cast(Close, one.event) for before in range(1, number) if (one := book.final(before)) is not None]
        return all(book.get(link) is not None for close in closes for link in close.submissions)

    def _bear(self, privacy: Privacy, book: Book, number: int) -> bool:
        roster = book.roster(number)
        if roster is None or not self.knows(book, number):
            return True
        if (key := _finals(book, number)) not in self._borne:
            told_by = uses_of_examples(book, number)
            n_left = sum(
                peer not in told_by or self._is_within(privacy, [*told_by[peer], told_by[peer][-1]]) for peer in roster
            )
            self._borne[key] = n_left >= book.minimum(number)
        return self._borne[key]

    def _is_within(self, privacy: Privacy, spent: list[Spent]) -> bool:
        key = tuple(spent := merged(spent))
        if key not in self._within:
            most = privacy.budget.epsilon * (1.0 + self._slack)
            self._within[key] = msgspec.structs.replace(privacy.budget, epsilon=most).is_within(spent)
        return self._within[key]

    def _most(self, privacy: Privacy, told_by: Iterable[list[Spent]]) -> float:
        """The most of several accounts; only those are made that may be it, by Renyi's orders."""
        quick = {tuple(spent): spent for spent in map(merged, told_by)}
        ranked = sorted(((rdp.epsilon(one, privacy.budget.delta), key) for key, one in quick.items()), reverse=True)
        most = 0.0
        for bound, key in ranked:
            if bound <= most:
                break
            most = max(most, self._cost(privacy, quick[key]))
        return most

    def _cost(self, privacy: Privacy, spent: list[Spent]) -> float:
        key = tuple(spent := merged(spent))
        if key not in self._costs:
            self._costs[key] = privacy.budget.cost(spent)
        return self._costs[key]


def _finals(book: Book, before: int) -> tuple[Cid | None, ...]:
    """What ended each of the rounds before one."""
    finals = map(book.final, range(1, before))
    return tuple(final.cid if final is not None else None for final in finals)
