"""Ways to deal false shares, for tests: what a member signs that keeps to every form, and to no secret."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from agents.federation.secure import group, shamir
from protocols.rounds import Shares

LIES = ("another secret", "not sealed for it", "another digest")


@contextmanager
def another_secret(places: set[int]) -> Iterator[None]:
    """Whoever splits a secret meanwhile gives the holders at these places shares of none."""
    honest = shamir.split

    def split(secret: bytes, threshold: int, n_shares: int) -> shamir.Dealt:
        dealt = honest(secret, threshold, n_shares)
        false = {x: group.new_secret() if x in places else share for x, share in dealt.shares.items()}
        return dealt._replace(shares=false)

    shamir.split = split  # type: ignore[assignment]
    try:
        yield
    finally:
        shamir.split = honest


def false_shares(lie: str, honest: Callable[[], Shares], places: set[int]) -> Shares:
    """Shares that are false for the holders at these places, from 1 on, of all whose keys were gathered."""
    if lie == "another secret":
        with another_secret(places):
            return honest()
    dealt = honest()
    if lie == "not sealed for it":
        sealed = tuple(bytes(80) if x in places else one for x, one in enumerate(dealt.sealed, 1))
        return replace(dealt, sealed=sealed)
    digests = tuple((bytes(32), one[1]) if x in places else one for x, one in enumerate(dealt.digests, 1))
    return replace(dealt, digests=digests)
