"""Who takes part in a round: pure functions of what is signed, remembered for the last few that were asked of."""

import hashlib
from functools import lru_cache
from typing import Final

from storage.cid import Cid
from storage.keys import PeerId

Peers = tuple[PeerId, ...]

LOG_BITS: Final = 64
MANTISSA_BITS: Final = 192  # LOG_BITS of them are doubled away, and as many are left to be right
DIGEST_BITS: Final = 256

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
def chosen(roster: Peers, seed: bytes, n_selected: int, weights: tuple[int, ...] | None = None) -> Peers:
    """Who is selected: all with 0, else so many by the seed; drawn without replacement by these weights, if any.

    Each member waits for a time of its own, exponential with its weight as the rate, and the first ones are taken: that
    is drawing one after the other by weight (Efraimidis, Spirakis: Weighted random sampling with a reservoir, 2006).
    Whose weight is higher is never later, so nobody gains by saying less; and one's time hangs on no one else's claim.
    """
    if not n_selected or n_selected >= len(roster):
        return roster
    times = [int.from_bytes(hashlib.sha256(seed + peer).digest()) for peer in roster]
    if weights is not None:
        times = [_time(number, weight) for number, weight in zip(times, weights, strict=True)]
    ranked = sorted(zip(times, roster, strict=True))
    return tuple(sorted(peer for _, peer in ranked[:n_selected]))


def _time(number: int, weight: int) -> int:
    """-log2(u) / weight, with u in (0, 1] from a digest: in whole numbers, so the same on every machine."""
    neglog = (DIGEST_BITS << LOG_BITS) - log2(number + 1)
    return (neglog << LOG_BITS) // weight


def log2(n: int) -> int:
    """The binary logarithm in units of 2^-LOG_BITS, rounded down by squaring: each square tells one bit more of it.

    What is cut off of squares is below a unit of the result, whatever n is.
    """
    whole = n.bit_length() - 1
    mantissa = (n << MANTISSA_BITS) >> whole
    found = whole
    for _ in range(LOG_BITS):
        mantissa = mantissa * mantissa >> MANTISSA_BITS
        is_two = mantissa >> (MANTISSA_BITS + 1)
        mantissa >>= is_two
        found = found << 1 | is_two
    return found
