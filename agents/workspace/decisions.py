"""Counting votes: pure, and the same for whoever counts."""

from collections.abc import Mapping
from typing import NamedTuple

from protocols.workspaces.entries import Rule
from storage.keys import PeerId


class Ballot(NamedTuple):
    """A vote: options by their place, the best first; none of them is an abstention."""

    ranking: tuple[int, ...]
    veto: bool = False


class Outcome(NamedTuple):
    """`chosen` is the option's place, None where none was; `tally` is what each got in the last count."""

    chosen: int | None
    why: str
    tally: tuple[int, ...]


def count(
    rule: Rule, n_options: int, ballots: Mapping[PeerId, Ballot], weights: Mapping[PeerId, int], quorum: int
) -> Outcome:
    """Decide. `weights` are those of all voters, who voted or not; ballots of others are left out."""
    cast = {
        voter: Ballot(tuple(option for option in ballot.ranking if option < n_options), ballot.veto)
        for voter, ballot in ballots.items()
        if voter in weights
    }
    tally = _tally(n_options, cast, weights if rule == "weighted" else None)
    if len(cast) < quorum:
        return Outcome(None, f"{len(cast)} voted, and the quorum is {quorum}", tally)
    if rule == "veto" and any(ballot.veto for ballot in cast.values()):
        return Outcome(None, "vetoed", tally)
    if rule == "ranked":
        return _run_off(n_options, cast)
    if rule == "unanimous":
        agreed = next((option for option, n in enumerate(tally) if n == len(weights)), None)
        return Outcome(agreed, "all agree" if agreed is not None else "not all agree", tally)
    total = sum(weights[voter] for voter in cast) if rule == "weighted" else len(cast)
    return _over_half(tally, total)


def _tally(n_options: int, cast: Mapping[PeerId, Ballot], weights: Mapping[PeerId, int] | None) -> tuple[int, ...]:
    tally = [0] * n_options
    for voter, ballot in cast.items():
        if ballot.ranking:
            tally[ballot.ranking[0]] += weights[voter] if weights is not None else 1
    return tuple(tally)


def _over_half(tally: tuple[int, ...], total: int) -> Outcome:
    chosen = next((option for option, n in enumerate(tally) if 2 * n > total), None)
    return Outcome(chosen, "over half" if chosen is not None else "none has over half", tally)


def _run_off(n_options: int, cast: Mapping[PeerId, Ballot]) -> Outcome:
    """Instant run-off: the option with the fewest goes, of equals the later one, until one has over half."""
    left = set(range(n_options))
    while True:
        tops = [next((option for option in ballot.ranking if option in left), None) for ballot in cast.values()]
        tally = tuple(tops.count(option) for option in range(n_options))
        found = _over_half(tally, sum(top is not None for top in tops))
        if found.chosen is not None or len(left) == 1 or not any(tally):
            return found
        left.remove(max(left, key=lambda option: (-tally[option], option)))
