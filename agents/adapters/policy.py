"""Which announced adapters come unasked, and when: a pure decision over what the settings and the moment say.

It bounds what a node does by itself. What its user asks for (`covey adapter fetch`) comes at once.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

DAY_S: Final = 86_400.0

Unasked = Literal["all", "newer", "none"]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch its files now."""


@dataclass(frozen=True, slots=True)
class Later:
    """The moment is wrong; it is tried again."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Leave:
    """It is listed as heard of, and comes when it is asked for."""

    text: str


Verdict = Fetch | Later | Leave


@dataclass(frozen=True)
class Policy:
    """What the settings say. `newer`: only versions of what is here already. `only_idle`: not beside an answer."""

    unasked: Unasked = "all"
    max_bytes_per_day: float = math.inf
    is_metered: bool = False
    only_idle: bool = False


class Moment(NamedTuple):
    """What is so now. `has_older`: ready here; `n_spent_bytes` came in the last 24 h or are coming."""

    has_older: bool
    n_spent_bytes: int
    is_busy: bool


def judge_files(policy: Policy, n_bytes: int, moment: Moment) -> Verdict:
    """May the files of an adapter that nobody asked for, of `n_bytes`, be fetched now?"""
    if policy.unasked == "none" or (policy.unasked == "newer" and not moment.has_older):
        return Leave(f"adapters.unasked is {policy.unasked}")
    if n_bytes > policy.max_bytes_per_day:
        return Leave(f"alone it is over adapters.mb_per_day: {n_bytes} of {policy.max_bytes_per_day:.0f} bytes")
    if policy.is_metered:
        return Later("metered", "the network is metered (network.is_metered)")
    if n_bytes + moment.n_spent_bytes > policy.max_bytes_per_day:
        return Later("over_budget", f"{moment.n_spent_bytes} bytes came within a day (adapters.mb_per_day)")
    if policy.only_idle and moment.is_busy:
        return Later("busy", "the engine answers (adapters.only_idle)")
    return Fetch()
