"""Which claims deserve an answer: what a voter's node supports by itself, and what who wants a task goes by.

All of it is local: a claim is won by a majority whatever one node makes of it, so nodes that differ here lose time and
nothing else. It is what keeps a member that claims without end, or far ahead, from keeping the others from the work.
"""

from collections import Counter
from typing import Final, NamedTuple, cast

from agents.workspace.history import Node
from agents.workspace.space import Space
from protocols.bucket import Bucket
from protocols.workspaces.entries import Claim
from storage.cid import Cid
from storage.keys import PeerId

MAX_SKIP: Final = 1 << 20  # terms that a claim may be ahead of the one that was won last
MAX_IDLE: Final = 8  # claims to one task that an author may win without a commit
MAX_HONOURED: Final = 4  # claims of one author, under one holder, that others wait for
SUPPORT_BURST: Final = 512
SUPPORT_REFILL_S: Final = 60.0  # until that much may be supported once more


class Allowance:
    """How many claims and commits of each author one member supports in a time: each makes every voter sign an entry.

    There are as many authors as a workspace has. No clock.
    """

    def __init__(self) -> None:
        self._of: dict[PeerId, Bucket] = {}

    def may_support(self, author: PeerId, now_s: float) -> bool:
        """Support one more, if there is room now; was there?"""
        bucket = self._of.setdefault(author, Bucket(SUPPORT_BURST, SUPPORT_REFILL_S, now_s))
        return bucket.may_take(1, now_s)


def term_of(claim: Node) -> int:
    """The term of a claim."""
    return cast(Claim, claim.stated).term


def highest_term(space: Space, task: str) -> int:
    """The highest term that somebody claimed, -1 for none; those that no voter's node endorses do not count."""
    most = _most(space, task)
    return max((term for claim in space.claims(task) if (term := term_of(claim)) <= most), default=-1)


def _most(space: Space, task: str) -> int:
    holder = space.holder(task)
    return (term_of(holder) if holder is not None else -1) + MAX_SKIP


def deserves(space: Space, claim: Node) -> bool:
    """Should a voter's node endorse this claim by itself?

    Not if its author has the task already, has won it time and again and done nothing, or uses up the terms.
    """
    task = cast(Claim, claim.stated).task
    holder = space.holder(task)
    if holder is not None and holder.author == claim.author:
        return False
    return space.n_idle(task, claim.author) < MAX_IDLE and term_of(claim) <= _most(space, task)


class Asked(NamedTuple):
    """Who asks for a task that they have not got: when it changes, the others let the voters answer.

    `n_others` grows so often only for one author, so that who asks without end keeps nobody waiting.
    """

    holder: Cid | None
    n_own: int
    n_others: int


def asked_for(space: Space, me: PeerId, task: str) -> Asked:
    """How often this member and others asked for a task since it was won last."""
    holder = space.holder(task)
    above = term_of(holder) if holder is not None else -1
    counts = Counter(claim.author for claim in space.claims(task) if term_of(claim) > above)
    n_own = counts.pop(me, 0)
    return Asked(holder and holder.id, n_own, sum(min(count, MAX_HONOURED) for count in counts.values()))
