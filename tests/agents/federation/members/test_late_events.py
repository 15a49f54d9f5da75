"""Events come in parts, and whoever passes them on may keep some back: nobody is stopped by that, and nobody blamed."""

from pathlib import Path

import pytest

from agents.federation.events.book import Book
from agents.federation.events.secure_stages import Stages
from agents.federation.events.soundness import usable, why_not
from agents.federation.members.actions import Action, Compute, Fetch, Reveal
from agents.federation.members.member import Member
from agents.federation.results.verify import recompute
from protocols.entry import Entry, make_entry
from protocols.rounds import (
    Close,
    Event,
    Gather,
    Join,
    Open,
    Promise,
    Receipt,
    Result,
    Score,
    Submit,
    Unmask,
    Vote,
    content_of,
    scope_of,
)
from storage.cid import Cid
from storage.errors import NotFound
from tests.agents.federation.events.test_book import forged
from tests.agents.federation.members.test_hostile_rounds import book_of
from tests.agents.federation.members.test_member import LONG_S, begin, is_done
from tests.agents.federation.results.test_missing_events import NoFiles
from tests.agents.federation.secure.test_secure_rounds import secure
from tests.agents.federation.table import PEERS, N, Table
from tests.agents.federation.village import Village, Villager, cid_of, identity


class AnyFile(NoFiles):
    """All are here."""

    def path(self, cid: Cid, max_bytes: int = 0) -> Path:
        return Path(__file__)


def worked(member: Member, actions: list[Action]) -> list[Action]:
    """What is left to be done once all is brought here."""
    left = []
    while actions:
        action = actions.pop()
        if isinstance(action, Fetch):
            actions += member.fetched(action.submission, LONG_S)
        else:
            left.append(action)
    return left


def test_a_round_is_computed_once_all_is_known_that_its_close_lists(tmp_path: Path) -> None:
    """As when an answer with all that one missed ends before what somebody submitted."""
    village = begin(1, n_rounds=1)
    village.run(LONG_S, lambda: is_done(village))
    told = [one for one in village.villagers[0].book.entries() if one.kind not in (Result.kind, Score.kind)]
    last = village.villagers[3].identity.peer_id
    first_part = [one for one in told if one.author != last or one.kind not in (Submit.kind, Vote.kind)]
    member = Member(village.villagers[1].identity, Book(village.plan))
    actions, _ = member.receive(first_part, LONG_S)
    final = member.book.final(1)
    assert final is not None and isinstance(final.event, Close) and worked(member, actions) == []
    with pytest.raises(NotFound, match="the submission"):
        recompute(member.book, 1, final.event, AnyFile(), tmp_path)
    actions, _ = member.receive(told, LONG_S)
    assert [type(action) for action in worked(member, actions)] == [Compute]


def test_under_masks_nobody_answers_for_a_close_before_it_knows_all_that_it_lists() -> None:
    """Whose submission it does not know would pass for dropped out, and its mask be told; and there is one answer."""
    village = secure(1, n_rounds=1)
    author, victim = village.villagers[3], village.villagers[1]
    take, is_kept_back = village._take, [True]

    def without(sender: Villager, other: Villager, entries: list[Entry]) -> None:
        if other is victim and is_kept_back[0]:
            entries = [one for one in entries if (one.kind, one.author) != (Submit.kind, author.identity.peer_id)]
        take(sender, other, entries)

    village._take = without  # type: ignore[method-assign]
    village.run(LONG_S, lambda: victim.book.final(1) is not None)
    village.run(village.now_s + 20.0)
    assert not victim.book.said_by(victim.identity.peer_id, Unmask)
    is_kept_back[0] = False
    village.run(LONG_S, lambda: is_done(village))
    assert is_done(village) and not blamed(village)


def test_under_masks_nobody_is_asked_to_answer_before_the_list_of_sharers_is_known() -> None:
    village = secure(1, n_rounds=1)
    village.run(LONG_S, lambda: is_done(village))
    told = [one for one in village.villagers[0].book.entries() if one.kind not in (Result.kind, Unmask.kind)]
    member = Member(village.villagers[1].identity, Book(village.plan))
    actions, _ = member.receive([one for one in told if one.kind != Gather.kind], LONG_S)
    assert member.book.final(1) is not None and worked(member, actions) == []
    actions, _ = member.receive(told, LONG_S)
    assert [type(action) for action in worked(member, actions)] == [Reveal]


@pytest.mark.parametrize("n_received", [0, 3])
def test_nobody_countersigns_a_close_before_it_knows_what_its_coordinator_gave_receipts_for(n_received: int) -> None:
    """Who is bound to what turns out to be unsound counts for no deputy: a round with too many of them never ends."""
    table = Table()
    table.say(0, Open(round=1, term=0))
    submits = [
        forged(identity(who), 1, Submit(round=1, base=cid_of("b"), update=cid_of(who), n_samples=1), table.plan)
        for who in range(2, 2 + n_received)
    ]
    for one in submits:
        table.say(0, Receipt(round=1, submission=one.cid))
    member = Member(identity(1), table.book)
    member.tick(0.0)
    table.say(0, Close(round=1, term=0, submissions=(), joined=PEERS, void="nobody sent anything"))
    for told in ([], submits):
        member.receive(told, table.book.plan.deadline_s + 1.0)
        assert len(table.book.said_by(PEERS[1], Vote)) == (not n_received)


@pytest.mark.parametrize("kept", ["submission", "receipt", ""])
def test_what_a_coordinator_left_out_is_held_against_no_deputy_who_closes_the_same_again(kept: str) -> None:
    """Who keeps an update back, and its coordinator, could else make a deputy's close unsound by telling of it later,
    and whoever went along would be bound to nothing. Where it is known, the deputy waits for others to promise."""
    table = Table()
    submits = [Submit(round=1, base=table.book.plan.initial, update=cid_of(who), n_samples=1) for who in range(N)]
    links = [table.say(who, submits[who]).cid for who in range(N - 1)]
    late = forged(identity(N - 1), 1, submits[-1], table.plan)
    table.say(0, Open(round=1, term=0))
    table.say(2, Receipt(round=1, submission=links[1]))
    deputy, lease_s = Member(identity(1), table.book), table.book.plan.lease_s
    deputy.fetched_all(links, 0.0)
    receipt = forged(identity(0), 4, Receipt(round=1, submission=late.cid), table.plan)
    table.book.add_all({"submission": [receipt], "receipt": [late], "": [late, receipt]}[kept])
    close = Close(round=1, term=0, submissions=tuple(sorted(links)), joined=PEERS)
    first = table.say(0, close, sequence=5)
    vote = table.say(0, Vote(round=1, term=0, close=first.cid), sequence=6)
    for now_s in (0.0, lease_s):
        deputy.tick(now_s)
    table.say(0, Promise(round=1, term=1, vote=vote.cid), sequence=7)
    table.say(2, Promise(round=1, term=1))
    deputy.tick(lease_s)
    assert len(table.book.promises(1, 1)) == 3 and (1 in table.book.closes(1)) == bool(kept)
    if not kept:
        table.say(3, Promise(round=1, term=1))
        deputy.fetched(late.cid, 2 * lease_s)
    own = table.book.closes(1)[1]
    assert isinstance(own.event, Close) and len(own.event.submissions) == (N - 1 if kept else N)
    table.book.add_all([late, receipt])
    assert why_not(table.book, own) == ""
    said = table.book.get(first.cid)
    assert said is not None and "gave a receipt for" in why_not(table.book, said, is_final=True)


@pytest.mark.parametrize("void", ["", "too few came"])
def test_what_is_told_later_of_a_coordinator_whose_history_forks_unbinds_nobody(void: str) -> None:
    """An accomplice keeps back the receipts of one of its histories, tells its close, and promises by that: what
    deputies close again, and others countersign, would turn out to be unsound once the receipts are told."""
    table = Table()
    submits = [Submit(round=1, base=table.book.plan.initial, update=cid_of(who), n_samples=1) for who in range(N)]
    links = [table.say(who, submits[who]).cid for who in range(N)]
    opened, scope = table.say(0, Open(round=1, term=0)), scope_of(table.book.experiment)

    def coordinator(event: Event, before: Entry) -> Entry:
        return make_entry(identity(0), event.kind, scope, before.sequence + 1, [before.cid], content_of(event))

    kept = [coordinator(Receipt(round=1, submission=links[1]), opened)]
    for link in links[2:]:
        kept.append(coordinator(Receipt(round=1, submission=link), kept[-1]))
    listed = () if void else tuple(sorted(links[:-1]))
    close = coordinator(Close(round=1, term=0, submissions=listed, joined=PEERS, void=void), kept[-1])
    vote = coordinator(Vote(round=1, term=0, close=close.cid), close)
    other = [coordinator(Join(), opened)]
    while len(other) < N:
        other.append(coordinator(Join(), other[-1]))
    table.book.add_all([*other, close, vote])
    table.say(1, Receipt(round=1, submission=links[0]))
    promises = [table.say(0, Promise(round=1, term=1, vote=vote.cid), vote.sequence + 1)]
    promises += [table.say(who, Promise(round=1, term=1)) for who in (2, 3)]
    shown = tuple(sorted(one.cid for one in promises))
    again = Close(round=1, term=1, submissions=listed, joined=PEERS, void=void, promises=shown)
    bound = table.say(3, Vote(round=1, term=1, close=table.say(1, again).cid))
    table.say(3, Promise(round=1, term=2, vote=bound.cid))
    for told in (*(kept[:n] for n in range(N)), *(kept[n:] for n in range(N))):
        for entries in ([*table.book.entries(), *told], [*told, *table.book.entries()[::-1]]):
            book = Book(table.plan)
            book.add_all(entries)
            assert PEERS[0] in book.forks() and why_not(book, book.closes(1)[1]) == ""
            assert PEERS[0] in usable(book, book.promises(1, 1)) and PEERS[3] in usable(book, book.promises(1, 2))


def test_a_join_that_is_told_later_frees_nobody_of_what_it_countersigned_without_it() -> None:
    """Who is on the list of a round, and of whom no join was known, could else be left out by honest members alone."""
    table = Table()
    submits = [Submit(round=1, base=table.book.plan.initial, update=cid_of(who), n_samples=1) for who in range(N)]
    links = tuple(sorted(table.say(who, submits[who]).cid for who in range(N)))
    first = Close(round=1, term=0, submissions=links, joined=PEERS[:-1])
    close = table.say(0, first)
    vote = table.say(2, Vote(round=1, term=0, close=close.cid))
    promises = [table.say(who, Promise(round=1, term=1, vote=vote.cid if who == 2 else None)).cid for who in (1, 2, 3)]
    again = Close(round=1, term=1, submissions=links, joined=PEERS[:-1], promises=tuple(sorted(promises)))
    own = table.say(1, again)
    entries = table.book.entries()
    for book in (
        table.book,
        book_of([table.plan, *(one for one in entries if (one.author, one.kind) != (PEERS[-1], Join.kind))]),
    ):
        said, before = book.get(own.cid), book.get(close.cid)
        assert said is not None and before is not None and why_not(book, said) == ""
        assert PEERS[2] in usable(book, book.promises(1, 1))
        assert ("leaves somebody out" in why_not(book, before)) == (book is table.book)


def blamed(village: Village) -> tuple[object, ...]:
    """Who told shares that are none, by what the first knows."""
    book = village.villagers[0].book
    final = book.final(1)
    assert final is not None and isinstance(final.event, Close)
    unmasking = Stages(book, 1).unmasking(final)
    assert unmasking is not None and len(unmasking.answers) >= book.threshold(1)
    return unmasking.liars
