"""Shamir's secret sharing of 32-byte seeds.

Over the prime 2^256 + 297, the first above 2^256, so that every seed is a secret; a share is 33 bytes.

Source: Shamir, How to share a secret (CACM 1979).
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Final

PRIME: Final = 2**256 + 297
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33
MAX_SHARES: Final = 1024


class BadShares(ValueError):
    """These shares are not those of one secret, or too few."""


def split(
    secret: bytes, threshold: int, n_shares: int, below: Callable[[int], int] = secrets.randbelow
) -> dict[int, bytes]:
    """Shares 1 to n, any `threshold` of which give the secret back and fewer tell nothing. Raises: ValueError."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if not 1 <= threshold <= n_shares <= MAX_SHARES:
        raise ValueError(
            f"a threshold of {threshold} of {n_shares} shares cannot be: 1 <= threshold <= n <= {MAX_SHARES}"
        )
    coefficients = [int.from_bytes(secret), *(below(PRIME) for _ in range(threshold - 1))]
    shares = {}
    for x in range(1, n_shares + 1):
        y = 0
        for coefficient in reversed(coefficients):
            y = (y * x + coefficient) % PRIME
        shares[x] = y.to_bytes(SHARE_BYTES)
    return shares


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret of `threshold` shares or more; more than needed must agree. Raises: BadShares."""
    if len(shares) < threshold or threshold < 1:
        raise BadShares(f"{len(shares)} shares, and {threshold} are needed")
    points = {}
    for x, share in shares.items():
        y = int.from_bytes(share)
        if not 1 <= x <= MAX_SHARES or len(share) != SHARE_BYTES or y >= PRIME:
            raise BadShares(f"share {x} is not one of this scheme")
        points[x] = y
    chosen = sorted(points)[:threshold]
    weights = _weights(chosen, 0)
    secret = sum(weight * points[x] for x, weight in zip(chosen, weights, strict=True)) % PRIME
    for x in sorted(points)[threshold:]:
        expected = sum(w * points[at] for at, w in zip(chosen, _weights(chosen, x), strict=True)) % PRIME
        if expected != points[x]:
            raise BadShares("the shares contradict each other: one of their holders lies")
    if secret >> (8 * SECRET_BYTES):
        raise BadShares("the shares belong to no secret")
    return secret.to_bytes(SECRET_BYTES)


def _weights(xs: list[int], at: int) -> list[int]:
    """Lagrange's: the value at `at` is their sum with the values at `xs`."""
    weights = []
    for i in xs:
        top, bottom = 1, 1
        for j in xs:
            if i != j:
                top = top * (at - j) % PRIME
                bottom = bottom * (i - j) % PRIME
        weights.append(top * pow(bottom, -1, PRIME) % PRIME)
    return weights
