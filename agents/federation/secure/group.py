"""A group of prime order in which secrets have public counterparts that add up: that of Ed25519.

A secret is a number below ORDER, its public key the point that many times the base. Sums of secrets are sums of points,
so who has only public keys can check shares of secrets (Feldman), and one can prove that one secret stands behind two
points (Chaum, Pedersen) without telling it.

It is the curve of X25519 in the form in which points can be added; only points of the prime order are taken.

Source: RFC 8032 (the group); Chaum, Pedersen, Wallet databases with observers (CRYPTO 1992), section 3.2.
"""

import hashlib
import secrets
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_is_valid_point,
    crypto_core_ed25519_scalar_add,
    crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_reduce,
    crypto_core_ed25519_sub,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
)
from nacl.exceptions import CryptoError

ORDER: Final = 2**252 + 27742317777372353535851937790883648493
SECRET_BYTES: Final = 32
POINT_BYTES: Final = 32
PROOF_BYTES: Final = 64

_KNOWN_POINTS: Final = 1 << 14


class BadPoint(ValueError):
    """What should be a point of the group is none, or has no part in it."""


def new_secret() -> bytes:
    """From the system's source of secrets; never zero."""
    return secret_of(1 + secrets.randbelow(ORDER - 1))


def secret_of(number: int) -> bytes:
    """A number as a secret: below ORDER, little-endian."""
    return (number % ORDER).to_bytes(SECRET_BYTES, "little")


def number_of(secret: bytes) -> int:
    """The number that a secret is."""
    return int.from_bytes(secret, "little")


def public(secret: bytes) -> bytes:
    """The point that a secret other than zero stands behind. Raises: BadPoint."""
    try:
        return crypto_scalarmult_ed25519_base_noclamp(secret)
    except CryptoError:
        raise BadPoint("zero is no secret") from None


@lru_cache(_KNOWN_POINTS)
def is_point(data: bytes) -> bool:
    """Is it one of the prime order, in its one form?"""
    return len(data) == POINT_BYTES and crypto_core_ed25519_is_valid_point(data)


def times(secret: bytes, point: bytes) -> bytes:
    """The point, so many times. Raises: BadPoint."""
    try:
        return crypto_scalarmult_ed25519_noclamp(secret, point)
    except (CryptoError, TypeError, ValueError):
        raise BadPoint("the key is none, or of low order") from None


def at(points: tuple[bytes, ...], x: int) -> bytes:
    """The public counterpart of a polynomial's value, of those of its coefficients. Raises: BadPoint."""
    found, by = points[-1], secret_of(x)
    try:
        for point in reversed(points[:-1]):
            found = crypto_core_ed25519_add(times(by, found), point)
    except CryptoError:
        raise BadPoint("a coefficient is no point") from None
    return found


def prove(secret: bytes, about: bytes, *points: bytes) -> bytes:
    """A proof that one knows what stands behind a public key, and that each of `points` was taken as many times.

    It tells nothing of the secret. Without points it is Schnorr's.
    """
    chance = new_secret()
    images, chances = [times(secret, point) for point in points], [times(chance, point) for point in points]
    asked = _challenge(public(secret), zip(points, images, strict=True), [public(chance), *chances], about)
    return asked + crypto_core_ed25519_scalar_add(chance, crypto_core_ed25519_scalar_mul(asked, secret))


@lru_cache(_KNOWN_POINTS)
def is_proved(key: bytes, proof: bytes, about: bytes, *pairs: tuple[bytes, bytes]) -> bool:
    """Does the proof show that, of each pair, the second is the first as many times as `key` is the base?"""
    if len(proof) != PROOF_BYTES or not all(map(is_point, (key, *(point for pair in pairs for point in pair)))):
        return False
    asked, answer = proof[:SECRET_BYTES], proof[SECRET_BYTES:]
    try:
        found = [crypto_core_ed25519_sub(public(answer), times(asked, key))]
        for point, image in pairs:
            found.append(crypto_core_ed25519_sub(times(answer, point), times(asked, image)))
    except (BadPoint, CryptoError):
        return False
    return asked == _challenge(key, pairs, found, about)


def _challenge(key: bytes, pairs: Iterable[tuple[bytes, bytes]], chances: Iterable[bytes], about: bytes) -> bytes:
    points = b"".join(point for pair in pairs for point in pair)
    hashed = hashlib.sha512(b"covey proof of one secret\0" + key + points + b"".join(chances) + about)
    return crypto_core_ed25519_scalar_reduce(hashed.digest())
