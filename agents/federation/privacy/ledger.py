"""What an experiment may tell, and what it has told: on the disk before a result is published.

A result is charged under its CID. The same one again costs nothing, another of the same round (a coordinator that came
back and made new noise) costs again, for both may have been seen.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from agents.errors import AgentError
from agents.federation.privacy import pld, rdp
from agents.federation.privacy.spent import Spent
from storage.cid import Cid
from storage.durable import write_file

MAX_LEDGER_BYTES: Final = 1 << 24
RDP_BITS: Final = 30  # that are alike everywhere: logarithms and exponentials differ in the last few of 53
PLD_BITS: Final = 20  # a Fourier transform's noise counts beside a small delta

Accountant = Literal["rdp", "pld"]


class BudgetSpent(AgentError):
    """The experiment's privacy budget does not bear another result. It ends here; a new plan needs a new budget."""

    code = "budget_spent"


class BadLedger(AgentError):
    """The ledger of a privacy budget cannot be read, so this node tells no more. Train no more: covey fl leave."""

    code = "bad_ledger"


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be told in all: epsilon at a delta, by one accountant."""

    epsilon: Annotated[float, Meta(gt=0.0, le=1e6)]
    delta: Annotated[float, Meta(gt=0.0, lt=1.0)]
    accountant: Accountant = "rdp"

    def cost(self, spent: Sequence[Spent]) -> float:
        """The epsilon of all that was told; infinity where an accountant has no bound for it that is within the budget.

        Rounded up, so that all machines say the same: their logarithms and Fourier transforms differ in the last bits.
        """
        if self.accountant == "rdp":
            return self._quick(spent)
        try:
            return rounded_up(pld.epsilon(spent, self.delta), PLD_BITS)
        except pld.TooWide:
            return quick if (quick := self._quick(spent)) <= self.epsilon else math.inf

    def is_within(self, spent: Sequence[Spent]) -> bool:
        """May all of it be told? By Renyi's orders first: they are quick, and never below the tighter accountant."""
        return self._quick(spent) <= self.epsilon or self.cost(spent) <= self.epsilon

    def _quick(self, spent: Sequence[Spent]) -> float:
        return rounded_up(rdp.epsilon(spent, self.delta), RDP_BITS)


class Charge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One result and what it told."""

    round: Annotated[int, Meta(ge=1)]
    result: str
    told: tuple[Spent, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    experiment: str
    budget: Budget
    charges: tuple[Charge, ...] = ()
    format: Literal[1] = 1


class Ledger:
    """The charges of one experiment, in one file. For one process at a time."""

    def __init__(self, path: Path, experiment: Cid, budget: Budget) -> None:
        """Open, or begin. Raises: BadLedger when the file is damaged, another experiment's, or of another budget."""
        self._path = path
        self._file = _File(str(experiment), budget)
        if (found := _read(path)) is not None:
            if (found.experiment, found.budget) != (self._file.experiment, budget):
                raise BadLedger(f"{path} belongs to another experiment, or was begun with another budget")
            self._file = found

    @property
    def charges(self) -> tuple[Charge, ...]:
        """All results that were charged, in the order in which they were."""
        return self._file.charges

    @property
    def epsilon(self) -> float:
        """What was told so far."""
        return self._file.budget.cost(_told(self.charges))

    def epsilon_until(self, number: int) -> float:
        """What the rounds until that one told."""
        return self._file.budget.cost(_told([one for one in self.charges if one.round <= number]))

    def charge(self, number: int, result: Cid, told: Sequence[Spent]) -> float:
        """Count a result, durably; only then may it be published. Returns: the epsilon so far.

        Raises: BudgetSpent, and nothing is charged, also where the ledger is full; BadLedger when the result was
        charged as something else.
        """
        new = Charge(number, str(result), tuple(told))
        for old in self.charges:
            if old.result == new.result:
                if old != new:
                    raise BadLedger(f"the result {result} was charged before, for another round or other noise")
                return self.epsilon
        charges = (*self.charges, new)
        budget = self._file.budget
        epsilon = budget.cost(_told(charges))
        if not budget.is_within(_told(charges)):
            raise BudgetSpent(
                f"round {number} would bring epsilon to {epsilon:.4g}, over the {budget.epsilon:.4g} of the plan at"
                f" delta {budget.delta:g}: its result is not published, and the experiment ends"
            )
        file = msgspec.structs.replace(self._file, charges=charges)
        data = msgspec.json.encode(file)
        if len(data) > MAX_LEDGER_BYTES:  # or it could not be read again, and what was told would not be known
            raise BudgetSpent(
                f"the ledger has {len(self.charges):,} results, and no more fit in it: that of round {number} is not"
                " published. Plan another experiment for more rounds"
            )
        write_file(self._path, data)
        self._file = file
        return epsilon

    def bears(self, told: Sequence[Spent]) -> bool:
        """Would another result like this be within the budget? To be asked before a round begins."""
        return self._file.budget.is_within([*_told(self.charges), *told])


def rounded_up(value: float, n_bits: int) -> float:
    """The next value of so many bits."""
    if not math.isfinite(value):
        return value
    part, exponent = math.frexp(value)
    return math.ldexp(math.ceil(math.ldexp(part, n_bits)), exponent - n_bits)


def _told(charges: Sequence[Charge]) -> list[Spent]:
    return merged(one for charge in charges for one in charge.told)


def merged(spent: Iterable[Spent]) -> list[Spent]:
    """Equal uses are counted once, many times: the accountants work on each kind once."""
    counts: dict[Spent, int] = {}
    for one in spent:
        alone = msgspec.structs.replace(one, times=1)
        counts[alone] = counts.get(alone, 0) + one.times
    return [msgspec.structs.replace(one, times=times) for one, times in counts.items()]


def _read(path: Path) -> _File | None:
    """None where there is no such file, and for no other reason: what was told before must not be forgotten."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LEDGER_BYTES + 1)
        if len(data) > MAX_LEDGER_BYTES:
            raise ValueError("it is larger than any ledger")
        found = msgspec.json.decode(data, type=_File)
        for charge in found.charges:
            Cid.parse(charge.result)
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise BadLedger(
            f"{path} cannot be read: {error}. What was told is not known, and an older copy would know too little"
        ) from None
