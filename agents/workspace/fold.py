"""What a workspace comes to: a pure fold over its entries in their order, kept up to date as entries come in.

Whatever the order of arrival, the same entries give the same state. An entry that comes in ahead of others undoes what
stands behind it, takes its place, and has the rest done again; most come in near the end. Every change of the state
goes through `_set`, which notes what was there before. Revocations and forks reach back: all of it is done again.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar, cast

from agents.workspace.authority import Authority
from agents.workspace.decisions import Ballot, Outcome, count
from agents.workspace.history import History, Node, Placed
from agents.workspace.patterns import matches
from protocols.entry import Entry
from protocols.workspaces.entries import (
    MAX_MEMBERS,
    Accept,
    Begin,
    Claim,
    Close,
    Commit,
    Drop,
    Endorse,
    Give,
    Grant,
    Join,
    Leave,
    Propose,
    Put,
    Rekey,
    Revoke,
    Right,
    Say,
    Vote,
)
from storage.cid import Cid
from storage.codecs import dag_cbor
from storage.keys import Identity, PeerId

OUT_OF_GRANT: Final = "out_of_grant"
REVOKED: Final = "revoked"
FORKED: Final = "forked"
UNFOUNDED: Final = "unfounded"
STALE: Final = "stale"
TAKEN: Final = "taken"
FULL: Final = "full"
MUST_ADOPT: Final = "must_adopt"

K = TypeVar("K")
V = TypeVar("V")


class Acceptance(NamedTuple):
    """What a voter accepted of a step, and in which term."""

    term: int
    commit: Node


class Fold:
    """The state of one workspace, and the history that it comes from."""

    def __init__(self, root: Entry, identity: Identity | None = None) -> None:
        """`identity` opens what is sealed for it; the state is the same without. Raises: TooBig, Malformed."""
        self.history: Final = History(root, identity)
        self._authority: Final = Authority(self.history)
        self._epoch: dict[str, Node] = {}
        self._keyed: dict[Cid, frozenset[PeerId]] = {}  # who was given the key of an epoch, by the id of its rekey
        self._log: list[tuple[dict[Any, Any], Any, Any]] = []
        self._log_at: list[int] = []  # where in the log each entry that was done begins
        self._n_good = 0  # so many of those done stand as they would be done again
        self._void: dict[Cid, str] = {}
        self._granted: dict[PeerId, tuple[Node, ...]] = {}
        self._live: dict[Cid, Node] = {}
        self._joined: dict[PeerId, Node] = {}
        self._turned_away: dict[PeerId, Node] = {}  # who joined when there were enough
        self._voters: dict[str, Mapping[PeerId, int]] = {}
        self._values: dict[str, Node] = {}
        self._proposals: dict[Cid, Node] = {}
        self._votes: dict[Cid, tuple[Node, ...]] = {}
        self._closed: dict[Cid, tuple[Node, Outcome]] = {}
        self._claims: dict[Cid, Node] = {}
        self._claimed: dict[str, tuple[Node, ...]] = {}  # by task
        self._open: dict[Cid, Node] = {}  # proposals, claims and commits that nothing came of yet
        self._endorsed: dict[tuple[str, int, PeerId], Node] = {}  # by which entry
        self._endorsers: dict[Cid, tuple[PeerId, ...]] = {}
        self._promised: dict[tuple[str, PeerId], int] = {}
        self._won: dict[tuple[str, int], Cid] = {}
        self._holders: dict[str, Cid] = {}
        self._n_idle: dict[tuple[str, PeerId], int] = {}  # claims that were won, without a commit so far
        self._proven: dict[Cid, bool] = {}  # claims that were won in the past of their author's commits
        self._begun: dict[tuple[str, int], tuple[Node, ...]] = {}
        self._commits: dict[Cid, Node] = {}
        self._committed: dict[tuple[Cid, int], Cid] = {}  # by claim and step
        self._accepted: dict[tuple[str, int, PeerId], Acceptance] = {}
        self._accepters: dict[Cid, tuple[PeerId, ...]] = {}
        self._done: dict[tuple[str, int], Cid] = {}

    # --- what comes in

    def add(self, entry: Entry) -> Placed | None:
        """Take in an entry; None when it was known.

        Raises: Unlinked, Foreign, Malformed, TooBig, BadLinks, BadSequence.
        """
        is_new = entry.cid not in self.history
        placed = self.history.add(entry)
        if entry.cid in self._authority.awaited:
            self._authority.awaited.discard(entry.cid)
            self._authority.forget()
            self._n_good = 0
        if placed is None:
            if is_new:  # another block of a body that is known: links to it find it from now on
                self._authority.forget()
                self._n_good = 0
            return None
        self._n_good = min(self._n_good, placed.position)
        if isinstance(placed.node.stated, Revoke | Leave):
            self._authority.learn(placed.node)
            self._n_good = 0
        elif placed.is_fork:
            self._authority.forget()
            self._n_good = 0
        elif isinstance(placed.node.stated, Grant):
            self._authority.forget()
        return placed

    def _settle(self) -> None:
        """Have every entry done that is here."""
        while len(self._log_at) > self._n_good:
            at = self._log_at.pop()
            while len(self._log) > at:
                table, key, before = self._log.pop()
                if before is None:
                    table.pop(key, None)
                else:
                    table[key] = before
        order = self.history.order
        for position in range(len(self._log_at), len(order)):
            node = order[position]
            self._log_at.append(len(self._log))
            code = self._do(node)
            if code:
                self._set(self._void, node.id, code)
        self._n_good = len(order)

    def _set(self, table: dict[K, V], key: K, value: V | None) -> None:
        self._log.append((table, key, table.get(key)))
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value

    # --- one entry

    def _do(self, node: Node) -> str:
        """Let it have its effect; the code where it has none."""
        if self._authority.is_forked(node):
            return FORKED
        if node.box is not None and not self._is_epoch(node.box.epoch, node):
            return UNFOUNDED
        return _DOING[type(node.stated)](self, node, node.stated)

    def _is_epoch(self, link: Cid, node: Node) -> bool:
        """Is that an earlier rekey? One that is void will do: who used its key need not have known."""
        named = self.history.get(link)
        return named is not None and isinstance(named.stated, Rekey) and named.rank < node.rank

    def _lacks(self, node: Node, right: Right, key: str | None) -> str:
        """Empty where its author may do this; else the code."""
        if node.author == self.history.owner:
            return ""
        if node.author in self._turned_away:
            return FULL
        code = OUT_OF_GRANT
        for granted in self._granted.get(node.author, ()):
            grant = cast(Grant, granted.stated)
            if (right in grant.can or right == "read") and (key is None or matches(grant.keys, key)):
                if node.sequence <= self._authority.cut(granted, node.author):
                    return ""
                code = REVOKED
        return code

    def _is_void(self, node: Node) -> bool:
        return node.id in self._void

    def _named(self, link: Cid, table: dict[Cid, Node]) -> Node | None:
        """The entry in that block, if it is in the table: known, earlier, and not void."""
        found = self.history.get(link)
        return table.get(found.id) if found is not None else None

    def _count_voters(self) -> None:
        self._set(self._voters, "now", self._weights(None))

    def _weights(self, key: str | None) -> Mapping[PeerId, int]:
        """Who votes, with what weight: on what stands under a key, who has a vote by a grant that covers it."""
        weights = {self.history.owner: 1}
        for node in self._live.values():
            grant = cast(Grant, node.stated)
            if grant.weight and grant.audience in self._joined and (key is None or matches(grant.keys, key)):
                weights[grant.audience] = max(grant.weight, weights.get(grant.audience, 0))
        return weights

    def _voters_now(self) -> Mapping[PeerId, int]:
        return self._voters.get("now", {self.history.owner: 1})

    def _lacks_vote(self, node: Node) -> str:
        lacks = self._lacks(node, "read", None)
        return lacks or ("" if node.author in self._voters_now() else OUT_OF_GRANT)

    def _grant(self, node: Node, says: Grant) -> str:
        chain = self._authority.chain(node)
        if chain is None:
            return OUT_OF_GRANT if says.proof is None else UNFOUNDED
        if not self._authority.is_good(node):
            return REVOKED
        if any(self._is_void(one) for one in chain[1:]):
            return UNFOUNDED
        self._set(self._granted, says.audience, (*self._granted.get(says.audience, ()), node))
        self._set(self._live, node.id, node)
        self._count_voters()
        return ""

    def _join(self, node: Node, _says: Join) -> str:
        code = self._lacks(node, "read", None)
        if not code and node.author not in self._joined and len(self._joined) >= MAX_MEMBERS - 1:
            self._set(self._turned_away, node.author, node)
            return FULL
        if not code:
            self._set(self._joined, node.author, node)
            self._count_voters()
        return code

    def _leave(self, node: Node, says: Leave) -> str:
        given = [one for link in says.grants if (one := self.history.get(link)) and isinstance(one.stated, Grant)]
        own = [one for one in given if self._authority.may_return(node, one)]
        self._end(own, lambda one, ended: one.id == ended.id)
        return "" if own else UNFOUNDED

    def _revoke(self, node: Node, says: Revoke) -> str:
        named = [one for link in says.grants if (one := self.history.get(link)) and isinstance(one.stated, Grant)]
        over = [one for one in named if self._authority.may_revoke(node, one)]

        def comes_from(one: Node, ended: Node) -> bool:
            return any(above.id == ended.id for above in self._authority.chain(one) or ())

        self._end(over, comes_from)
        if over:
            return ""
        return OUT_OF_GRANT if named else UNFOUNDED

    def _end(self, over: list[Node], is_hit: Callable[[Node, Node], bool]) -> None:
        for one in list(self._live.values()):
            if any(is_hit(one, ended) for ended in over):
                self._set(self._live, one.id, None)
        self._count_voters()

    def _rekey(self, node: Node, says: Rekey) -> str:
        code = self._lacks(node, "admin", None)
        if not code:
            self._set(self._epoch, "now", node)
            self._set(self._keyed, node.id, frozenset(peer for peer, _ in says.wraps))
        return code

    def _give(self, node: Node, says: Give) -> str:
        code = self._lacks(node, "admin", None)
        if code or not all(self._is_epoch(link, node) for link, _ in says.keys):
            return code or UNFOUNDED
        for link, _ in says.keys:
            epoch = cast(Node, self.history.get(link)).id
            self._set(self._keyed, epoch, self._keyed.get(epoch, frozenset()) | {says.audience})
        return ""

    def _say(self, node: Node, says: Say) -> str:
        return self._lacks(node, "write", says.key)

    def _put(self, node: Node, says: Put) -> str:
        code = self._lacks(node, "write", says.key)
        if not code:
            self._set(self._values, says.key, node)
        return code

    def _drop(self, node: Node, says: Drop) -> str:
        code = self._lacks(node, "write", says.key)
        if not code and says.key in self._values:
            self._set(self._values, says.key, None)
        return code

    def _propose(self, node: Node, says: Propose) -> str:
        code = self._lacks(node, "write", says.key)
        if not code:
            self._set(self._proposals, node.id, node)
            self._set(self._open, node.id, node)
        return code

    def _vote(self, node: Node, says: Vote) -> str:
        code = self._lacks_vote(node)
        proposal = self._named(says.proposal, self._proposals)
        if code or proposal is None:
            return code or UNFOUNDED
        if node.author not in self._weights(cast(Propose, proposal.stated).key):
            return OUT_OF_GRANT
        self._set(self._votes, proposal.id, (*self._votes.get(proposal.id, ()), node))
        return ""

    def _close(self, node: Node, says: Close) -> str:
        proposal = self._named(says.proposal, self._proposals)
        if proposal is None:
            return UNFOUNDED
        proposed = cast(Propose, proposal.stated)
        code = self._lacks(node, "read", None)
        if code or node.author not in proposed.closers:
            return code or OUT_OF_GRANT
        if proposal.id in self._closed:
            return TAKEN
        past = self.history.past(node.entry.cid)
        ballots: dict[PeerId, Ballot] = {}
        for vote in self._votes.get(proposal.id, ()):
            if vote.id in past:
                cast_ = cast(Vote, vote.stated)
                ballots[vote.author] = Ballot(cast_.ranking, cast_.veto)
        outcome = count(proposed.rule, len(proposed.options), ballots, self._weights(proposed.key), proposed.quorum)
        self._set(self._closed, proposal.id, (node, outcome))
        self._set(self._open, proposal.id, None)
        return ""

    def _claim(self, node: Node, says: Claim) -> str:
        code = self._lacks(node, "run", says.task)
        if not code:
            self._set(self._claims, node.id, node)
            self._set(self._claimed, says.task, (*self._claimed.get(says.task, ()), node))
            self._set(self._open, node.id, node)
            if not self._lacks_vote(node):
                self._support(node, node)
        return code

    def _endorse(self, node: Node, says: Endorse) -> str:
        code = self._lacks_vote(node)
        claim = self._named(says.claim, self._claims)
        if code or claim is None:
            return code or UNFOUNDED
        return self._support(node, claim)

    def _support(self, node: Node, claim: Node) -> str:
        """A voter endorses a claim, its first of that task and term."""
        wanted, voter = cast(Claim, claim.stated), node.author
        task, term = wanted.task, wanted.term
        if self._promised.get((task, voter), -1) > term:
            return STALE
        if (task, term, voter) in self._endorsed:
            return TAKEN
        self._set(self._endorsed, (task, term, voter), node)
        self._set(self._promised, (task, voter), term)
        endorsers = (*self._endorsers.get(claim.id, ()), voter)
        self._set(self._endorsers, claim.id, endorsers)
        if (task, term) not in self._won and self._has_majority(endorsers):
            self._set(self._won, (task, term), claim.id)
            self._set(self._open, claim.id, None)
            self._count_idle(task, claim.author, 1)
            holder = self._holders.get(task)
            if holder is None or cast(Claim, self._claims[holder].stated).term < term:
                self._set(self._holders, task, claim.id)
        return ""

    def _has_majority(self, peers: tuple[PeerId, ...]) -> bool:
        voters = self._voters_now()
        return 2 * sum(peer in voters for peer in peers) > len(voters)

    def _count_idle(self, task: str, author: PeerId, more: int) -> None:
        self._set(self._n_idle, (task, author), self._n_idle.get((task, author), 0) + more)

    def _begin(self, node: Node, says: Begin) -> str:
        claim = self._named(says.claim, self._claims)
        if claim is None or claim.author != node.author:
            return UNFOUNDED
        task = cast(Claim, claim.stated).task
        code = self._lacks(node, "run", task)
        if not code:
            self._set(self._begun, (task, says.step), (*self._begun.get((task, says.step), ()), node))
        return code

    def _commit(self, node: Node, says: Commit) -> str:
        claim = self._named(says.claim, self._claims)
        if claim is None or claim.author != node.author:
            return UNFOUNDED
        task = cast(Claim, claim.stated).task
        code = self._lacks(node, "run", task)
        if code:
            return code
        if (task, says.step) in self._done or (claim.id, says.step) in self._committed:
            return TAKEN
        if claim.id not in self._proven:
            if not self._has_majority(self._endorsers_before(node, claim)):
                return UNFOUNDED
            self._set(self._proven, claim.id, True)
            self._count_idle(task, claim.author, -1)
        must = self._must_adopt(node, claim, says.step)
        if must is not None and not is_same_output(must, node):
            return MUST_ADOPT
        self._set(self._committed, (claim.id, says.step), node.id)
        self._set(self._commits, node.id, node)
        self._set(self._open, node.id, node)
        if not self._lacks_vote(node):
            self._take(node.author, node)
        return ""

    def _endorsers_before(self, commit: Node, claim: Node) -> tuple[PeerId, ...]:
        """Who had endorsed the claim where the author of a commit stood: later ones it cannot have asked."""
        wanted, past = cast(Claim, claim.stated), self.history.past(commit.entry.cid)
        return tuple(
            voter
            for voter in self._endorsers.get(claim.id, ())
            if self._endorsed[wanted.task, wanted.term, voter].id in past
        )

    def _must_adopt(self, commit: Node, claim: Node, step: int) -> Node | None:
        """The commit of that step that those who endorsed the claim had accepted before, in the highest term."""
        wanted = cast(Claim, claim.stated)
        if not any((wanted.task, step, voter) in self._accepted for voter in self._endorsers.get(claim.id, ())):
            return None
        before = [
            one
            for voter in self._endorsers_before(commit, claim)
            if (one := self._accepted.get((wanted.task, step, voter))) is not None and one.term < wanted.term
        ]
        if not before:
            return None
        return max(before, key=lambda one: (one.term, one.commit.rank)).commit

    def _accept(self, node: Node, says: Accept) -> str:
        code = self._lacks_vote(node)
        commit = self._named(says.commit, self._commits)
        if code or commit is None:
            return code or UNFOUNDED
        return self._take(node.author, commit)

    def _take(self, voter: PeerId, commit: Node) -> str:
        """A voter accepts a commit, unless it has endorsed a claim of a higher term."""
        says = cast(Commit, commit.stated)
        claim = cast(Claim, cast(Node, self._named(says.claim, self._claims)).stated)
        if self._promised.get((claim.task, voter), -1) > claim.term:
            return STALE
        place = (claim.task, says.step, voter)
        before = self._accepted.get(place)
        if before is not None and before.term >= claim.term:
            return TAKEN
        self._set(self._accepted, place, Acceptance(claim.term, commit))
        accepters = (*self._accepters.get(commit.id, ()), voter)
        self._set(self._accepters, commit.id, accepters)
        step = (claim.task, says.step)
        if step not in self._done and self._has_majority(accepters):
            self._set(self._done, step, commit.id)
            self._set(self._open, commit.id, None)
        return ""


def is_same_output(one: Node, other: Node) -> bool:
    """Do two commits say that the same came out? Sealed ones, in the same box: not everybody can look into it."""
    if one.box is not None or other.box is not None:
        return one.box == other.box
    left, right = cast(Commit, one.stated), cast(Commit, other.stated)
    return left.link == right.link and dag_cbor.encode(left.output) == dag_cbor.encode(right.output)


_DOING: Final[dict[type, Callable[[Fold, Node, Any], str]]] = {
    Grant: Fold._grant,
    Join: Fold._join,
    Leave: Fold._leave,
    Revoke: Fold._revoke,
    Say: Fold._say,
    Put: Fold._put,
    Drop: Fold._drop,
    Propose: Fold._propose,
    Vote: Fold._vote,
    Close: Fold._close,
    Claim: Fold._claim,
    Endorse: Fold._endorse,
    Begin: Fold._begin,
    Commit: Fold._commit,
    Accept: Fold._accept,
    Rekey: Fold._rekey,
    Give: Fold._give,
}
