import random
from collections.abc import Callable

import pytest

from agents.federation.events.book import Book
from protocols.entry import Entry, make_entry
from protocols.rounds import Close, Open, Promise, Receipt, Result, Score, Start, Submit, Vote, content_of, scope_of
from storage.keys import Identity
from tests.agents.federation.table import Table
from tests.agents.federation.village import Village, cid_of, identity, make_plan

N_ROUNDS = 2


def forged(who: Identity, sequence: int, event: object, plan: Entry) -> Entry:
    return make_entry(who, event.kind, scope_of(plan.body_cid), sequence, [], content_of(event))  # type: ignore[attr-defined, arg-type]


def history(seed: int) -> tuple[Entry, list[Entry]]:
    """All that was said in an experiment with deaths and losses, and then lies of two of its members."""
    chance = random.Random(seed)
    _, plan = make_plan(5, n_rounds=N_ROUNDS)
    village = Village(seed, plan, 5, loss=0.2)
    for one in village.villagers:
        village.do(one, one.member.join(0.0))
    village.run(3.0)
    village.do(village.villagers[0], village.villagers[0].member.start(village.now_s))
    village.after(chance.uniform(1.0, 40.0), lambda: village.kill(village.villagers[chance.randrange(5)]))
    village.run(300.0)
    known = {entry.cid: entry for one in village.villagers for entry in one.disk}
    heard = list(known.values())
    liar, author = identity(chance.randrange(1, 5)), identity(0)
    votes = [entry for entry in heard if entry.kind == Vote.kind]
    closes = [entry for entry in heard if entry.kind == Close.kind]
    lies: list[object] = [
        Vote(round=1, term=0, close=cid_of("nothing")),
        Vote(round=1, term=3, close=closes[0].cid if closes else cid_of("x")),
        Result(round=1, close=closes[0].cid if closes else cid_of("x"), result=cid_of("false")),
        Submit(round=1, base=cid_of("b"), update=cid_of("second"), n_samples=1),
        Receipt(round=1, submission=cid_of("s")),
        Promise(round=1, term=2),
        Open(round=2, term=1),
        Close(round=1, term=0, submissions=(cid_of("s"),), joined=(liar.peer_id,)),
    ]
    for at, lie in enumerate(chance.sample(lies, 4)):
        heard.append(forged(liar, 40 + at, lie, plan))
    if chance.random() < 0.5:
        heard.append(forged(author, 60, Start(joined=(author.peer_id,)), plan))
    if votes and chance.random() < 0.5:
        heard.append(forged(liar, 1, Vote(round=2, term=0, close=cid_of("fork")), plan))
    return plan, heard


QUESTIONS: list[Callable[[Book], object]] = [
    lambda book: book.heights(),
    lambda book: [book.latest(peer) for peer in book.plan.members],
    lambda book: (book.start(), book.joined_now(), book.broken(), book.accused(), book.current()),
    lambda book: [book.roster(n) for n in (1, 2, 3)],
    lambda book: [(book.seed(n), book.selected(n), book.quorum(n)) for n in (1, 2, 3)],
    lambda book: [(book.final(n), book.result(n)) for n in (1, 2)],
    lambda book: [book.said_in(n, kind) for n in (1, 2) for kind in (Open, Vote, Result, Score)],
    lambda book: (book.n_events, [book.all_of(kind) for kind in (Open, Vote, Start)]),
    lambda book: [(book.opened(n), book.submissions(n), book.closes(n)) for n in (1, 2)],
    lambda book: [(book.votes(n, term), book.promises(n, term)) for n in (1, 2) for term in range(4)],
    lambda book: [(book.receivers(n), [book.receipts(n, peer) for peer in book.plan.members]) for n in (1, 2)],
    lambda book: [{who: book.is_received(one, n) for who, one in book.submissions(n).items()} for n in (1, 2)],
    lambda book: [book.promised(n) for n in (1, 2)],
    lambda book: [book.said_by(peer, Vote) for peer in book.plan.members],
    lambda book: [[said.cid for said, _ in book.all_of(kind)] for kind in (Start, Vote, Close, Submit, Receipt)],
]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_remembered_is_what_a_new_book_reads(seed: int) -> None:
    """After every event, whatever was asked before it."""
    plan, heard = history(seed)
    chance = random.Random(seed)
    chance.shuffle(heard)
    book, known = Book(plan), []
    for at, entry in enumerate(heard):
        book.add(entry)
        known.append(entry)
        if at % 17 == 0 or at > len(heard) - 12:
            fresh = Book(plan)
            for one in known:
                fresh.add(one)
            for ask in QUESTIONS:
                assert ask(book) == ask(fresh)
        else:
            for ask in chance.sample(QUESTIONS, 3):
                ask(book)


def test_promises_that_are_heard_before_who_is_selected_count_when_that_is_known() -> None:
    _, plan = make_plan(3)
    peers = tuple(sorted(identity(number).peer_id for number in range(3)))
    submit = forged(identity(2), 0, Submit(round=1, base=cid_of("b"), update=cid_of("u"), n_samples=1), plan)
    close = forged(identity(0), 1, Close(round=1, term=0, submissions=(submit.cid,), joined=peers), plan)
    heard = [forged(identity(0), 0, Start(joined=peers), plan), submit, close]
    heard += [forged(identity(n), 5, Vote(round=1, term=0, close=close.cid), plan) for n in (0, 1)]
    heard += [forged(identity(1), 7, Open(round=2, term=1), plan)]
    heard += [forged(identity(n), 8, Promise(round=2, term=1), plan) for n in (1, 2)]
    book = Book(plan)
    book.add_all(heard)
    assert book.promised(2) is None
    book.add_all(forged(identity(n), 6, Result(round=1, close=close.cid, result=cid_of("r")), plan) for n in (0, 1))
    assert book.promised(2) == 1


def test_histories_hold_what_they_are_meant_to() -> None:
    plan, heard = history(0)
    book = Book(plan)
    for entry in heard:
        book.add(entry)
    assert book.broken() and book.all_of(Vote) and len(heard) > 40


@pytest.mark.parametrize("kind", ["vote", "result"])
def test_what_was_final_stays_so_when_an_earlier_word_of_the_same_member_is_heard(kind: str) -> None:
    """A member that says two things is found out late; what it undoes of its own, it undoes of nobody else's round."""
    _, plan = make_plan(3, n_rounds=1)
    peers = tuple(identity(number).peer_id for number in range(3))
    submit = forged(identity(2), 0, Submit(round=1, base=cid_of("b"), update=cid_of("u"), n_samples=1), plan)
    close = forged(identity(0), 1, Close(round=1, term=0, submissions=(submit.cid,), joined=peers), plan)
    heard = [forged(identity(0), 0, Start(joined=peers), plan), submit, close]
    heard += [forged(identity(n), 5, Vote(round=1, term=0, close=close.cid), plan) for n in (0, 1)]
    heard += [forged(identity(n), 6, Result(round=1, close=close.cid, result=cid_of("r")), plan) for n in (0, 1)]
    late: list[object] = [Vote(round=1, term=0, close=cid_of("other"))]
    if kind == "result":
        late = [Result(round=1, close=close.cid, result=cid_of("other"))]
    book = Book(plan)
    for entry in heard:
        book.add(entry)
    assert book.final(1) is not None and book.result(1) == cid_of("r") and not book.broken()
    book.add(forged(identity(1), 3, late[0], plan))
    fresh = Book(plan)
    for entry in [forged(identity(1), 3, late[0], plan), *heard]:
        fresh.add(entry)
    assert (book.final(1), book.result(1), book.broken()) == (fresh.final(1), fresh.result(1), fresh.broken())
    assert book.final(1) is not None and book.result(1) == cid_of("r")


def test_a_history_forks_where_an_event_names_another_before_it_than_is_known() -> None:
    """Whoever was told that one would else never hear of the other: the ends of what both know are alike."""
    _, plan = make_plan(2)
    liar, scope = identity(1), scope_of(plan.body_cid)
    votes = [forged(liar, 0, Vote(round=1, term=0, close=cid_of(which)), plan) for which in ("one", "other")]
    last = make_entry(liar, Open.kind, scope, 1, [votes[0].cid], content_of(Open(round=1, term=1)))
    for told in ([votes[1], last], [last, votes[1]]):
        book = Book(plan)
        assert not book.add_all(told)
        assert liar.peer_id in book.broken()
    book = Book(plan)
    assert not book.add_all([last, votes[0]]) and not book.broken()


@pytest.mark.parametrize(("by", "is_received"), [((1,), False), ((1, 2), True)])
def test_a_receipt_for_ones_own_update_says_nothing_of_where_else_it_is(by: tuple[int, ...], is_received: bool) -> None:
    table = Table()
    submission = table.say(1, Submit(round=1, base=cid_of("base"), update=cid_of("update"), n_samples=1))
    for member in by:
        table.say(member, Receipt(round=1, submission=submission.cid))
    said = table.book.get(submission.cid)
    assert said is not None and table.book.is_received(said, 1) == is_received
