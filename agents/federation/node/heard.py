"""What members of an experiment tell each other when they ask: what one knows, and what another lacks of it."""

from collections import deque
from collections.abc import Container, Iterable, Iterator
from functools import cache, partial
from typing import Final

import msgspec

from agents.federation.events.attendance import NAMED
from agents.federation.events.book import Book, Said
from agents.federation.events.histories import Histories
from agents.federation.events.said import alike
from protocols import rounds_sync as sync
from protocols import telling
from protocols.entry import Entry
from protocols.rounds import MAX_MEMBERS, Close, Result, Unmask, Vote
from protocols.rounds_sync import Known
from protocols.telling import Mark
from storage.cid import Cid
from storage.keys import PeerId

MAX_BELOW: Final = sync.MAX_ANSWERS // 2
MAX_BELOW_BYTES: Final = telling.TELL_BYTES // 2


def known_of(book: Book, full: Container[PeerId] = (), proved: Container[PeerId] | None = None) -> Known:
    """What this book knows, for a question: of no more than that holds, those first whom others rest on.

    full: of whom no more is taken. It is as if all was known: it would be told again and again, and others' words not.
    proved: whose forks the one that is asked has told of. Of any other it is to tell, and of what hangs on it there.
    """
    marks: dict[PeerId, Mark] = {}
    levels = [(level, peer) for peer in book.heights() if (level := book.level(peer)) is not None]
    for _, peer in sorted(levels) if len(levels) > MAX_MEMBERS else levels:
        height = book.height(peer)
        if peer in full and len(marks) < MAX_MEMBERS:
            marks[peer] = Mark(sync.MAX_HEIGHT, bytes(telling.DIGEST_BYTES))
        elif height and len(marks) < MAX_MEMBERS and (last := book.at(peer, height - 1)) is not None:
            marks[peer] = Mark(height, sync.digest_of(last))
    return Known(marks, frozenset(peer for peer in book.forks() if proved is None or peer in proved))


def forks_in(book: Book, entries: Iterable[Entry]) -> set[PeerId]:
    """Whose history forks by these entries alone, as far as the book took them."""
    told = Histories()
    for said in filter(None, (book.get(entry.cid) for entry in entries)):
        told.add(said)
    return set(told.forks)


def is_linked(entry: Entry) -> bool:
    """Does it name the one event before it? Who says what does not could hide where its history forks."""
    return len(entry.prev) == 1 or not entry.sequence


def lacking(book: Book, known: Known, durable: Container[Cid]) -> Iterator[Entry]:
    """What somebody lacks, of what is durable here: events in a row, and the proofs of histories that fork."""
    lacked = _in_a_row(book, known, durable)
    if not (forks := known.forks.union(book.forks(), _in_other_rows(book, known))):
        yield from lacked
        return
    told: set[Cid] = set()
    ended = cache(partial(_ended_by, book, forks))
    for entry in lacked:
        for one in (*_below(book, entry, forks, ended(*_ending_of(book, entry))), entry):
            if one.cid not in told and one.cid in durable:
                told.add(one.cid)
                yield one


def _in_other_rows(book: Book, known: Known) -> Iterator[PeerId]:
    """Whose row ends there with another event than stands here in its place: that it forks shows in this answer."""
    for peer, mark in known.marks.items():
        own = book.at(peer, mark.height - 1)
        if own is not None and sync.digest_of(own) != mark.latest:
            yield peer


def _heard_before(book: Book, forks: Container[PeerId]) -> Iterator[Entry]:
    """What was said of closes by authors of whom the asker knows no fork; of the last rounds first.

    It may have heard that before anybody knew of one, and then without those closes, which are not in its row.
    """
    said: list[tuple[Said, Vote | Result]] = [*book.all_of(Result), *book.all_of(Vote)]
    for one, event in sorted(said, key=lambda pair: -pair[0].number):
        if (close := book.get(event.close)) is not None and close.author in forks:
            yield one.entry


def _ending_of(book: Book, entry: Entry) -> tuple[int, Cid | None]:
    """The round that is over where this is said, and what ended it: that of a result, or the one before."""
    said = book.get(entry.cid)
    if said is not None and isinstance(said.event, Result):
        return said.number, said.event.close
    final = book.final(said.number - 1) if said is not None and said.number > 1 else None
    return (final.number, final.cid) if final is not None else (0, None)


def _ended_by(book: Book, forks: Container[PeerId], number: int, close: Cid | None) -> tuple[Cid, ...]:
    """The votes for a close, and the answers to it, of authors whose history forks: one of each.

    No event names them. Who told them to one member alone had the round over for this one, and for nobody else ever.
    """
    if close is None:
        return ()
    said: list[tuple[Said, Vote | Unmask]] = [*book.said_in(number, Vote), *book.said_in(number, Unmask)]
    named = book.get(close)
    same = alike(book.said_in(number, Close), named.event) if named and isinstance(named.event, Close) else ()
    of_these = (
        (one, event)
        for one, event in said
        if one.author in forks and (event.close == close or (isinstance(event, Unmask) and event.close in same))
    )
    return tuple({(one.author, one.kind): one.cid for one, event in of_these}.values())


def _below(book: Book, entry: Entry, forks: Container[PeerId], unnamed: tuple[Cid, ...]) -> list[Entry]:
    """What an event names of authors whose history forks, and what that names of them: the lowest first.

    In a row of theirs each member may know another event: who hears of one by its CID alone could not go by it. No more
    than fits into an answer with the event itself: whoever lies could else put so much below it that it is never told.
    """
    found: dict[Cid, Entry] = {}
    todo, n_bytes = deque([(entry, unnamed)]), 0
    while todo:
        one_above, links = todo.popleft()
        said = book.get(one_above.cid)
        for one in map(book.get, (*links, *(links_of(said.event) if said is not None else ()))):
            if one is None or one.author not in forks or one.cid in found:
                continue
            n_bytes += len(one.entry.block) + len(one.entry.body_block)
            if len(found) == MAX_BELOW or n_bytes > MAX_BELOW_BYTES:
                return list(found.values())[::-1]
            found[one.cid] = one.entry
            todo.append((one.entry, ()))
    return list(found.values())[::-1]


def links_of(event: msgspec.Struct) -> Iterator[Cid]:
    """Every CID in an event, or in a part of one: of other events, and of files."""
    for name in event.__struct_fields__:
        value = getattr(event, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Cid):
                yield one
            elif isinstance(one, msgspec.Struct):
                yield from links_of(one)


def _in_a_row(book: Book, known: Known, durable: Container[Cid]) -> Iterator[Entry]:
    """Proofs of forks first, but for members that others let in: who is told must know of that before."""
    heights = book.heights()
    levels = {author: level for author in book.forks() if (level := book.level(author)) is not None}
    forks = sorted((level, author) for author, level in levels.items() if author not in known.forks)
    proofs = [(level, said.entry) for level, author in forks for said in book.forks()[author] if said.cid in durable]
    yield from (entry for level, entry in proofs if level == NAMED)
    other = set(_in_other_rows(book, known)) - known.forks
    yield from (own for peer in sorted(other) if (own := book.at(peer, known.marks[peer].height - 1)) is not None)
    if new := other.union(author for level, author in forks if level == NAMED):
        yield from _heard_before(book, new)
    for entry in book.since({peer: mark.height for peer, mark in known.marks.items()}):
        if entry.sequence < heights[entry.author] and entry.cid in durable:
            yield entry
    yield from (entry for level, entry in proofs if level != NAMED)
    if new := {author for level, author in forks if level != NAMED} - other:
        yield from _heard_before(book, new)
