"""How often a member is asked for news: who tells first, again and again; the others as a reserve."""

from typing import Final, NamedTuple

from protocols.workspaces.sync import MAX_WAIT_S

ASK_GAP_S: Final = 0.02  # between two questions to one member: what is said meanwhile comes in one answer
LATE_GAP_S: Final = 2.0  # and where most of an answer was heard of others meanwhile
RESERVE_S: Final = 10.0  # who tells late is asked after so long at the latest, while others tell in time
PATIENCE_S: Final = 1.0  # what somebody announces is on its way, while others tell in time
GAP_STEP: Final = 4.0  # by so much the wait grows, or shrinks


class Heard(NamedTuple):
    """What an answer told: so much was new, so much known, or heard of others meanwhile.

    `is_vain`: all of it is of authors whose entries fork, or are not kept any more, so that it may be told again each
    time.
    """

    n_new: int
    n_known: int
    is_vain: bool

    def gap_s(self, last_s: float) -> float:
        """How long to wait until that member is asked again, after the last wait.

        Who tells what others told first is asked less often, and more often again once it is ahead of them.
        """
        if not self.n_new and self.is_vain:
            return min(2 * last_s, MAX_WAIT_S)
        if self.n_new < 2 * self.n_known:
            return min(GAP_STEP * last_s, max(LATE_GAP_S, last_s))
        return max(last_s / GAP_STEP, ASK_GAP_S) if self.n_new else ASK_GAP_S
