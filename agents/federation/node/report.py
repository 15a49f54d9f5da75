"""An experiment as a page to look at: curves over its rounds and a table of them, as HTML that asks for nothing or PNG.

What members wrote is text in it and never markup; the page itself forbids scripts, and anything from elsewhere.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from html import escape
from typing import Final, NamedTuple

from agents.training.curves import Curve, as_svg
from agents.training.raster import as_png

STYLE: Final = (
    "body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.25em .6em;text-align:right}"
    "td.text,th.text{text-align:left}svg{display:block;margin:1em 0;max-width:100%;height:auto}"
    "code{overflow-wrap:anywhere}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'"
MAX_REFUSALS_SHOWN: Final = 100
_GOSSIP_WORDS: Final = {"selected": "taking part", "in the close": "made a mean"}
_UNITS: Final = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))


class Row(NamedTuple):
    """A round. What is None was not told; `epsilon` is what was spent of a privacy budget by its end.

    `plain_bytes` are those that the updates would take without a codec. Without a coordinator `losses` and `accuracies`
    are of each member's own mean, and `apart` is how far members' models are from their mean, of which it is a part.
    """

    number: int
    phase: str
    n_selected: int
    n_closed: int
    n_refused: int
    update_bytes: int
    plain_bytes: int
    loss: float | None = None
    result_loss: float | None = None
    result_accuracy: float | None = None
    epsilon: float | None = None
    void: str = ""
    losses: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
    apart: float | None = None


class Report(NamedTuple):
    """What is shown. `facts` are pairs of a name and a value; `refusals` are of a round, a member and a reason.

    is_gossip: nobody coordinates: nobody is selected, and no close lists anybody.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    refusals: Sequence[tuple[int, str, str]] = ()
    is_gossip: bool = False


def charts(rows: Sequence[Row], *, is_gossip: bool = False) -> list[tuple[str, list[Curve], str, str]]:
    """Titles, curves, and the names of the axes; what nobody told has no chart."""

    def curve(name: str, told: Callable[[Row], float | None], *, is_marks: bool = False) -> Curve:
        points = [(row.number, value) for row in rows if (value := told(row)) is not None]
        return Curve(name, points, is_marks=is_marks)

    def percent(row: Row) -> float | None:
        return None if row.result_accuracy is None else 100 * row.result_accuracy

    loss = [
        curve("result, held out", lambda row: row.result_loss),
        curve("after training", lambda row: row.loss, is_marks=True),
        curve("best member's mean", lambda row: min(row.losses, default=None)),
        curve("worst member's mean", lambda row: max(row.losses, default=None)),
    ]
    accuracy = [
        curve("result, held out", percent),
        curve("best member's mean", lambda row: 100 * max(row.accuracies) if row.accuracies else None),
        curve("worst member's mean", lambda row: 100 * min(row.accuracies) if row.accuracies else None),
    ]
    participants = [
        curve(_GOSSIP_WORDS["selected"] if is_gossip else "selected", lambda row: row.n_selected),
        curve(_GOSSIP_WORDS["in the close"] if is_gossip else "in the close", lambda row: row.n_closed, is_marks=True),
        *([] if is_gossip else [curve("refused", lambda row: row.n_refused)]),
    ]
    most = max((max(row.update_bytes, row.plain_bytes) for row in rows), default=0)
    unit, n_bytes = next(((unit, n_bytes) for unit, n_bytes in _UNITS if most >= n_bytes), _UNITS[-1])
    updates = [
        curve("as sent", lambda row: row.update_bytes / n_bytes, is_marks=True),
        curve("as plain floats", lambda row: row.plain_bytes / n_bytes),
    ]
    found = [
        ("Loss", loss, "nats"),
        ("Accuracy", accuracy, "percent"),
        ("Models, how far apart", [curve("states, from their mean", lambda row: row.apart)], "part of the mean"),
        ("Participants", participants, "members"),
        ("Updates", updates, unit),
        ("Privacy spent", [curve("epsilon", lambda row: row.epsilon)], "epsilon"),
    ]
    return [
        (title, [curve for curve in curves if curve.points], "round", axis)
        for title, curves, axis in found
        if any(curve.points for curve in curves)
    ]


def as_html(report: Report) -> str:
    """The page, in one file."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(report.title)}</h1>",
        "<table>",
        *(
            f'<tr><th class="text">{escape(name)}</th><td class="text"><code>{escape(value)}</code></td></tr>'
            for name, value in report.facts
        ),
        "</table>",
        *(
            as_svg(title, curves, x_name, y_name, 1.0)
            for title, curves, x_name, y_name in charts(report.rows, is_gossip=report.is_gossip)
        ),
        "<h2>Rounds</h2><table><tr>",
        *(f"<th>{escape(_GOSSIP_WORDS.get(name, name) if report.is_gossip else name)}</th>" for name in _COLUMNS),
        "</tr>",
        *(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(row))}</tr>" for row in report.rows),
        "</table>",
    ]
    if report.refusals:
        parts.append("<h2>Updates that were refused</h2><table>")
        for number, peer, reason in report.refusals[:MAX_REFUSALS_SHOWN]:
            parts.append(
                f'<tr><td>round {number}</td><td class="text"><code>{escape(peer)}</code></td>'
                f'<td class="text">{escape(reason)}</td></tr>'
            )
        parts.append("</table>")
    return "\n".join([*parts, "</body></html>\n"])


def as_picture(report: Report) -> bytes:
    """The same as PNG, without the table."""
    facts = [f"{name}: {value}" for name, value in report.facts]
    return as_png([report.title, *facts], charts(report.rows, is_gossip=report.is_gossip), 1.0)


_COLUMNS: Final = (
    "round", "phase", "selected", "in the close", "refused", "bytes", "loss after training", "loss of the result",
    "accuracy", "epsilon",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    def number(value: float | None, form: str = ".4g") -> str:
        return "-" if value is None else format(value, form)

    return [
        str(row.number),
        row.void or row.phase,
        str(row.n_selected),
        str(row.n_closed),
        str(row.n_refused),
        f"{row.update_bytes:,}",
        number(row.loss),
        number(row.result_loss),
        number(row.result_accuracy, ".1%"),
        number(row.epsilon),
    ]
