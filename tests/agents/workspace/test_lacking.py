"""Whatever two members have of a history, forks and all: the one is told all that it lacks, in an order that fits."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.workspace import branches
from agents.workspace.pen import write
from protocols.entry import make_entry
from protocols.workspaces.entries import Say, content_of
from tests.agents.workspace.test_attacks import twin

NAMES = ("ann", "bob", "cleo")
STEPS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(("say", "say", "fork", "twin", "hear")), st.sampled_from(NAMES)),
    max_size=30,
)


def fork(member, number):
    """It signs an entry that stands beside one of its older ones: another that it will not have said."""
    space = member.space
    own = [node for node in space.history if node.author == member.peer]
    older = own[number % len(own)]
    prev = older.entry.prev
    says = Say(key="talk", text=f"beside {number}")
    entry = make_entry(member.identity, "say", older.entry.scope, older.sequence, prev, content_of(says))
    if older.sequence or member.identity.peer_id == space.history.owner:
        space.add(entry)


def check_told(asker, answerer):
    """What one answer without limits holds."""
    told = answerer.space.history.since(asker.space.history.known())
    here = {node.entry.cid for node in asker.space.history.blocks()} | {asker.space.history.root_entry.cid}
    there = {node.entry.cid for node in answerer.space.history.blocks()}
    assert there - here <= {entry.cid for entry in told}
    for entry in told:
        assert set(entry.prev) <= here, "an entry came before one that it links to"
        here.add(entry.cid)


@pytest.mark.parametrize("max_bits", [branches.MAX_BITS, 2])
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_who_lacks_something_is_told_all_of_it_behind_what_it_links_to(village, max_bits, steps):
    made = village(*NAMES[1:])
    for number, (name, kind, other) in enumerate(steps):
        member = made.members[name]
        match kind:
            case "say":
                member.say(Say(key="talk", text=str(number)))
            case "fork":
                fork(member, number)
            case "twin":
                first = write(member.identity, member.space, Say(key="talk", text=f"twin {number}"))
                member.space.add(first)
                made.members[other].hear(member)
                member.space.add(twin(member.identity, hashlib.sha256(name.encode()).digest(), first))
            case _:
                check_told(member, made.members[other])
                member.hear(made.members[other])
    before = branches.MAX_BITS
    branches.MAX_BITS = max_bits
    try:
        for asker in made.members.values():
            for answerer in made.members.values():
                check_told(asker, answerer)
    finally:
        branches.MAX_BITS = before
