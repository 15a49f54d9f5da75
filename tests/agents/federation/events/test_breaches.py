import random
from cProfile import Profile

from hypothesis import given
from hypothesis import strategies as st

from agents.federation.events.book import Book
from agents.federation.events.breaches import breach
from agents.federation.events.histories import Histories
from agents.federation.events.said import Said, read_said
from protocols.entry import Entry
from protocols.rounds import Close, Event, Gather, Join, Mix, Open, Promise, Receipt, Start, State, Submit, Vote
from storage.cid import Cid
from storage.keys import PeerId
from tests.agents.federation.events.test_book import forged
from tests.agents.federation.village import cid_of, identity, make_plan

N = 3
_, PLAN = make_plan(N)
PEERS = tuple(identity(number).peer_id for number in range(N))
LINKS = tuple(sorted(cid_of("submission", number) for number in range(3)))
VOTES = tuple(
    forged(identity(who), 1, Vote(round=1, term=term, close=cid_of("close")), PLAN).cid
    for who in range(N)
    for term in range(2)
)


def events() -> st.SearchStrategy[Event]:
    """What may contradict something else that is drawn here, and what may not."""
    terms, links = st.integers(0, 2), st.sampled_from(LINKS)
    lists = st.lists(links, unique=True).map(lambda found: tuple(sorted(found)))
    return st.one_of(
        st.builds(Start, joined=st.sampled_from([PEERS, PEERS[:1]])),
        st.builds(Open, round=st.just(1), term=terms),
        st.builds(Gather, round=st.just(1), term=terms, stage=st.sampled_from(["keys", "shares"]), said=lists),
        st.builds(Vote, round=st.just(1), term=terms, close=st.just(cid_of("close"))),
        st.builds(Promise, round=st.just(1), term=terms, vote=st.sampled_from([None, *VOTES])),
        st.builds(Receipt, round=st.just(1), submission=links),
        st.builds(Close, round=st.just(1), term=terms, submissions=lists, joined=st.just(PEERS)),
        st.builds(State, round=st.just(1), before=st.none(), tensors=links, weight=st.just(1.0), to=st.just(()),
                  n_samples=st.just(1)),
        st.builds(Mix, round=st.just(1), states=lists, tensors=links, weight=st.just(1.0)),
    )  # fmt: skip


told = st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, 6), events()), max_size=12)


@given(told, st.randoms(use_true_random=False), st.booleans())
def test_whoever_broke_the_rules_is_suspected_in_every_order(
    told: list[tuple[int, int, Event]], chance: random.Random, is_asked_between: bool
) -> None:
    """A full look at each member finds nobody whom the quick look at each event let pass."""
    heard = [forged(identity(who), sequence, event, PLAN) for who, sequence, event in told]
    answers = []
    for _ in range(2):
        chance.shuffle(heard)
        book = Book(PLAN)
        for entry in heard:
            book.add(entry)
            if is_asked_between:
                book.broken()
        full = {peer: pair for peer in PEERS if (pair := breach(book, peer)) is not None}
        assert book.broken() == full
        answers.append(full.keys())
    assert answers[0] == answers[1]


def test_a_second_receipt_behind_the_close_hides_no_censorship() -> None:
    """The first counts, in whichever order they are heard."""
    close = Close(round=1, term=0, submissions=LINKS[1:], joined=PEERS)
    heard = [
        forged(identity(0), sequence, event, PLAN)
        for sequence, event in enumerate(
            [Receipt(round=1, submission=LINKS[0]), close, Receipt(round=1, submission=LINKS[0])]
        )
    ]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        book = Book(PLAN)
        for at in order:
            book.add(heard[at])
        assert book.broken().keys() == {PEERS[0]}
        assert book.receipts(1, PEERS[0])[LINKS[0]].entry == heard[0]


def n_calls(n_events: int, chance: random.Random) -> int:
    """How much it is to take in closes of one member, and receipts that none of them leaves out, and to look at all."""
    one = Receipt(round=1, submission=LINKS[0])
    closes = [Close(round=1, term=term, submissions=LINKS[:1], joined=()) for term in range(n_events)]
    behind = [Receipt(round=1, submission=cid_of("behind", number)) for number in range(n_events)]
    said: list[Event] = [one, *closes, *behind]
    heard = [forged(identity(0), sequence, event, PLAN) for sequence, event in enumerate(said)]
    chance.shuffle(heard)
    book, profile = Book(PLAN), Profile()
    profile.enable()
    for entry in heard:
        book.add(entry)
    found = breach(book, PEERS[0])
    profile.disable()
    assert found is None
    return sum(stat.callcount for stat in profile.getstats())


def test_many_closes_and_many_receipts_are_looked_at_once_each_and_not_in_pairs() -> None:
    """A member could else keep all others from everything else, by what it may well say."""
    chance = random.Random(1)
    assert n_calls(800, chance) < 2.5 * n_calls(400, chance)


def test_histories_tell_what_is_known_in_a_row_and_what_lies_beyond_a_gap() -> None:
    said = [_said(sequence) for sequence in range(4)]
    histories = Histories()
    assert [histories.add(said[at]) for at in (0, 3, 2)] == [True, True, True]
    assert histories.height(PEERS[1]) == 1 and histories.at(PEERS[1], 3) == said[3]
    assert histories.at(PEERS[1], 1) is None and histories.height(PEERS[2]) == 0
    listed = histories.of(PEERS[1], Submit)
    assert histories.add(said[1]) and histories.heights() == {PEERS[1]: 4}
    assert [one for one, _ in listed] == said and list(histories.since({PEERS[1]: 2})) == [said[2].entry, said[3].entry]
    assert not histories.add(said[1]) and not histories.forks
    other = histories.copy()
    assert not other.add(_said(1, "other")) and other.forks.keys() == {PEERS[1]} and not histories.forks


def test_a_reader_that_remembers_is_asked_for_each_event() -> None:
    asked: list[Entry] = []

    def read(entry: Entry, experiment: Cid) -> Said:
        asked.append(entry)
        return read_said(entry, experiment)

    book, entry = Book(PLAN, read), _said(0).entry
    assert book.add(entry) == book.get(entry.cid) and book.add(entry) is None and asked == [entry]


def _said(sequence: int, update: str = "u") -> Said:
    submit = Submit(round=1, base=cid_of("b"), update=cid_of(update, sequence), n_samples=1)
    return read_said(forged(identity(1), sequence, submit, PLAN), PLAN.body_cid)


def test_a_promise_that_names_a_vote_which_is_not_known_here_proves_nothing_until_all_before_it_is() -> None:
    """Whoever passes on what an honest member said, but for its last vote, would else have it break the rules."""
    who, round_1 = identity(0), {"round": 1, "close": cid_of("close")}
    first, last = forged(who, 0, Vote(term=0, **round_1), PLAN), forged(who, 2, Vote(term=3, **round_1), PLAN)
    between, other = Submit(round=1, base=cid_of(), update=cid_of(), n_samples=1), Join()
    honest = [first, forged(who, 1, between, PLAN), last, forged(who, 3, Promise(round=1, term=6, vote=last.cid), PLAN)]
    hides = forged(who, 3, Promise(round=1, term=6, vote=cid_of("no vote")), PLAN)
    assert broken_by(honest[0], honest[3]) == [set(), set()]
    assert broken_by(honest[3], first, last, honest[1])[-1] == set()
    assert broken_by(first, last, hides, honest[1])[-2:] == [set(), {who.peer_id}]
    assert broken_by(last, hides, forged(who, 0, other, PLAN), honest[1])[-2:] == [set(), {who.peer_id}]
    old = forged(who, 3, Promise(round=1, term=6, vote=first.cid), PLAN)
    assert broken_by(first, last, old)[-1] == {who.peer_id}


def broken_by(*entries: Entry) -> list[set[PeerId]]:
    """Who broke the rules, after each of these."""
    book, found = Book(PLAN), []
    for entry in entries:
        book.add(entry)
        found.append(set(book.broken()))
    return found
