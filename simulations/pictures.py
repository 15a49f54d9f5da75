"""What the scenarios of networks share: their options, their table, and the picture of it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agents.training.curves import Curve
from agents.training.raster import as_png


class Chart(NamedTuple):
    """Curves over one axis."""

    title: str
    curves: Sequence[Curve]
    x_name: str
    y_name: str


def add_common(parser: argparse.ArgumentParser, name: str, n_nodes: int) -> None:
    """How many nodes, which seed, and where the picture goes."""
    parser.add_argument("--nodes", type=int, default=n_nodes, help=f"how many nodes (default {n_nodes:,})")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is left to chance (default 1)")
    parser.add_argument("--png", type=Path, default=Path(f"{name}.png"), help=f"the picture (default {name}.png)")


def draw(path: Path, text: str, charts: Sequence[Chart]) -> str:
    """Write a PNG with the table and the charts. Returns: the table."""
    path.write_bytes(as_png(text.splitlines(), charts))
    return text


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines, with columns as wide as what stands in them; the first one is text, the others are flush right."""
    cells = [list(map(_text, columns)), *(list(map(_text, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]


def _text(cell: object) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else "-" if cell is None else str(cell)


def share_below(name: str, values: Sequence[float], n_all: int) -> Curve:
    """Which share of all had come by which time: the distribution of `values`, in percent of `n_all`."""
    ordered = sorted(values)
    step = max(1, len(ordered) // 200)
    points = [(value, 100 * (number + 1) / n_all) for number, value in enumerate(ordered)]
    return Curve(name, [(0.0, 0.0), *points[::step], *points[-1:]])


def quantile(values: Sequence[float], part: float) -> float | None:
    """The value that such a part of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else None
