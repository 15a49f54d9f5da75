"""Draw curves into a PNG without any library for pictures: lines, blocks and a small font on an array of bytes."""

import struct
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.training.curves import (
    COLOURS,
    DASH,
    MARGIN,
    SVG_HEIGHT,
    SVG_WIDTH,
    Box,
    Curve,
    Point,
    box_of,
    finite,
    ticks,
)

# The 95 printable characters of ASCII, five columns each, a bit for each of seven rows, the top one lowest.
_FONT: Final = bytes.fromhex(
    "0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649552250 0005030000 001c224100 0041221c00"
    "14083e0814 08083e0808 0050300000 0808080808 0060600000 2010080402 3e5149453e 00427f4000 4261514946 2141454b31"
    "1814127f10 2745454539 3c4a494930 0171090503 3649494936 064949291e 0036360000 0056360000 0814224100 1414141414"
    "0041221408 0201510906 324979413e 7e1111117e 7f49494936 3e41414122 7f4141221c 7f49494941 7f09090901 3e4149497a"
    "7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e 7f09090906 3e4151215e"
    "7f09192946 4649494931 01017f0101 3f4040403f 1f2040201f 3f4038403f 6314081463 0708700807 6151494543 007f414100"
    "0204081020 0041417f00 0402010204 4040404040 0001020400 2054545478 7f48444438 3844444420 384444487f 3854545418"
    "087e090102 0c5252523e 7f08040478 00447d4000 2040443d00 7f10284400 00417f4000 7c04180478 7c08040478 3844444438"
    "7c14141408 081414187c 7c08040408 4854545420 043f444020 3c4040207c 1c2040201c 3c4030403c 4428102844 0c5050503c"
    "4464544c44 0008364100 00007f0000 0041360800 0808081020"
)
_FIRST: Final = 32
_COLUMNS: Final = 5
_ROWS: Final = 7
_SCALE: Final = 2
_CHAR_WIDTH: Final = (_COLUMNS + 1) * _SCALE
_CHAR_HEIGHT: Final = (_ROWS + 1) * _SCALE
_INK: Final = "#222222"
_PALE: Final = "#e4e4e4"
_THICK: Final = 2
_LINE_GAP: Final = 6
_CHART_GAP: Final = 24
MAX_LINES: Final = 200

Canvas = NDArray[np.uint8]


def as_png(lines: Sequence[str], charts: Sequence[tuple[str, Sequence[Curve], str, str]], x_step: float = 0.0) -> bytes:
    """Lines of text, and below them charts: each a title, curves, and the names of its axes.

    `x_step` is the least between two ticks of an x axis.
    """
    line_height = _CHAR_HEIGHT + _LINE_GAP
    n_chars = SVG_WIDTH // _CHAR_WIDTH - 2
    shown = [line[at : at + n_chars] for line in lines for at in range(0, max(1, len(line)), n_chars)][:MAX_LINES]
    top = line_height * len(shown) + (2 * _LINE_GAP if shown else 0)
    canvas = np.full((top + (SVG_HEIGHT + _CHART_GAP) * len(charts), SVG_WIDTH, 3), 255, np.uint8)
    for row, line in enumerate(shown):
        _write(canvas, 16, _LINE_GAP + row * line_height, line)
    for number, (title, curves, x_name, y_name) in enumerate(charts):
        begin = top + number * (SVG_HEIGHT + _CHART_GAP)
        _draw_chart(canvas[begin : begin + SVG_HEIGHT], title, curves, x_name, y_name, x_step)
    return encode(canvas)


def encode(canvas: Canvas) -> bytes:
    """The bytes of a PNG. Shape: (height, width, 3).

    Source: W3C, Portable Network Graphics (Third Edition), sections 5 and 11.2.
    """
    height, width, _ = canvas.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with the number of its filter: none
    rows[:, 1:] = canvas.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_part(name, data) for name, data in parts)


def _part(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _draw_chart(canvas: Canvas, title: str, curves: Sequence[Curve], x_name: str, y_name: str, x_step: float) -> None:
    shown = [Curve(curve.name, finite(curve.points), curve.is_marks) for curve in curves]
    box = box_of(shown) or Box(0, 1, 0, 1)
    left, right, top, bottom = MARGIN[0] + 24, MARGIN[1], MARGIN[2] + 12, MARGIN[3] + 8
    inner = (SVG_WIDTH - left - right, SVG_HEIGHT - top - bottom)

    def at(point: Point) -> tuple[int, int]:
        x, y = box.place(point)
        return round(left + x * inner[0]), round(top + (1 - y) * inner[1])

    for value in ticks(box.y_least, box.y_greatest):
        y = at((box.x_least, value))[1]
        canvas[y : y + 1, left : SVG_WIDTH - right] = _colour(_PALE)
        text = f"{value:g}"
        _write(canvas, left - 8 - _CHAR_WIDTH * len(text), y - _CHAR_HEIGHT // 2, text)
    for value in ticks(box.x_least, box.x_greatest, x_step):
        text = f"{value:g}"
        x = at((value, box.y_least))[0] - _CHAR_WIDTH * len(text) // 2
        _write(canvas, x, SVG_HEIGHT - bottom + 8, text)
    _write(canvas, left, 4, title)
    _write(canvas, left, SVG_HEIGHT - _CHAR_HEIGHT - 2, y_name)
    _write(canvas, SVG_WIDTH - right - _CHAR_WIDTH * len(x_name), SVG_HEIGHT - _CHAR_HEIGHT - 2, x_name)
    names = legend([curve.name for curve in shown], left + _CHAR_WIDTH * (len(title) + 1))
    for number, (curve, (x, y)) in enumerate(zip(shown, names, strict=True)):
        colour = _colour(COLOURS[number % len(COLOURS)])
        canvas[y + 2 : y + 12, max(0, x) : max(0, x + 10)] = colour
        _write(canvas, x + 16, y, curve.name)
        _draw_curve(canvas, curve, [at(point) for point in curve.points], colour)


def legend(names: Sequence[str], left: int) -> list[tuple[int, int]]:
    """Where each name stands: right of the title, which ends at `left`; what has no room there, a line below."""
    x, y, found = SVG_WIDTH - MARGIN[1], 4, list[tuple[int, int]]()
    for name in reversed(names):
        width = _CHAR_WIDTH * len(name) + 28
        if x - width < left and y == 4:
            x, y = SVG_WIDTH - MARGIN[1], 4 + _CHAR_HEIGHT + 2
        x -= width
        found.append((x, y))
    return found[::-1]


def _draw_curve(canvas: Canvas, curve: Curve, places: Sequence[tuple[int, int]], colour: Canvas) -> None:
    for (x0, y0), (x1, y1) in zip(places, [*places[1:], *places[-1:]], strict=True):
        n = max(abs(x1 - x0), abs(y1 - y0), 1)
        steps = np.arange(n + 1)
        if curve.is_marks and len(steps) > 1:  # in dashes: what runs below it is seen
            steps = steps[steps // DASH % 2 == 0]
        xs, ys = x0 + steps * (x1 - x0) // n, y0 + steps * (y1 - y0) // n
        for down in range(_THICK):
            for across in range(_THICK):
                canvas[np.clip(ys + down, 0, len(canvas) - 1), np.clip(xs + across, 0, canvas.shape[1] - 1)] = colour
    if curve.is_marks:
        for x, y in places:
            canvas[max(0, y - 3) : y + 5, max(0, x - 3) : x + 5] = colour


def _write(canvas: Canvas, x: int, y: int, text: str) -> None:
    """Write a line; what is no printable ASCII is a question mark, what does not fit is cut off."""
    ink = _colour(_INK)
    for place, letter in enumerate(text):
        code = ord(letter) - _FIRST
        begin = (code if 0 <= code < len(_FONT) // _COLUMNS else ord("?") - _FIRST) * _COLUMNS
        columns = np.frombuffer(_FONT[begin : begin + _COLUMNS], np.uint8)
        dots = (columns[None, :] >> np.arange(_ROWS)[:, None]) & 1  # (rows, columns)
        rows, across = np.nonzero(np.kron(dots, np.ones((_SCALE, _SCALE), np.uint8)))
        rows, across = rows + y, across + x + place * _CHAR_WIDTH
        fits = (rows >= 0) & (rows < len(canvas)) & (across >= 0) & (across < canvas.shape[1])
        canvas[rows[fits], across[fits]] = ink


def _colour(text: str) -> Canvas:
    return np.frombuffer(bytes.fromhex(text[1:]), np.uint8)
