"""Put examples of different lengths into rows of one length. Pure.

Source: Johnson, first-fit decreasing bin packing, as used for sequences by Krell et al. (arXiv 2107.02027).
"""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], n_row: int) -> list[list[int]]:
    """Places of examples, row by row; no row is longer than `n_row` unless its one example is.

    The longest goes first, each into the fullest row that takes it. The rows stand in the order of their first example.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, row), the fullest first
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        length = lengths[place]
        at = _first_with(room, length)
        if at is None:
            rows.append([place])
            insort(room, (max(0, n_row - length), len(rows) - 1))
        else:
            left, row = room.pop(at)
            rows[row].append(place)
            insort(room, (left - length, row))
    for row_ in rows:
        row_.sort()
    return sorted(rows)


def _first_with(room: list[tuple[int, int]], length: int) -> int | None:
    at = bisect_left(room, (length, -1))
    return at if at < len(room) else None
