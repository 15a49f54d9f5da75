"""A workspace as its members read it: who may do what, what stands where, what was decided, who holds which task."""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple, Self, cast

from agents.workspace.decisions import Outcome
from agents.workspace.errors import NoKey
from agents.workspace.fold import Fold
from agents.workspace.history import Node
from agents.workspace.origin import attenuates
from agents.workspace.patterns import matches
from protocols.entry import Entry
from protocols.workspaces.entries import Claim, Commit, Grant, Propose, Rekey, Revoke, Right
from protocols.workspaces.sealed import has_exchange_key
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.keys import PeerId


class Member(NamedTuple):
    """Who may do something, by which grants; the owner by none."""

    peer: PeerId
    grants: tuple[Node, ...]
    has_joined: bool
    weight: int

    @property
    def rights(self) -> tuple[str, ...]:
        """All that it may do somewhere."""
        return tuple(sorted({right for node in self.grants for right in cast(Grant, node.says).can}))

    def rights_at(self, key: str) -> tuple[str, ...]:
        """What it may do with a key; to read, every member may."""
        grants = [grant for node in self.grants if matches((grant := cast(Grant, node.says)).keys, key)]
        return tuple(sorted({"read", *(right for grant in grants for right in grant.can)}))


class Space(Fold):
    """One workspace. Two that hold the same heads answer alike."""

    def code(self, node: Node) -> str:
        """Why an entry has no effect; empty where it has one."""
        self._settle()
        return self._void.get(node.id, "")

    def voids(self) -> dict[Cid, str]:
        """Every entry without effect, by its id, with the code that says why."""
        self._settle()
        return dict(self._void)

    def values(self) -> dict[str, Node]:
        """The value of each key, as the entry that put it there."""
        self._settle()
        return dict(self._values)

    def members(self) -> list[Member]:
        """Who has a live grant, and the owner, first."""
        self._settle()
        voters = self._voters_now()
        grants: dict[PeerId, list[Node]] = {self.history.owner: []}
        for node in self._live.values():
            grants.setdefault(cast(Grant, node.says).audience, []).append(node)
        return [
            Member(
                peer,
                tuple(sorted(grants[peer], key=lambda node: node.rank)),
                peer in self._joined or peer == self.history.owner,
                voters.get(peer, 0),
            )
            for peer in sorted(grants, key=lambda peer: (peer != self.history.owner, peer))
        ]

    def is_member(self, peer: PeerId) -> bool:
        """May this peer read what is here?"""
        self._settle()
        return peer == self.history.owner or any(
            cast(Grant, node.says).audience == peer for node in self._live.values()
        )

    def has_joined(self, peer: PeerId) -> bool:
        """Has this peer joined, or begun it?"""
        self._settle()
        return peer == self.history.owner or peer in self._joined

    def live_grants(self) -> list[Node]:
        """The grants that count, in order."""
        self._settle()
        return sorted(self._live.values(), key=lambda node: node.rank)

    def can_revoke(self, peer: PeerId, grant: Node) -> bool:
        """Would a revocation of this grant count that this peer signs next?"""
        self._settle()
        chain = self._authority.chain(grant) or ()
        if peer == self.history.owner:
            return bool(chain)
        if any(one.author == peer and above.id in self._live for one, above in pairwise(chain)):
            return True
        mine = (node for node in self._live.values() if cast(Grant, node.stated).audience == peer)
        return any(self._authority.outlasts(node, grant) for node in mine)

    def enders(self, grant: Node) -> list[PeerId]:
        """Whose nodes end a grant that is over by the clock: who issued it, else the owner, else an admin."""
        self._settle()
        says = (cast(Grant, node.stated) for node in self._live.values())
        admins = sorted({one.audience for one in says if "admin" in one.can})
        able = dict.fromkeys([grant.author, self.history.owner, *admins])
        return [peer for peer in able if self.can_revoke(peer, grant)]

    def until(self, grant: Node) -> int:
        """Until when a grant is meant to count, and all that it comes from; 0 for as long as none is revoked."""
        return self._authority.until(grant)

    def may_read(self, peer: PeerId, unix_s: float) -> bool:
        """Is this peer a member by something that is not over by the clock, though nobody has ended it yet?"""
        self._settle()
        own = (node for node in self._live.values() if cast(Grant, node.stated).audience == peer)
        return peer == self.history.owner or any(not 0 < self.until(node) <= unix_s for node in own)

    @classmethod
    def of(cls, root: Entry, entries: Iterable[Entry]) -> Self:
        """What these entries come to, each behind those that it links to. Raises: as `add` does."""
        space = cls(root)
        for entry in entries:
            space.add(entry)
        return space

    def farewell(self, peer: PeerId) -> set[Cid]:
        """What who was a member may still be told: the ends of its grants, and all before, by their ids."""
        self._settle()
        ends = [
            node
            for granted in self._granted.get(peer, ())
            for node in self._authority.endings(granted)
            if node.id not in self._void
        ]
        return {cid for node in ends for cid in (node.id, *self.history.past(node.entry.cid))}

    def why_out(self, peer: PeerId) -> str:
        """What ended the last grant of who is no member any more; empty where it never had one."""
        self._settle()
        ends = [node for one in self._granted.get(peer, ()) for node in self._authority.endings(one)]
        ends = [node for node in ends if node.id not in self._void]
        if not ends:
            return ""
        says, author = (last := max(ends, key=lambda node: node.rank)).stated, last.author
        if not isinstance(says, Revoke):
            return f"{peer} left"
        return f"{author} revoked what {peer} may do there" + (f": {says.reason}" if says.reason else "")

    # --- private workspaces

    def is_admin(self, peer: PeerId) -> bool:
        """May this peer let others in, and has it joined?"""
        self._settle()
        if peer == self.history.owner:
            return True
        grants = (cast(Grant, node.stated) for node in self._live.values())
        has_joined = peer in self._joined and peer not in self._turned_away
        return has_joined and any(grant.audience == peer and "admin" in grant.can for grant in grants)

    def readers(self) -> list[PeerId]:
        """The members whom a key can be sealed to: the owner, then as they were let in."""
        self._settle()
        live = (cast(Grant, node.stated).audience for node in self.live_grants())
        return [peer for peer in dict.fromkeys([self.history.owner, *live]) if has_exchange_key(peer)]

    def keyed(self) -> frozenset[PeerId]:
        """Who was given the key that is used now."""
        self._settle()
        now = self._epoch.get("now")
        return self._keyed.get(now.id, frozenset()) if now is not None else frozenset()

    def has_key(self) -> bool:
        """Can this node say something? In a workspace that is not private, always."""
        return not self.history.root.is_private or self._find_key() is not None

    def current_key(self) -> tuple[Node, bytes]:
        """The key to seal with: the entry that began it, and itself. Raises: NoKey."""
        found = self._find_key()
        if found is None:
            raise NoKey(f"no key of {self.history.root.title!r} is here yet")
        return found

    def _find_key(self) -> tuple[Node, bytes] | None:
        self._settle()
        now = self._epoch.get("now")
        key = self.history.vault.key(now) if now is not None else None
        return (now, key) if now is not None and key is not None else None

    def keys(self) -> dict[Cid, bytes]:
        """Every key that this node has, by the entry that began it."""
        rekeys = (node for node in self.history if isinstance(node.stated, Rekey))
        found = {node.entry.cid: self.history.vault.key(node) for node in rekeys}
        return {cid: key for cid, key in found.items() if key is not None}

    # --- who may, and what came of it

    def may(self, peer: PeerId, right: Right, key: str) -> bool:
        """May this peer do that from now on?"""
        self._settle()
        grants = (cast(Grant, node.says) for node in self._live.values())
        return peer == self.history.owner or any(
            grant.audience == peer and (right in grant.can or right == "read") and matches(grant.keys, key)
            for grant in grants
        )

    def proof_for(self, peer: PeerId, wanted: Grant) -> Node | None:
        """The grant by which this peer may give that one; None for the owner, and for who may not."""
        self._settle()
        for node in sorted(self._live.values(), key=lambda node: node.rank):
            grant = cast(Grant, node.says)
            if grant.audience == peer and attenuates(grant, wanted):
                return node
        return None

    def let_in_by(self, grants: list[Node]) -> list[PeerId]:
        """The authors whom these grants let in, or others that come from them."""
        ids = {node.id for node in grants}
        found = {
            one.says.audience
            for one in self.history
            if isinstance(one.says, Grant) and any(above.id in ids for above in self._authority.chain(one) or ())
        }
        return sorted(found)

    def proposals(self) -> list[Node]:
        """What was proposed, in order."""
        self._settle()
        return sorted(self._proposals.values(), key=lambda node: node.rank)

    def outcome(self, proposal: Node) -> Outcome | None:
        """What came of a proposal; None while it is open."""
        self._settle()
        closed = self._closed.get(proposal.id)
        return closed[1] if closed is not None else None

    def voters(self, key: str | None = None) -> dict[PeerId, int]:
        """Who votes, with what weight: on tasks, or on what is proposed under a key."""
        self._settle()
        return dict(self._voters_now() if key is None else self._weights(key))

    def votes(self, proposal: Node) -> list[Node]:
        """Every vote on a proposal, changed ones too, in order."""
        self._settle()
        return list(self._votes.get(proposal.id, ()))

    def holder(self, task: str) -> Node | None:
        """The claim that won the highest term of a task."""
        self._settle()
        found = self._holders.get(task)
        return self._claims[found] if found is not None else None

    def winner(self, task: str, term: int) -> Node | None:
        """The claim that won a term of a task."""
        self._settle()
        found = self._won.get((task, term))
        return self._claims[found] if found is not None else None

    def claims(self, task: str | None = None) -> list[Node]:
        """The claims that are not void, in order."""
        self._settle()
        if task is not None:
            return list(self._claimed.get(task, ()))
        return sorted(self._claims.values(), key=lambda node: node.rank)

    def n_idle(self, task: str, author: PeerId) -> int:
        """How many claims to a task this author won, and committed nothing under."""
        self._settle()
        return self._n_idle.get((task, author), 0)

    def done(self, task: str, step: int) -> Node | None:
        """The commit of a step that is done."""
        self._settle()
        found = self._done.get((task, step))
        return self._commits[found] if found is not None else None

    def begun(self, task: str, step: int) -> list[Node]:
        """Every attempt at a step, in order."""
        self._settle()
        return list(self._begun.get((task, step), ()))

    def commits(self) -> list[Node]:
        """The commits that are not void, in order."""
        self._settle()
        return sorted(self._commits.values(), key=lambda node: node.rank)

    def unsupported(self, voter: PeerId) -> list[Node]:
        """The claims and commits that this voter may endorse or accept, and has not."""
        self._settle()
        if voter not in self._voters_now():
            return []
        return sorted((node for node in self._open.values() if self._awaits(node, voter)), key=lambda node: node.rank)

    def _awaits(self, node: Node, voter: PeerId) -> bool:
        """May this voter still endorse or accept it?"""
        if isinstance(node.says, Claim):
            is_late = self._promised.get((node.says.task, voter), -1) > node.says.term
            place = (node.says.task, node.says.term)
            return not (is_late or place in self._won or (*place, voter) in self._endorsed)
        if isinstance(node.says, Commit):
            of = cast(Claim, cast(Node, self._named(node.says.claim, self._claims)).says)
            before = self._accepted.get((of.task, node.says.step, voter))
            is_late = self._promised.get((of.task, voter), -1) > of.term
            return not (is_late or (of.task, node.says.step) in self._done or (before and before.term >= of.term))
        return False

    def open_commits(self) -> list[Node]:
        """The commits that wait to be accepted."""
        self._settle()
        return [node for node in self._open.values() if isinstance(node.says, Commit)]

    def open_proposals(self) -> list[Node]:
        """What is voted on, in order."""
        self._settle()
        return sorted(
            (node for node in self._open.values() if isinstance(node.says, Propose)), key=lambda node: node.rank
        )

    def accepted(self, task: str, step: int, claim: Node) -> Commit | None:
        """What a commit of that step under that claim has to have for its output, if it is not free."""
        found = self._before(task, step, claim)
        return cast(Commit, found.says) if found is not None else None

    def adopted(self, commit: Commit) -> Node | None:
        """The commit whose output a new one has to have, if that is not free."""
        claim = self.history.get(commit.claim)
        if claim is None or not isinstance(claim.stated, Claim):
            return None
        return self._before(claim.stated.task, commit.step, claim)

    def _before(self, task: str, step: int, claim: Node) -> Node | None:
        self._settle()
        term = cast(Claim, claim.says).term
        before = [
            one
            for voter in self._endorsers.get(claim.id, ())
            if (one := self._accepted.get((task, step, voter))) is not None and one.term < term
        ]
        return max(before, key=lambda one: (one.term, one.commit.rank)).commit if before else None

    def document(self) -> bytes:
        """The whole state, in one form: what two members compare who hold the same heads."""
        self._settle()
        secret = {"epoch": self._epoch["now"].id} if "now" in self._epoch else {}
        return dag_cbor.encode(
            secret
            | {
                "workspace": self.history.workspace,
                "heads": self.history.heads(),
                "void": [[cid, code] for cid, code in sorted(self._void.items())],
                "grants": sorted(self._live),
                "voters": [[bytes(peer), weight] for peer, weight in sorted(self._voters_now().items())],
                "values": [[key, node.id] for key, node in sorted(self._values.items())],
                "outcomes": [
                    [cid, close.id, outcome.chosen, outcome.why, list(outcome.tally)]
                    for cid, (close, outcome) in sorted(self._closed.items())
                ],
                "won": [[task, term, cid] for (task, term), cid in sorted(self._won.items())],
                "done": [[task, step, cid] for (task, step), cid in sorted(self._done.items())],
            }
        )

    def state(self) -> Cid:
        """The CID of the state."""
        return Cid.of(self.document(), DAG_CBOR)
