"""Who holds the same entries reads the same state, whatever came when."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.workspace.pen import write
from protocols.workspaces.entries import (
    Accept,
    Claim,
    Close,
    Commit,
    Drop,
    Endorse,
    Grant,
    Leave,
    Propose,
    Put,
    Revoke,
    Say,
    Vote,
)

NAMES = ("ann", "bob", "cleo", "dan")
KEYS = ("a", "b/1", "b/2")


def statement(member, kind, number, grants):
    """Something that the member may say, or may not, about what it knows."""
    space, others = member.space, list(member.space.history)
    key = KEYS[number % len(KEYS)]
    some = others[number % len(others)].entry.cid
    known = {node.id for node in others}
    given = [node for node in grants if node.id in known]
    match kind:
        case "say":
            return Say(key=key, text=str(number))
        case "put":
            return Put(key=key, value=number)
        case "drop":
            return Drop(key=key)
        case "propose":
            return Propose(key=key, text="?", options=("x", "y"), rule="majority", closers=(member.peer,))
        case "vote":
            proposals = space.proposals()
            return Vote(proposal=proposals[number % len(proposals)].entry.cid if proposals else some, ranking=(0,))
        case "close":
            proposals = space.proposals()
            return Close(proposal=proposals[number % len(proposals)].entry.cid if proposals else some)
        case "claim":
            return Claim(task=key, term=number % 3)
        case "endorse":
            claims = space.claims()
            return Endorse(claim=claims[number % len(claims)].entry.cid if claims else some)
        case "commit":
            claims = [claim for claim in space.claims() if claim.author == member.peer]
            return Commit(claim=claims[number % len(claims)].entry.cid if claims else some, step=0, output=number)
        case "accept":
            commits = space.commits()
            return Accept(commit=commits[number % len(commits)].entry.cid if commits else some)
        case "grant":
            proof = next((node.entry.cid for node in given if node.says.audience == member.peer), None)
            audience = others[number % len(others)].author
            can, until = ("admin", "write") if number % 3 else ("write",), 100 * (number % 4 // 2)
            return Grant(
                audience=audience, can=can, keys=("b/*",), weight=number % 2, proof=proof, until_unix_s=until
            )  # fmt: skip
        case "revoke":
            if not given:
                return Say(key=key, text="nothing to revoke")
            last = [node.entry.cid for name in range(2) if (node := space.history.last(others[name].author))]
            return Revoke(grants=(given[number % len(given)].entry.cid,), last=tuple(sorted(set(last)))[:1])
        case _:
            return Leave(grants=((given[number % len(given)].entry.cid if given else some),))


FREQUENT = ("put", "claim", "endorse", "hear", "hear")
KINDS = (
    *("say", "put", "drop", "propose", "vote", "close", "claim", "endorse", "commit", "accept"),
    *("grant", "revoke", "leave", "hear", "fork", "renew", *FREQUENT),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(KINDS), st.integers(0, 30), st.sampled_from(NAMES)), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 1 << 30), is_private=st.booleans())
def test_the_same_heads_give_the_same_state_byte_for_byte(village, replay, steps, seed, is_private):
    made = village(*NAMES[1:3], is_private=is_private)
    made.invite("dan", by="ann", can=("admin", "run", "write"))
    made.meet()
    grants = list(made.grants.values())
    for name, kind, number, other in steps:
        member = made.members[name]
        if kind == "hear":
            member.hear(made.members[other])
            continue
        if kind == "renew":
            member.renew()
            continue
        if not member.space.has_key():
            continue
        if kind == "fork":
            entry = write(member.identity, member.space, Say(key="a", text="fork"))
            member.say(Say(key="a", text=f"other {number}"))
            member.space.add(entry)
            continue
        node = member.say(statement(member, kind, number, grants))
        if kind == "grant":
            grants.append(node)
    for _ in range(3):
        made.meet()
    entries = list(made.ann.space.history._nodes.values())
    states = {member.space.document() for member in made.members.values()}
    states.add(replay(made.root, [node.entry for node in entries], seed).document())
    assert len(states) == 1


def test_ten_thousand_entries_fold_in_little_time(village, replay):
    made = village("bob")
    for number in range(300):
        made.ann.say(Put(key=f"k/{number % 50}", value=number))
        made.bob.say(Say(key="talk", text=str(number)))
        if number % 3 == 0:
            made.meet()
    made.meet()
    assert made.ann.space.state() == made.bob.space.state()
    entries = [node.entry for node in made.ann.space.history]
    assert replay(made.root, entries, 1).state() == made.ann.space.state()
