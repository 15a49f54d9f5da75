"""Who takes part in a round: pure functions of what is signed, remembered for the last few that were asked of."""

import hashlib
from functools import lru_cache
from typing import Final

from storage.cid import Cid
from storage.keys import PeerId

Peers = tuple[PeerId, ...]

N_REMEMBERED: Final = 16  # a list of a thousand is sorted and hashed once, not with every event that is heard


@lru_cache(maxsize=N_REMEMBERED)
def taking_part(joined: Peers, members: frozenset[PeerId]) -> Peers:
    """Of a list of who has joined, the members of the plan, in order."""
    return tuple(sorted(members.intersection(joined)))


@lru_cache(maxsize=N_REMEMBERED)
def round_seed(number: int, before: Cid, roster: Peers) -> bytes:
    """A round's public seed: a hash over the result before it and the list of the joined."""
    hashed = hashlib.sha256(b"covey round seed\0" + number.to_bytes(4) + bytes(before))
    for peer in roster:
        hashed.update(len(peer).to_bytes(2) + peer)
    return hashed.digest()


@lru_cache(maxsize=N_REMEMBERED)
def chosen(roster: Peers, seed: bytes, n_selected: int) -> Peers:
    """Who is selected: all with 0, else so many by the seed."""
    if not n_selected or n_selected >= len(roster):
        return roster
    ranked = sorted(roster, key=lambda peer: hashlib.sha256(seed + peer).digest())
    return tuple(sorted(ranked[:n_selected]))
