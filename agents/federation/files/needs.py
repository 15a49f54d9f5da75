"""Which files whoever verifies an experiment needs: those that its events name, and nothing that can be computed."""

from collections.abc import Iterator
from typing import cast

from agents.federation.events.book import Book
from agents.federation.events.grants import readers
from protocols.rounds import Close, State, Submit
from storage.cid import Cid
from storage.keys import PeerId

Sealed = tuple[Cid, Cid | None, int]
"""A file, what it is sealed in, and whose round it is of."""


def needed(book: Book, me: PeerId | None = None) -> list[Sealed]:
    """Updates that final closes list; under gossip, the states that members were given.

    me: without those of rounds before, or after, this one was let in: they are sealed to others.
    """
    return [files for files in _needed(book) if me is None or me in readers(book, files[2])]


def _needed(book: Book) -> list[Sealed]:
    if book.plan.gossip is not None:
        return [(state.tensors, state.sealed, state.round) for _, state in book.all_of(State)]
    submitted = [said.event for close in _finals(book) for said in map(book.get, close.submissions) if said is not None]
    return [(event.update, event.sealed, event.round) for event in submitted if isinstance(event, Submit)]


def named(book: Book) -> list[tuple[Cid, int]]:
    """Every update, or state, that somebody has told of, with its round."""
    if book.plan.gossip is not None:
        return [(state.tensors, state.round) for _, state in book.all_of(State)]
    return [(submit.update, submit.round) for _, submit in book.all_of(Submit)]


def noises(book: Book) -> list[Cid]:
    """Noise that final closes name."""
    return [close.noise for close in _finals(book) if close.noise is not None]


def older(book: Book, close: Close, base: Cid) -> tuple[set[Cid], Iterator[Cid]]:
    """Other bases than the round's that updates of a buffer name; results that they may be of, the newest first."""
    submitted = [said.event for said in map(book.get, close.submissions) if said is not None]
    bases = {event.base for event in submitted if isinstance(event, Submit)} - {base}
    most = book.buffer.max_staleness if book.buffer is not None else 0
    results = (book.result(before) for before in range(close.round - 2, max(0, close.round - 2 - most), -1))
    return bases, (result for result in results if result is not None and result != book.plan.initial)


def _finals(book: Book) -> list[Close]:
    found = []
    for number in range(1, book.plan.n_rounds + 1):
        if (final := book.final(number)) is None:
            break
        found.append(cast(Close, final.event))
    return found
