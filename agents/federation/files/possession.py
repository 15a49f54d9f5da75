"""What shows that whoever names a file has it all: a digest over its blocks that only who has them can make.

A member may show what it has to whom it likes, and so may others for it. Whom a block was given to in confidence must
not show it because somebody named it: its CID is no secret, and proves nothing about who may have it.

Source: Halevi, Harnik, Pinkas, Shulman-Peleg, Proofs of Ownership in Remote Storage Systems, 2011, where a name stands
for a file in the same way. Here the whole file is hashed again, for who checks it has it at hand.
"""

import hashlib
from collections.abc import Iterable

from agents.federation.events.book import Book
from protocols.rounds import Close, State, Submit
from storage.blockstore import Blockstore
from storage.cid import IDENTITY, Cid
from storage.dag import reach
from storage.keys import PeerId

_WHAT = b"covey possession 1\0"


def possession(store: Blockstore, root: Cid, members: Iterable[PeerId]) -> bytes:
    """The digest of all blocks below `root`, for these members: it lets nobody else have them.

    Raises: NotFound, Corrupt, InvalidBlock, UnknownCodec, TooLarge.
    """
    digest = hashlib.sha256(_WHAT)
    for peer in sorted(members):
        digest.update(len(peer).to_bytes(2) + peer)
    for cid, _ in reach(store, root):
        if cid.hash_code == IDENTITY:
            continue  # it stands in the block that names it
        data = store.get(cid)
        digest.update(len(cid.multihash).to_bytes(2) + cid.multihash + len(data).to_bytes(8))
        digest.update(data)
    return digest.digest()


def claimed(book: Book, file: Cid) -> set[bytes]:
    """What those who named a file gave as its digest; of those that are right, one is enough."""
    found = {book.plan.possession} if file == book.plan.initial else set()
    submits = [(event.sealed or event.update, event.possession) for _, event in book.all_of(Submit)]
    states = [(event.sealed or event.tensors, event.possession) for _, event in book.all_of(State)]
    closes = [(event.noise, event.possession) for _, event in book.all_of(Close)]
    found |= {one for named, one in (*submits, *states, *closes) if named == file}
    return {one for one in found if one is not None}
