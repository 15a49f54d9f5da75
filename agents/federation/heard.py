"""What members of an experiment tell each other when they ask: what one knows, and what another lacks of it."""

from collections.abc import Container, Iterator

from agents.federation.book import Book
from protocols import rounds_sync as sync
from protocols import telling
from protocols.entry import Entry
from protocols.net import Network
from protocols.rounds import Plan
from protocols.rounds_sync import Known
from protocols.telling import Mark, Where
from storage.cid import Cid


def members_here(network: Network, plan: Plan) -> Iterator[Where]:
    """Where the members are that this node is connected to."""
    for peer in sorted(set(plan.members) & set(network.peers())):
        texts = [text for text in network.peer_addresses(peer) if len(text) <= telling.MAX_ADDRESS_CHARS]
        if texts:
            yield Where(peer=peer, addresses=tuple(texts[: telling.MAX_ADDRESSES]))


def known_of(book: Book) -> Known:
    """What this book knows, for a question."""
    marks = {}
    for peer, height in book.heights().items():
        if height and (last := book.at(peer, height - 1)) is not None:
            marks[peer] = Mark(height, sync.digest_of(last))
    return Known(marks, frozenset(book.forks()))


def lacking(book: Book, known: Known, durable: Container[Cid]) -> Iterator[Entry]:
    """What somebody lacks, of what is durable here: events in a row, and the proofs of histories that fork."""
    heights = book.heights()
    for author, forked in sorted(book.forks().items()):
        if author not in known.forks:
            yield from (said.entry for said in forked if said.cid in durable)
    for peer, mark in known.marks.items():
        own = book.at(peer, mark.height - 1)
        if own is not None and peer not in known.forks and sync.digest_of(own) != mark.latest:
            yield own
    for entry in book.since({peer: mark.height for peer, mark in known.marks.items()}):
        if entry.sequence < heights[entry.author] and entry.cid in durable:
            yield entry
