"""A member whose history forks tells each of the others another thing: they come by what they go by all the same."""

import hashlib
import itertools
from collections.abc import Callable, Iterable

import pytest

import tests.agents.federation.members.test_member as members
from agents.federation.events.book import Book
from agents.federation.members.actions import Fetch
from agents.federation.members.duty import MAX_VERSIONS
from agents.federation.members.member import Member
from agents.federation.node.heard import MAX_BELOW, forks_in, known_of, lacking, links_of
from agents.federation.secure import group
from protocols import cose
from protocols import rounds_sync as sync
from protocols.entry import Entry, external_aad, make_entry, open_entry
from protocols.rounds import (
    Close,
    Event,
    Join,
    Leave,
    Mix,
    Open,
    Promise,
    Receipt,
    Result,
    Submit,
    Unfit,
    Vote,
    content_of,
    scope_of,
)
from storage.codecs import dag_cbor
from storage.keys import PeerId
from tests.agents.federation.members.test_hostile_rounds import Hostile
from tests.agents.federation.table import PEERS, N, Table
from tests.agents.federation.village import SYNC_S, Village, Villager, cid_of, identity


class All:
    """Everything is durable."""

    def __contains__(self, cid: object) -> bool:
        return True


def told(teller: Book, asker: Book) -> list[Entry]:
    """One answer."""
    return list(lacking(teller, known_of(asker), All()))[: sync.MAX_ANSWERS]


def hear(asker: Book, teller: Book, proved: set[PeerId]) -> None:
    """Ask, and take in the answer. `proved` holds whose forks that one told of before."""
    entries = list(lacking(teller, known_of(asker, (), proved), All()))[: sync.MAX_ANSWERS]
    for entry in entries:
        asker.add(entry)
    proved |= forks_in(asker, entries)


class Asking(Village):
    """Members hear of nothing but what they ask each other for, as they do on a network."""

    def _sync(self, villager: Villager) -> Callable[[], None]:
        proved: dict[int, set[PeerId]] = {}

        def ask() -> None:
            self.after(SYNC_S, ask)
            for other in self.villagers if villager.is_up else ():
                if other is not villager and other.is_up:
                    known = known_of(villager.book, (), proved.setdefault(other.name, set()))
                    entries = list(lacking(other.book, known, All()))[: sync.MAX_ANSWERS]
                    self._take(other, villager, entries)
                    proved[other.name] |= forks_in(villager.book, entries)
            if villager.is_up:
                self.do(villager, villager.member.tick(self.now_s))

        return ask

    def _tell(self, sender: Villager, entry: Entry) -> None:
        pass


def say_to(hostile: Hostile, sequence: int, event: Event, whom: Iterable[int]) -> None:
    """Some alone hear this."""
    scope = scope_of(hostile.one.book.experiment)
    entry = make_entry(hostile.one.identity, event.kind, scope, sequence, [], content_of(event))
    for villager in (hostile.village.villagers[who] for who in whom):
        hostile.village._take(hostile.one, villager, [entry])


def test_who_submits_to_each_another_update_in_a_forked_history_keeps_no_round_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "Village", Asking)
    village = members.begin(3, n_rounds=1)
    village.run(4.0)
    hostile = Hostile(village, N - 1)
    height = hostile.one.book.height(PEERS[-1])
    for who, event in enumerate((Join(), Leave())):
        say_to(hostile, height, event, [who])
    village.run(8.0)
    assert all(PEERS[-1] in one.book.forks() for one in village.villagers[:-1])
    for who, one in enumerate(village.villagers[:-1]):
        one.updates |= {cid_of("hostile", number) for number in range(N)}
        base, update = one.book.plan.initial, cid_of("hostile", who)
        say_to(hostile, height + 1, Submit(round=1, base=base, update=update, n_samples=1), [who])
    village.run(300.0, lambda: members.is_done(village))
    assert members.is_done(village)
    members.results(village)


def test_what_hangs_below_a_forked_event_keeps_nobody_from_hearing_of_it() -> None:
    table, late = Table(), Book(Table().plan)
    promises = [table.say(4, Promise(round=1, term=term), 1000 + term).cid for term in range(1, 2 * MAX_BELOW + 50)]
    closes = [
        table.say(4, Close(round=1, term=4, submissions=(), joined=PEERS, promises=tuple(promises), void=why), 900)
        for why in ("one", "other")
    ]
    vote = table.say(2, Vote(round=1, term=4, close=closes[0].cid))
    for _ in range(20):
        for entry in told(table.book, late):
            late.add(entry)
    assert vote.cid in late and closes[0].cid in late


def test_who_knows_of_no_fork_tells_what_it_names_to_who_does() -> None:
    table, other = Table(), Table()
    one = table.say(4, Submit(round=1, base=cid_of("b"), update=cid_of("one"), n_samples=1))
    receipt = table.say(0, Receipt(round=1, submission=one.cid))
    for update in ("two", "three"):
        other.say(4, Submit(round=1, base=cid_of("b"), update=cid_of(update), n_samples=1), 1)
    other.say(4, Leave(), 2)
    assert not table.book.forks() and PEERS[4] in other.book.forks()
    found = [entry.cid for entry in told(table.book, other.book)]
    assert found.index(one.cid) < found.index(receipt.cid)


@pytest.mark.parametrize("void", ["", "0 updates came in time"])
def test_a_vote_that_was_told_to_one_alone_ends_the_round_for_whoever_hears_that_it_is_over(void: str) -> None:
    table, other = Table(), Table()
    submits = [
        table.say(who, Submit(round=1, base=cid_of("b"), update=cid_of(who), n_samples=1)).cid for who in range(N)
    ]
    listed = () if void else tuple(sorted(submits))
    close = table.say(0, Close(round=1, term=0, submissions=listed, joined=PEERS, void=void))
    for who in (1, 2):
        table.say(who, Vote(round=1, term=0, close=close.cid))
    for entry in table.book.entries():
        other.book.add(entry)
    fork = [table.say(4, event, 7) for event in (Join(), Leave())]
    for entry in fork:
        other.book.add(entry)
    table.say(4, Vote(round=1, term=0, close=close.cid), 8)
    assert table.book.final(1) is not None and other.book.final(1) is None
    table.say(1, Open(round=2, term=1) if void else Result(round=1, close=close.cid, result=cid_of("result")))
    for entry in told(table.book, other.book):
        other.book.add(entry)
    assert other.book.final(1) == table.book.final(1)


def test_of_a_member_that_votes_without_end_one_vote_hangs_below_what_is_told() -> None:
    table, late = Table(), Book(Table().plan)
    close = table.say(0, Close(round=1, term=0, submissions=(), joined=PEERS, void="nothing came"))
    for sequence in range(100, 100 + 2 * MAX_BELOW):
        table.say(4, Vote(round=1, term=0, close=close.cid), sequence)
    for event in (Join(), Leave()):
        table.say(4, event, 7)
    result = table.say(1, Result(round=1, close=close.cid, result=cid_of("result")))
    found = [entry for entry in told(table.book, late) if entry.kind == Vote.kind]
    assert len(found) == 1 and result in told(table.book, late)


@pytest.mark.parametrize("first", [0, 1], ids=["one asks first", "the other does"])
@pytest.mark.parametrize("row", ["alike", "longer", "ends alike"])
def test_of_two_closes_that_a_liar_made_final_before_anybody_knew_of_a_fork_all_come_to_one(
    first: int, row: str
) -> None:
    """Each side hears the other's votes in the answer that shows the fork, or before, and not what they are for."""
    table = Table()
    submits = [
        table.say(who, Submit(round=1, base=cid_of("b"), update=cid_of(who), n_samples=1)).cid for who in range(N)
    ]
    books, scope, closes = (Book(table.plan), Book(table.plan)), scope_of(table.book.experiment), []
    for entry in table.book.entries():
        for book in books:
            book.add(entry)
    height = table.book.height(PEERS[0])

    def liar(sequence: int, event: Event, *prev: Entry) -> Entry:
        return make_entry(identity(0), event.kind, scope, sequence, [one.cid for one in prev], content_of(event))

    ending: Entry | None = None
    for book, joined, others in ((books[0], PEERS, (1, 2)), (books[1], PEERS[1:], (3, 4))):
        before = liar(height, Receipt(round=1, submission=submits[len(closes)]))
        close = liar(height + 1, Close(round=1, term=0, submissions=tuple(sorted(submits)), joined=joined), before)
        vote = liar(height + 2, Vote(round=1, term=0, close=close.cid), close)
        said = [before, close, vote]
        if row == "ends alike" or (row == "longer" and not closes):
            ending = ending or liar(height + 3, Join(), vote)
            said.append(ending)
        said += [table.say(who, Vote(round=1, term=0, close=close.cid)) for who in others]
        said += [table.say(who, Result(round=1, close=close.cid, result=cid_of("of", close.cid))) for who in others]
        closes.append(close.cid)
        for entry in said:
            book.add(entry)
    proved: tuple[set[PeerId], set[PeerId]] = (set(), set())
    for at in (first, 1 - first) * 4:
        hear(books[at], books[1 - at], proved[at])
    finals = [book.final(1) for book in books]
    assert all(link in book for link in closes for book in books)
    assert finals[0] == finals[1] and all(PEERS[0] in book.broken() for book in books)


def test_a_fork_that_was_told_is_told_once() -> None:
    table, other = Table(), Book(Table().plan)
    close = table.say(0, Close(round=1, term=0, submissions=(), joined=PEERS, void="one"))
    table.say(2, Vote(round=1, term=0, close=close.cid))
    for event in (Join(), Leave()):
        table.say(0, event, 5)
    proved: set[PeerId] = set()
    hear(other, table.book, proved)
    hear(other, table.book, proved)
    assert PEERS[0] in proved and not list(lacking(table.book, known_of(other, (), proved), All()))


def test_what_a_mean_refused_hangs_below_it_as_what_it_took_does() -> None:
    took, refused, tensors = cid_of("took"), cid_of("refused"), cid_of("mean")
    mix = Mix(round=1, states=(took,), tensors=tensors, weight=1.0, unfit=(Unfit(refused, "it holds NaN"),))
    assert set(links_of(mix)) == {took, refused, tensors}


def test_who_submits_ever_other_updates_in_a_forked_history_fills_no_disk() -> None:
    """Each one comes before those that were heard, so it is the one that counts."""
    table = Table()
    member = Member(identity(2), table.book)
    table.say(0, Open(round=1, term=0))
    scope, base = scope_of(table.book.experiment), table.book.plan.initial
    submits = [content_of(Submit(round=1, base=base, update=cid_of(number), n_samples=1)) for number in range(30)]
    entries = [make_entry(identity(4), Submit.kind, scope, 1, [], content) for content in submits]
    fetched = []
    for entry in sorted(entries, key=lambda entry: entry.cid, reverse=True):
        for action in member.receive([entry], 0.0)[0]:
            if isinstance(action, Fetch):
                member.failed(action)
                fetched += [again.submission for again in member.tick(0.0) if isinstance(again, Fetch)]
    assert len(fetched) == MAX_VERSIONS, "what failed is asked for again"
    last = min(entry.cid for entry in entries)
    assert last not in fetched and table.book.submissions(1)[PEERS[4]].cid == last
    joined = PEERS[:4]
    listed = [table.say(n, Submit(round=1, base=base, update=cid_of("u", n), n_samples=1)).cid for n in (0, 1, 3)]
    member.fetched_all(listed, 0.0)
    table.say(0, Close(round=1, term=0, submissions=tuple(sorted([last, *listed])), joined=joined))
    asked = [action.submission for action in member.tick(61.0) if isinstance(action, Fetch)]
    assert last in asked, "a close lists it"


def signed_again(number: int, entry: Entry) -> Entry:
    """The same text with another good signature, which only its author can make: Ed25519 by another nonce."""
    who, block = identity(number), dag_cbor.decode(entry.block)
    secret = int.from_bytes(hashlib.sha512(who.seed).digest()[:32], "little") & ((1 << 254) - 8) | (1 << 254)
    text = cose.signed_bytes(who.peer_id, entry.body_block, external_aad(entry.kind, entry.scope))
    point = group.public(group.secret_of(7))
    factor = int.from_bytes(hashlib.sha512(point + who.peer_id.public_key + text).digest(), "little")
    signature = point + group.secret_of(7 + factor * secret)
    return open_entry(dag_cbor.encode(block | {"sig": block["sig"][:-64] + signature}), entry.body_block)


def test_an_event_that_is_signed_twice_forks_its_authors_history_in_any_order() -> None:
    """Whoever heard one and what names the other, accused a liar by what proved nothing to others."""
    table = Table()
    one = table.say(4, Submit(round=1, base=cid_of("b"), update=cid_of("u"), n_samples=1))
    again, scope = signed_again(4, one), scope_of(table.book.experiment)
    after = make_entry(identity(4), Leave.kind, scope, one.sequence + 1, [one.cid], content_of(Leave()))
    assert again.body_cid == one.body_cid and again.cid != one.cid
    for order in itertools.permutations((one, again, after)):
        book = Book(table.plan)
        book.add_all([*(entry for entry in table.book.entries() if entry != one), *order])
        assert set(book.broken()) == {PEERS[4]}


def test_a_close_that_is_signed_twice_comes_to_all_in_both_forms() -> None:
    """Each half of the members would else countersign another, and promise what no deputy could ever go by."""
    books = []
    for is_again in (False, True):
        table = Table()
        close = table.say(0, Close(round=1, term=0, submissions=(), joined=PEERS, void="nothing came"))
        books.append(Book(table.plan))
        books[-1].add_all(entry for entry in table.book.entries() if entry != close)
        close = signed_again(0, close) if is_again else close
        books[-1].add(close)
        who = 3 if is_again else 1
        books[-1].add(table.say(who, Vote(round=1, term=0, close=close.cid)))
    proved: tuple[set[PeerId], set[PeerId]] = (set(), set())
    for at in (0, 1) * 3:
        hear(books[at], books[1 - at], proved[at])
    for book in books:
        assert len(book.all_of(Close)) == 2 and all(event.close in book for _, event in book.all_of(Vote))
        assert PEERS[0] in book.broken()
