"""Rounds that wait for a number of updates and not for members: the rule `fedbuff`, as those who coordinate see it."""

from typing import Final, NamedTuple

from protocols.rounds import Plan

RULE: Final = "fedbuff"
MAX_STALENESS: Final = 4  # as the rule has it where a plan says nothing


class Buffer(NamedTuple):
    """How many updates end a round, 0 for those of all; and of how many results before an update's base may be."""

    n_updates: int
    max_staleness: int


def buffer_of(plan: Plan) -> Buffer | None:
    """What a plan says; None where updates of earlier results are not taken. The registry judges the settings."""
    if plan.rule.get("rule") != RULE:
        return None
    n_updates, most = plan.rule.get("n_buffer", 0), plan.rule.get("max_staleness", MAX_STALENESS)
    return Buffer(n_updates if type(n_updates) is int else 0, most if type(most) is int else MAX_STALENESS)
