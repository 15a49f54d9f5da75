"""Members of a workspace in memory: each with a key and a view of its own, who tell each other what they have."""

import hashlib
import random

import pytest

from agents.workspace.duties import rekey_due
from agents.workspace.pen import begin, write
from agents.workspace.space import Space
from protocols.workspaces.entries import Grant, Join, Root
from storage.keys import Identity


class Member:
    """One member's key and view."""

    def __init__(self, name, root):
        self.identity = identity_of(name)
        self.peer = self.identity.peer_id
        self.space = Space(root, self.identity)

    def say(self, statement, recipient=None, link_to=None):
        """Sign the next entry and take it in; its node."""
        entry = write(self.identity, self.space, statement, recipient, link_to)
        placed = self.space.add(entry)
        assert placed is not None
        return placed.node

    def hear(self, *others):
        """Take in all that the others have and this one lacks."""
        for other in others:
            for entry in other.space.history.since(self.space.history.known()):
                self.space.add(entry)

    def renew(self):
        """Do what its node does by itself about keys; was there anything to do?"""
        rekey = rekey_due(self.space, self.peer, entropy_of(self.space))
        return rekey is not None and self.say(rekey)

    def code(self, node):
        return self.space.code(self.space.history.get(node.entry.cid))


class Village:
    """The owner `ann`, and whom she invites."""

    def __init__(self, *names, weight=1, can=("run", "write"), keys=("*",), is_private=False):
        self.root = begin(identity_of("ann"), Root(format=1 + is_private, title="village", created_unix_s=1))
        self.ann = Member("ann", self.root)
        self.members = {"ann": self.ann}
        self.grants = {}
        self.ann.renew()
        for name in names:
            self.invite(name, weight=weight, can=can, keys=keys)
        self.meet()

    def __getattr__(self, name):
        return self.members[name]

    def invite(self, name, by="ann", weight=1, can=("run", "write"), keys=("*",), proof=None, joins=True, until=0):
        member = Member(name, self.root)
        self.members[name] = member
        host = self.members[by]
        grant = host.say(
            Grant(
                audience=member.peer, can=tuple(sorted(can)), keys=tuple(sorted(keys)), weight=weight,
                proof=proof and proof.entry.cid, until_unix_s=until,
            )
        )  # fmt: skip
        self.grants[name] = grant
        host.renew()
        if joins:
            member.hear(host)
            member.say(Join(), link_to=grant.entry.cid)
            host.hear(member)
        return member

    def meet(self, *names):
        """All (or those) tell each other everything."""
        chosen = [self.members[name] for name in names or self.members]
        for _ in range(2):
            for member in chosen:
                member.hear(*(other for other in chosen if other is not member))


def entropy_of(space):
    """Bytes that are the same in every run, and never twice."""
    chance = random.Random(bytes(space.state()))
    return chance.randbytes


def identity_of(name):
    return Identity(hashlib.sha256(name.encode()).digest())


def replayed(root, entries, seed):
    """A space that took the entries in, in another order that their links allow."""
    chance = random.Random(seed)
    space = Space(root)
    left = list(entries)
    while left:
        chance.shuffle(left)
        rest = []
        for entry in left:
            if all(link in space.history for link in entry.prev):
                space.add(entry)
                if chance.random() < 0.1:
                    space.document()  # what was settled has to be undone
            else:
                rest.append(entry)
        left = rest
    return space


@pytest.fixture(scope="session")
def village():
    return Village


@pytest.fixture(scope="session")
def replay():
    return replayed
