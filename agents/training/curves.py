"""Draw the curves of a training: as text of braille dots, and as SVG. Pure."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH_CHARS: Final = 72
HEIGHT_CHARS: Final = 14
_LEFT_CHARS: Final = 9
# The dots of a braille character by row and column, as bits over U+2800.
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
COLOURS: Final = ("#3b6fb6", "#d1602a", "#4a8f3c", "#8253a8")
_MARKS: Final = "ox+*"
_MAX: Final = 1e30
_LEAST: Final = 1e-30

SVG_WIDTH: Final = 720
SVG_HEIGHT: Final = 360
DASH: Final = 6  # pixels of each dash and gap
MARGIN: Final = (56, 16, 28, 44)  # left, right, top, bottom

Point = tuple[float, float]


class Curve(NamedTuple):
    """A line through points, or marks, with dashes between them where there is room."""

    name: str
    points: Sequence[Point]
    is_marks: bool = False


class Box(NamedTuple):
    """What of the plane is drawn."""

    x_least: float
    x_greatest: float
    y_least: float
    y_greatest: float

    def place(self, point: Point) -> Point:
        """Where a point is in the box, from 0 to 1; y grows upwards."""
        x_span, y_span = self.x_greatest - self.x_least, self.y_greatest - self.y_least
        return (point[0] - self.x_least) / (x_span or 1), (point[1] - self.y_least) / (y_span or 1)


def as_text(curves: Sequence[Curve], x_name: str, y_name: str) -> str:
    """The curves for a terminal. Lines are braille dots, marks are letters; empty where there are no points."""
    shown = [Curve(curve.name, finite(curve.points), curve.is_marks) for curve in curves]
    box = box_of(shown)
    if box is None:
        return ""
    columns = WIDTH_CHARS - _LEFT_CHARS
    dots = [[0] * columns for _ in range(HEIGHT_CHARS)]
    marks: dict[tuple[int, int], str] = {}
    legend = []
    for number, curve in enumerate(shown):
        mark = _MARKS[number % len(_MARKS)]
        legend.append(f"{mark if curve.is_marks else chr(0x2812) * 2} {curve.name}")
        if curve.is_marks:
            for point in curve.points:
                x, y = box.place(point)
                marks[_cell(1 - y, HEIGHT_CHARS), _cell(x, columns)] = mark
        else:
            _draw(dots, [box.place(point) for point in curve.points])
    lines = [f"{y_name}   {'   '.join(legend)}"]
    for row in range(HEIGHT_CHARS):
        cells = "".join(marks.get((row, column)) or _braille(dots[row][column]) for column in range(columns))
        lines.append(f"{_y_label(box, row):>{_LEFT_CHARS - 2}} \u2502{cells}".rstrip())
    lines.append(" " * (_LEFT_CHARS - 1) + "\u2514" + "\u2500" * columns)
    least, greatest = f"{box.x_least:g}", f"{box.x_greatest:g} {x_name}"
    lines.append(" " * _LEFT_CHARS + least + greatest.rjust(columns - len(least)))
    return "\n".join(lines)


def as_svg(title: str, curves: Sequence[Curve], x_name: str, y_name: str, x_step: float = 0.0) -> str:
    """The curves as a picture that needs nothing from elsewhere; ticks of the x axis are at least `x_step` apart."""
    shown = [Curve(curve.name, finite(curve.points), curve.is_marks) for curve in curves]
    box = box_of(shown) or Box(0, 1, 0, 1)
    left, right, top, bottom = MARGIN
    inner = (SVG_WIDTH - left - right, SVG_HEIGHT - top - bottom)

    def at(point: Point) -> Point:
        x, y = box.place(point)
        return left + x * inner[0], top + (1 - y) * inner[1]

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDTH} {SVG_HEIGHT}" '
        f'width="{SVG_WIDTH}" height="{SVG_HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{SVG_WIDTH}" height="{SVG_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{left}" y="18" font-size="14" fill="#222">{escape(title)}</text>',
    ]
    for value in ticks(box.y_least, box.y_greatest):
        y = at((box.x_least, value))[1]
        parts.append(f'<line x1="{left}" x2="{SVG_WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{value:g}</text>')
    for value in ticks(box.x_least, box.x_greatest, x_step):
        x = at((value, box.y_least))[0]
        parts.append(
            f'<text x="{x:.1f}" y="{SVG_HEIGHT - bottom + 16}" text-anchor="middle" fill="#555">{value:g}</text>'
        )
    parts.append(
        f'<text x="{SVG_WIDTH - right}" y="{SVG_HEIGHT - 8}" text-anchor="end" fill="#555">{escape(x_name)}</text>'
    )
    parts.append(f'<text x="{left}" y="{SVG_HEIGHT - 8}" fill="#555">{escape(y_name)}</text>')
    for number, curve in enumerate(shown):
        parts.extend(_svg_curve(curve, COLOURS[number % len(COLOURS)], [at(point) for point in curve.points]))
        x = SVG_WIDTH - right - 130 * (len(shown) - number)
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{x}" y="9" width="12" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="18" fill="#222">{escape(curve.name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _svg_curve(curve: Curve, colour: str, places: Sequence[Point]) -> Iterable[str]:
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    if line:
        dashes = f' stroke-dasharray="{DASH}"' if curve.is_marks else ""  # what runs below it is seen
        stroke = f'fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"'
        yield f'<polyline points="{line}" {stroke}{dashes}/>'
    if curve.is_marks:
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'


def finite(points: Iterable[Point]) -> list[Point]:
    """The points that can be drawn. What is far below any scale is zero: steps between such would be none."""
    return [
        (float(x), float(y) if abs(y) >= _LEAST else 0.0)
        for x, y in points
        if abs(x) <= _MAX and abs(y) <= _MAX  # nor NaN
    ]


def box_of(curves: Sequence[Curve]) -> Box | None:
    """A box with some room around all points; None where there are none."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    span, size = max(ys) - min(ys), max(map(abs, ys))
    room = max(0.04 * span, 1e-6 * size) if span else 0.05 * size or 0.5  # a level line has short numbers beside it
    return Box(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, min(ys) - room, max(ys) + room)


def ticks(least: float, greatest: float, least_step: float = 0.0) -> list[float]:
    """A few round values between the two."""
    rough = max((greatest - least) / 5, least_step)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= rough), 10 * power)
    first, last = math.ceil(least / step), math.floor(greatest / step)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _cell(share: float, n: int) -> int:
    return min(n - 1, max(0, int(share * n)))


def _draw(dots: list[list[int]], places: Sequence[Point]) -> None:
    """A line through the places, each from 0 to 1."""
    width, height = 2 * len(dots[0]), 4 * len(dots)
    spots = [(_cell(x, width), _cell(1 - y, height)) for x, y in places]
    for (x0, y0), (x1, y1) in zip(spots, [*spots[1:], *spots[-1:]], strict=True):
        n = max(abs(x1 - x0), abs(y1 - y0), 1)
        for at in range(n + 1):
            x, y = round(x0 + (x1 - x0) * at / n), round(y0 + (y1 - y0) * at / n)
            dots[y // 4][x // 2] |= _DOTS[y % 4][x % 2]


def _braille(bits: int) -> str:
    return chr(0x2800 + bits) if bits else " "


def _y_label(box: Box, row: int) -> str:
    """Beside the first, the middle and the last row, what their middle stands for."""
    if row not in (0, HEIGHT_CHARS // 2, HEIGHT_CHARS - 1):
        return ""
    share = 1 - (row + 0.5) / HEIGHT_CHARS
    return f"{box.y_least + share * (box.y_greatest - box.y_least):.4g}"
