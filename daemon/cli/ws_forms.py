"""How workspaces look on a terminal: a line an entry, tables of members and workspaces."""

import json
import time
from collections.abc import Iterator
from typing import Any, Final

from daemon.cli.render import pairs, short, table
from daemon.cli.text import clean

Json = Any
MAX_TEXT_CHARS: Final = 400


def created(row: Json) -> Iterator[str]:
    """A new workspace, and how others come in."""
    yield f"{row['workspace']}  {clean(row['title'])}"
    yield f"next: let others in with `covey ws invite {row['workspace']} PEER --can write,run`"


def workspaces(rows: Json) -> Iterator[str]:
    """A table; one alone in full."""
    if not rows:
        yield "no workspaces yet. Begin one: covey ws create TITLE; or take part: covey ws join CID --from PEER"
    elif len(rows) == 1:
        yield from pairs({key: value for key, value in rows[0].items() if key != "heads"})
    else:
        keys = ("workspace", "title", "n_members", "n_entries", "n_reached")
        yield from table([{key: row[key] for key in keys} for row in rows])


def invited(row: Json) -> Iterator[str]:
    """The grant, and what its audience does with it."""
    yield f"granted to {row['peer']}: {row['grant']}"
    yield f"next: it takes part with `{row['join']}`"


def members(rows: Json) -> Iterator[str]:
    """A table."""
    yield from table(
        [
            {
                "name": row["name"] or "-",
                "peer": row["peer"],
                "may": ", ".join(row["can"]),
                "keys": " ".join(row["keys"]),
                "weight": row["weight"],
                "n_entries": row["n_entries"],
                "until": _until(row["grants"]),
                "is": ", ".join(_is(row)) or "-",
            }
            for row in rows
        ]
    )


def _until(grants: Json) -> str:
    """When each of its grants ends, each time once."""
    ends = sorted({grant["until_unix_s"] or 0 for grant in grants})
    return ", ".join(time.strftime("%Y-%m-%d %H:%M", time.localtime(end)) if end else "no end" for end in ends) or "-"


def _is(row: Json) -> Iterator[str]:
    if row["is_owner"]:
        yield "owner"
    if not row["has_joined"]:
        yield "invited"
    if row["is_reached"]:
        yield "reached"
    if row["is_forked"]:
        yield "forked: what it says is void"


def said(row: Json) -> Iterator[str]:
    """What was signed."""
    yield row["id"]
    if row["code"]:
        yield f"it has no effect: {row['code']}"


def entry(row: Json) -> Iterator[str]:
    """One line of a history."""
    who = clean(row["name"] or short(row["author"]))
    void = f"  [no effect: {row['code']}]" if row["code"] else ""
    to = f" (to {short(row['recipient'])})" if row["recipient"] else ""
    yield f"{row['height']:>5}  {who}  {row['kind']}{to}  {_text(row['content'])}{void}"


def _text(content: Json) -> str:
    parts = ["(sealed under a key that this node has not)"] if content.get("withheld") is True else []
    for name, value in content.items():
        if value in (None, "", [], 0, False) or name == "withheld":
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text = short(text) if text.startswith(("bafy", "12D3Koo")) else text
        parts.append(text if name in ("key", "text", "value") else f"{name}={text}")
    return clean(" ".join(parts))[:MAX_TEXT_CHARS]


def values(rows: Json) -> Iterator[str]:
    """A line each: the key, its value, and the content that belongs to it."""
    if not rows:
        yield "no key has a value yet. Give one: covey ws put WORKSPACE KEY VALUE"
    for row in rows:
        value = row["value"] if isinstance(row["value"], str) else json.dumps(row["value"], ensure_ascii=False)
        value = "(sealed under a key that this node has not)" if row["is_withheld"] else value
        link = f"  {row['link']}" if row["link"] else ""
        yield clean(f"{row['key']}  {value}{link}")


def decisions(rows: Json) -> Iterator[str]:
    """A line a proposal."""
    if not rows:
        yield "nothing was proposed yet. Propose: covey ws propose WORKSPACE TEXT --options yes,no"
    for row in rows:
        tally = ", ".join(f"{name} {n}" for name, n in zip(row["options"], row["tally"], strict=True))
        came = "open" if row["is_open"] else (row["chosen"] or f"nothing chosen, {row['why']}")
        about = f"{row['key']}, {row['rule']}, {row['n_voters']} voters"
        yield clean(f"{row['id'][-12:]}  {row['text']}  {about}: {tally} -> {came}")
