"""Results for people: a list of structs is a table, a struct is `name  value` lines. Units come from the names.

An operation that reads better in a form of its own has one in `daemon.cli.forms`.
"""

import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any, Final

from daemon.cli.text import clean

Json = Any
_BINARY_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SHORT_CHARS: Final = 8
_ID: Final = re.compile(r"(12D3KooW|16Uiu2|Qm)[1-9A-HJ-NP-Za-km-z]{40,}|b[a-z2-7]{50,}")
_GAP: Final = "  "
_NARROW: Final = 16  # of what goes on below, at least
_SUFFIXES: Final = ("_bytes_per_s", "_unix_s", "_bytes", "_per_s", "_s", "_ms", "_frac")


def lines_of(result: Json) -> Iterator[str]:
    """The generic form of any result."""
    if isinstance(result, list):
        yield from table(result)
    elif isinstance(result, dict):
        result = {key: value for key, value in result.items() if key != "type"}  # tells programs what item it is
        if set(result) == {"text"}:
            yield clean(str(result["text"]), keep_lines=True)
            return
        lists = [
            key for key, value in result.items() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        if lists and len(result) == 1:
            yield from table(result[lists[0]])
            return
        yield from pairs({key: value for key, value in result.items() if key not in lists})
        for key in lists:
            yield ""
            yield f"{title(key)}:"
            yield from table(result[key])
    else:
        yield value_text("", result)


def pairs(struct: dict[str, Json]) -> Iterator[str]:
    """`name  value` lines, aligned; a list of texts goes below its name."""
    width = max((len(title(key)) for key in struct), default=0)
    for key, value in struct.items():
        texts = _texts(key, value)
        for index, text in enumerate(texts or ["-"]):
            yield f"{title(key) if index == 0 else '':<{width}}{_GAP}{text}".rstrip()


def _texts(key: str, value: Json) -> list[str]:
    if isinstance(value, list):
        return [value_text(key, item) for item in value]
    if isinstance(value, dict):
        return [f"{clean(inner)}={value_text(inner, item)}" for inner, item in value.items()]
    return [value_text(key, value)]


def table(rows: list[Json], *, wraps: bool = False) -> Iterator[str]:
    """Columns under headings; a terminal cuts what is too wide, or the last one `wraps`."""
    if not rows:
        return
    if not isinstance(rows[0], dict):
        yield from (value_text("", row) for row in rows)
        return
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[title(key).upper() for key in keys]]
    cells += [[value_text(key, row.get(key)) for key in keys] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(keys))]
    room = shutil.get_terminal_size((200, 24)).columns if sys.stdout.isatty() else 10_000
    indent = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
    for row in cells:
        line = _GAP.join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        yield from _wrapped(line, indent, room) if wraps else [line[: max(room, 40)]]


def _wrapped(line: str, indent: int, room: int) -> Iterator[str]:
    """A line, what is behind `indent` in as many as it takes; an id stays in one piece."""
    first, *others = textwrap.wrap(
        line[indent:], max(room - indent, _NARROW), break_long_words=False, break_on_hyphens=False
    ) or [""]
    yield line[:indent] + first
    yield from (" " * indent + other for other in others)


def title(key: str) -> str:
    """A field's name for people: its unit goes, for the value shows it."""
    if key == "n_bytes":
        return "size"
    if key == "bytes_per_s":
        return "speed"
    for suffix in _SUFFIXES:
        if key.endswith(suffix) and key != suffix:
            key = key[: -len(suffix)]
            break
    return key.removeprefix("is_").removeprefix("has_").removeprefix("n_").replace("_", " ")


def value_text(key: str, value: Json) -> str:
    """A value for people, by the unit in its field's name."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number_text(key, value)
    if isinstance(value, list):
        return ", ".join(value_text("", item) for item in value) or "-"
    if isinstance(value, dict):
        return " ".join(f"{clean(inner)}={value_text(inner, item)}" for inner, item in value.items()) or "-"
    return clean(str(value))


def _number_text(key: str, value: float) -> str:
    if key.endswith("_bytes"):
        return bytes_text(value)
    if key.endswith("unix_s"):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if key.endswith("_ms"):
        return f"{value:.3g} ms" if value < 10 else f"{value:.0f} ms"
    if key.endswith("bytes_per_s"):
        return f"{bytes_text(value)}/s"
    if key.endswith("_per_s"):
        return f"{value:.4g} a second"
    if key.endswith("_s"):
        return duration_text(value)
    if key.endswith("_frac"):
        return f"{100 * value:.1f} %"
    if isinstance(value, int):
        return f"{value:,}" if key.startswith("n_") else str(value)
    return f"{value:.4g}"


def bytes_text(n_bytes: float) -> str:
    """`1.5 MiB`."""
    power = 0
    while abs(n_bytes) >= 1024 and power < len(_BINARY_UNITS) - 1:
        n_bytes /= 1024
        power += 1
    return f"{n_bytes:.0f} B" if power == 0 else f"{n_bytes:.1f} {_BINARY_UNITS[power]}"


def duration_text(seconds: float) -> str:
    """`3.2 s`, `4 min 5 s`, `2 h 3 min`, `5 d 1 h`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = int(seconds)
    for size, name, inner_size, inner in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // inner_size} {inner}"
    raise AssertionError("60 s and more has minutes")


def short(text: str) -> str:
    """The end of a peer id or CID: they begin alike."""
    return f"\N{HORIZONTAL ELLIPSIS}{text[-_SHORT_CHARS:]}"


def event_line(event: Json) -> str:
    """One line of `covey events`."""
    clock = time.strftime("%H:%M:%S", time.localtime(event["unix_s"]))
    fields = " ".join(
        f"{clean(key)}={_event_value(key, value)}" for key, value in (event["fields"] | event.get("names", {})).items()
    )
    return f"{event['id']:>6}  {clock}  {clean(event['kind'])}  {fields}".rstrip()


def _event_value(key: str, value: Json) -> str:
    text = value_text(key, value)
    if _ID.fullmatch(text):
        return short(text)
    return f'"{text}"' if isinstance(value, str) and " " in text else text
