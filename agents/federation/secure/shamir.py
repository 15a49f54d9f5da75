"""Shamir's secret sharing of 32-byte secrets, verifiable: each holder sees whether its share is one of that secret.

Over the numbers below the order of `group`'s group. With the shares the dealer gives out the public counterparts of its
polynomial's coefficients; the first is that of the secret itself. They tell nothing else of it.

Source: Shamir, How to share a secret (CACM 1979); Feldman, A practical scheme for non-interactive verifiable secret
sharing (FOCS 1987).
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from agents.federation.secure import group
from agents.federation.secure.group import ORDER

SECRET_BYTES: Final = group.SECRET_BYTES
SHARE_BYTES: Final = group.SECRET_BYTES
MAX_SHARES: Final = 1024


class BadShares(ValueError):
    """These shares are not those of one secret, or too few."""


class Dealt(NamedTuple):
    """The shares 1 to n, and what anybody may know: the public counterparts of the polynomial's coefficients."""

    shares: dict[int, bytes]
    commitments: tuple[bytes, ...]


def split(secret: bytes, threshold: int, n_shares: int, below: Callable[[int], int] = secrets.randbelow) -> Dealt:
    """Shares any `threshold` of which give the secret back, and fewer tell nothing. Raises: ValueError."""
    if len(secret) != SECRET_BYTES or not 0 < group.number_of(secret) < ORDER:
        raise ValueError("a secret is a number above zero and below the order, in 32 bytes")
    if not 1 <= threshold <= n_shares <= MAX_SHARES:
        raise ValueError(
            f"a threshold of {threshold} of {n_shares} shares cannot be: 1 <= threshold <= n <= {MAX_SHARES}"
        )
    # Zero has no public counterpart; that it is never drawn is as if it had been, and drawn again.
    coefficients = [group.number_of(secret), *(1 + below(ORDER - 1) for _ in range(threshold - 1))]
    shares = {}
    for x in range(1, n_shares + 1):
        y = 0
        for coefficient in reversed(coefficients):
            y = (y * x + coefficient) % ORDER
        shares[x] = group.secret_of(y)
    return Dealt(shares, tuple(group.public(group.secret_of(one)) for one in coefficients))


def fits(share: bytes, x: int, commitments: tuple[bytes, ...]) -> bool:
    """Is it share `x` of the secret that these commitments are about? Takes a multiplication for each of them."""
    if len(share) != SHARE_BYTES or group.number_of(share) >= ORDER:
        return False
    try:
        return group.public(share) == group.at(commitments, x)
    except group.BadPoint:
        return False


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret of `threshold` shares or more; more than needed must agree. Raises: BadShares."""
    if len(shares) < threshold or threshold < 1:
        raise BadShares(f"{len(shares)} shares, and {threshold} are needed")
    points = {}
    for x, share in shares.items():
        y = group.number_of(share)
        if not 1 <= x <= MAX_SHARES or len(share) != SHARE_BYTES or y >= ORDER:
            raise BadShares(f"share {x} is not one of this scheme")
        points[x] = y
    chosen = sorted(points)[:threshold]
    weights = _weights(chosen, 0)
    secret = sum(weight * points[x] for x, weight in zip(chosen, weights, strict=True)) % ORDER
    for x in sorted(points)[threshold:]:
        expected = sum(w * points[at] for at, w in zip(chosen, _weights(chosen, x), strict=True)) % ORDER
        if expected != points[x]:
            raise BadShares("the shares contradict each other: one of their holders lies")
    return group.secret_of(secret)


def _weights(xs: list[int], at: int) -> list[int]:
    """Lagrange's: the value at `at` is their sum with the values at `xs`."""
    weights = []
    for i in xs:
        top, bottom = 1, 1
        for j in xs:
            if i != j:
                top = top * (at - j) % ORDER
                bottom = bottom * (i - j) % ORDER
        weights.append(top * pow(bottom, -1, ORDER) % ORDER)
    return weights
