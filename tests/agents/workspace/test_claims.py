"""Claims of members that mean no good: how much others sign for them, and how long they keep others from the work."""

from hypothesis import given
from hypothesis import strategies as st

from agents.workspace.claims import MAX_HONOURED, MAX_IDLE, MAX_SKIP, SUPPORT_BURST, SUPPORT_REFILL_S, Allowance
from agents.workspace.duties import due
from agents.workspace.runs.core import IDLE_LEASES, Outside, Perform, Want, lot, next_acts, runs
from protocols.workspaces.entries import MAX_TERM, Begin, Claim, Commit, Endorse, Put
from storage.cid import RAW, Cid
from storage.keys import PeerId

LEASE_S = 10.0
PLAN = {"format": 1, "title": "t", "lease_s": LEASE_S, "steps": [{"name": "a", "do": "echo", "timeout_s": 30.0}]}
COOKED = PLAN | {"steps": [{"name": "a", "do": "model", "role": "cook"}]}


class Clock:
    """How long a task stands as it does, on a clock that the test moves."""

    def __init__(self):
        self.now_s = 0.0
        self.stands = {}

    def stood_s(self, task, what, stand):
        known, at_s = self.stands.get((task, what), (None, self.now_s))
        self.stands[task, what] = (stand, at_s if known == stand else self.now_s)
        return self.now_s - self.stands[task, what][1]


def acts(member, clock, **outside):
    return list(next_acts(member.space, member.peer, runs(member.space)[0], Outside(stood_s=clock.stood_s, **outside)))


def do_duties(member, may_support=lambda author: True):
    """Sign what its node would by itself; how much that was."""
    count = 0
    while (says := due(member.space, member.peer, 0.0, may_support=may_support)) is not None:
        member.say(says)
        count += 1
    return count


def settle(made):
    made.meet()
    for member in made.members.values():
        do_duties(member)
    made.meet()


def first_by_lot(made, names, term):
    return min(names, key=lambda name: lot("runs/x", 0, term, made.members[name].peer))


def kitchen(village, *names):
    """A run for a cook, and hosts of one each."""
    made = village("bob", "cleo", "dan")
    for name in names:
        value = {"role": "cook", "capabilities": [], "model": {}}
        made.members[name].say(Put(key=f"agents/{name}", value=value, link=Cid.of(b"card", RAW)))
    made.ann.say(Put(key="runs/x", value=COOKED))
    made.meet()
    return made


# --- who does not do what it could


def test_who_is_first_by_lot_and_does_not_ask_is_passed_over_after_a_lease(village):
    made = kitchen(village, "bob", "cleo")
    first = first_by_lot(made, ("bob", "cleo"), 0)
    other = made.members["cleo" if first == "bob" else "bob"]
    clock = Clock()
    assert acts(made.members[first], Clock()) == [Want(Claim(task="runs/x", term=0))]
    assert acts(other, clock) == []
    clock.now_s = LEASE_S - 1
    assert acts(other, clock) == []
    clock.now_s = LEASE_S
    assert acts(other, clock) == [Want(Claim(task="runs/x", term=0))]
    assert acts(made.ann, clock) == [] and acts(made.dan, clock) == []


def test_a_holder_that_is_reached_and_does_nothing_is_replaced(village):
    made = village("bob", "cleo")
    made.ann.say(Put(key="runs/x", value=PLAN))
    made.meet()
    made.bob.say(Claim(task="runs/x", term=0))
    settle(made)
    assert made.ann.space.holder("runs/x").author == made.bob.peer
    clock = Clock()
    assert acts(made.ann, clock) == []
    clock.now_s = IDLE_LEASES * LEASE_S - 1
    assert acts(made.ann, clock) == []
    clock.now_s += 4  # and the turn of each of the three
    acts(made.ann, clock)
    clock.now_s += 4
    assert acts(made.ann, clock) == [Want(Claim(task="runs/x", term=1))]


def test_a_holder_that_is_at_it_has_the_time_of_the_attempt_and_no_more_for_beginning_again(village):
    made = village("bob", "cleo")
    made.ann.say(Put(key="runs/x", value=PLAN))
    made.meet()
    claim = made.bob.say(Claim(task="runs/x", term=0))
    settle(made)
    clock = Clock()
    assert acts(made.ann, clock) == []
    for attempt in range(1, 20):
        made.bob.say(Begin(claim=claim.entry.cid, step=0, attempt=attempt))
        made.meet()
        clock.now_s += 1
        assert acts(made.ann, clock) == []
    clock.now_s += IDLE_LEASES * LEASE_S
    assert acts(made.ann, clock) == []  # the effect may take its 30 s
    clock.now_s += 30 + 8
    acts(made.ann, clock)
    clock.now_s += 4
    assert acts(made.ann, clock) == [Want(Claim(task="runs/x", term=1))]


def test_a_voter_that_never_signs_keeps_nobody_from_the_work(village):
    made = kitchen(village, "bob", "cleo")
    silent = first_by_lot(made, ("bob", "cleo"), 0)  # it is the first by lot, too
    other = made.members["cleo" if silent == "bob" else "bob"]
    clock = Clock()
    for _ in range(2):
        for want in acts(other, clock):
            other.say(want.claim)
        made.meet()
        for name, member in made.members.items():
            if name != silent:
                do_duties(member)
        made.meet()
        clock.now_s += LEASE_S
    held = made.ann.space.holder("runs/x")
    assert held.author == other.peer and isinstance(acts(other, clock)[0], Perform)
    commit = other.say(Commit(claim=held.entry.cid, step=0, output=1))
    made.meet()
    for name in ("ann", "dan"):
        do_duties(made.members[name])
    made.meet()
    assert made.ann.space.done("runs/x", 0).id == commit.id


# --- who does more than it ought to


def test_who_asks_again_and_again_keeps_others_waiting_for_so_long_only(village):
    made = village("bob", "cleo", "dan")
    made.ann.say(Put(key="runs/x", value=PLAN))
    made.meet()
    clock = Clock()
    n_waited = 0
    for term in range(100):
        made.bob.say(Claim(task="runs/x", term=term))
        made.meet()
        if acts(made.ann, clock):
            break
        n_waited += 1
        clock.now_s += LEASE_S - 1
    assert n_waited <= MAX_HONOURED + 2


def test_who_claims_the_last_of_all_terms_first_keeps_nobody_from_the_task(village):
    made = village("bob", "cleo")
    made.ann.say(Put(key="runs/x", value=PLAN))
    made.meet()
    made.bob.say(Claim(task="runs/x", term=MAX_TERM))
    made.meet()
    assert due(made.ann.space, made.ann.peer, 0.0) is None and due(made.cleo.space, made.cleo.peer, 0.0) is None
    want = Want(Claim(task="runs/x", term=0))
    assert acts(made.ann, Clock()) == [want]
    made.ann.say(want.claim)
    settle(made)
    assert made.bob.space.holder("runs/x").author == made.ann.peer


def test_claims_within_reach_of_the_term_that_was_won_last_are_endorsed(village):
    made = village("bob")
    last = -1
    for term in (MAX_SKIP - 1, 2 * MAX_SKIP - 1):
        by, voter = (made.bob, made.ann) if last < 0 else (made.ann, made.bob)
        claim = by.say(Claim(task="job", term=term))
        made.meet()
        assert due(voter.space, voter.peer, 0.0) == Endorse(claim=claim.entry.cid)
        settle(made)
        last = term


def test_who_holds_a_task_is_not_endorsed_for_it_once_more(village):
    made = village("bob", "cleo")
    made.bob.say(Claim(task="job", term=0))
    settle(made)
    for term in range(1, 50):
        made.bob.say(Claim(task="job", term=term))
    made.meet()
    assert do_duties(made.ann) == 0 and made.ann.space.winner("job", 1) is None


def test_who_wins_a_task_time_and_again_and_commits_nothing_is_not_endorsed_any_more(village):
    made = village("bob", "cleo")
    for term in range(0, 3 * MAX_IDLE, 2):
        made.bob.say(Claim(task="job", term=term))
        settle(made)
        claim = made.cleo.say(Claim(task="job", term=term + 1))
        settle(made)
        made.cleo.say(Commit(claim=claim.entry.cid, step=term, output=1))
        settle(made)
    assert made.ann.space.n_idle("job", made.bob.peer) == MAX_IDLE and not made.ann.space.n_idle("job", made.cleo.peer)
    assert made.ann.space.holder("job").author == made.cleo.peer


def test_a_flood_of_claims_makes_a_voter_sign_no_more_than_its_allowance(village):
    made = village("bob", "cleo")
    for number in range(SUPPORT_BURST + 150):
        made.bob.say(Claim(task=f"job/{number}", term=0))
    honest = made.cleo.say(Claim(task="honest", term=0))
    made.meet()
    allowance = Allowance()
    assert do_duties(made.ann, lambda author: allowance.may_support(author, 0.0)) == SUPPORT_BURST + 1
    assert made.ann.space.holder("honest").id == honest.id
    later_s = SUPPORT_REFILL_S * 100 / SUPPORT_BURST
    assert do_duties(made.ann, lambda author: allowance.may_support(author, later_s)) == 100


@given(st.lists(st.floats(min_value=0.0, max_value=120.0), min_size=1, max_size=3000).map(sorted))
def test_no_time_has_more_room_than_a_burst_and_what_refilled(times):
    allowance, author = Allowance(), PeerId(b"\x00\x24\x08\x01\x12\x20" + bytes(32))
    taken = [at_s for at_s in times if allowance.may_support(author, at_s)]
    rate = SUPPORT_BURST / SUPPORT_REFILL_S
    assert len(taken) <= SUPPORT_BURST + rate * (times[-1] - times[0]) + 1
    assert len(taken) == len(times) or len(taken) >= SUPPORT_BURST
