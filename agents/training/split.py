"""Divide examples into those to learn from and those held out to measure on: by a seed, and so that no example that is
held out is learned from under another line's number. Pure.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.errors import BadData
from agents.training.records import Body, texts_of

DRAW_BITS: Final = 256
ROWS_SEED: Final = 5489
_SEPARATOR: Final = "\x1f"


class Split(NamedTuple):
    """Places of examples in the order of the data: to learn from, and held out."""

    train: list[int]
    held_out: list[int]


def key_of(body: Body) -> bytes:
    """What two examples have in common that differ in case and spaces alone."""
    return key_of_texts(texts_of(body))


def key_of_texts(texts: Iterable[str]) -> bytes:
    """The key of an example of these texts."""
    plain = _SEPARATOR.join(" ".join(text.casefold().split()) for text in texts)
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()


def split(keys: Sequence[bytes], held_out_frac: float, seed: int, strata: Sequence[str | None] = ()) -> Split:
    """Hold out about `held_out_frac` of the examples, of every stratum where they are given.

    Examples with one key stand on one side, in the stratum of the first of them. The order of the data does not matter
    to which are held out. Raises: BadData where there are not two different examples.
    """
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    if len(places) < 2:
        raise BadData(
            f"the data makes {len(places)} different example{'s' if len(places) != 1 else ''}, at least 2 are needed: "
            "give more, or lower --context-tokens"
        )
    groups: dict[str, list[bytes]] = defaultdict(list)
    for key, where in places.items():
        groups[(strata[where[0]] or "") if strata else ""].append(key)
    held_out: set[bytes] = set()
    for stratum, n_held_out in _shares(groups, len(places), held_out_frac).items():
        held_out.update(sorted(groups[stratum], key=lambda key: _draw(seed, key))[:n_held_out])
    sides: Split = Split([], [])
    for place, key in enumerate(keys):
        sides[key in held_out].append(place)
    return sides


def split_each(keys: Sequence[bytes], held_out_frac: float, seed: int) -> Split:
    """Hold out each example or not by its own key alone: another example less, or more, changes nothing for it.

    It may be none. Raises: BadData where there is nothing to learn from.
    """
    limit = int(held_out_frac * (1 << DRAW_BITS))
    sides = Split([], [])
    for place, key in enumerate(keys):
        sides[int.from_bytes(_draw(seed, key)) < limit].append(place)
    if not sides.train:
        raise BadData(f"all of the {len(keys)} examples are held out: give more, or lower --context-tokens")
    return sides


def split_rows(n_rows: int, held_out_frac: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rows to learn from, and which are held out: by their number alone, the same in every round."""
    order = np.random.Generator(np.random.PCG64(ROWS_SEED)).permutation(n_rows)
    n_out = round(n_rows * held_out_frac)
    return np.sort(order[n_out:]), np.sort(order[:n_out])


def _draw(seed: int, key: bytes) -> bytes:
    return hashlib.sha256(seed.to_bytes(8, "big") + key).digest()


def _shares(groups: dict[str, list[bytes]], n_all: int, frac: float) -> dict[str, int]:
    """How many of each group to hold out: its share, and what rounding leaves to those that lost most by it."""
    total = min(max(1, round(n_all * frac)), n_all - 1)
    shares = {stratum: int(len(keys) * total / n_all) for stratum, keys in groups.items()}
    rest = {stratum: len(keys) * total / n_all - shares[stratum] for stratum, keys in groups.items()}
    for stratum in sorted(rest, key=lambda stratum: (-rest[stratum], stratum))[: total - sum(shares.values())]:
        shares[stratum] += 1
    return shares
