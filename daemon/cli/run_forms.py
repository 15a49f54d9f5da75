"""How runs and agents look on a terminal: a line a step, with who did it and what it cost."""

from collections.abc import Iterator
from typing import Any, Final

from daemon.cli.render import duration_text, short, table
from daemon.cli.text import clean

Json = Any
MAX_OUTPUT_CHARS: Final = 100


def run(row: Json) -> Iterator[str]:
    """A run, with its budget and its steps."""
    why = f": {row['why']}" if row["why"] else ""
    yield clean(f"{row['run']}  {row['state']}{why}  {', '.join(_spent(row))}")
    for step in row["steps"]:
        yield f"  {_mark(step)} {_step(step)}"


def _spent(row: Json) -> Iterator[str]:
    yield f"{row['n_done']} of {row['max_steps'] or row['n_steps']} steps"
    if row["n_tokens"] or row["max_tokens"]:
        yield f"{row['n_tokens']}{' of ' + str(row['max_tokens']) if row['max_tokens'] else ''} tokens"
    if row["left_s"] is not None and row["state"] in ("running", "waiting"):
        yield f"{duration_text(row['left_s'])} left"
    if row["n_retried"]:
        yield f"{row['n_retried']} retried"


def _mark(step: Json) -> str:
    if step["is_failed"]:
        return "failed "
    if step["is_done"]:
        return "done   "
    return "begun  " if step["n_attempts"] else "       "


def _step(step: Json) -> str:
    name = step["name"] + (f" (round {step['time'] + 1})" if step["time"] else "")
    who = step["agent"] or step["role"] or step["do"]
    by = f" on {short(step['by'])}" if step["by"] else ""
    again = f", {step['n_attempts']} attempts" if step["n_attempts"] > 1 else ""
    beside = "+ " if step["is_beside"] else ""
    output = f"  {_text(step['output'])}" if step["output"] is not None else ""
    return clean(f"{beside}{name}  {who}{by}{again}{output}")


def _text(value: Json) -> str:
    text = " ".join((value if isinstance(value, str) else str(value)).split())
    return text if len(text) <= MAX_OUTPUT_CHARS else text[: MAX_OUTPUT_CHARS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def planned(row: Json) -> Iterator[str]:
    """The plan alone, so that it can go into a file."""
    yield clean(row["plan"].rstrip(), keep_lines=True)


def provenance(row: Json) -> Iterator[str]:
    """The graph, and what was checked."""
    yield clean(row["text"], keep_lines=True)
    if row["checks"]:
        yield ""
    for check in row["checks"]:
        mark = {True: "holds", None: "?    ", False: "wrong"}[check["is_ok"]]
        yield clean(f"{mark}  {check['what']}: {check['text']}")


def replayed(row: Json) -> Iterator[str]:
    """A line for a step, and what differs."""
    yield clean(
        f"{'same   ' if row['is_same'] else 'differs'}  {row['name']}  {row['recorded']}  {row['why']}".rstrip()
    )
    for line in row["diff"]:
        yield clean(f"    {line}")


def runs(rows: Json) -> Iterator[str]:
    """Each run."""
    if not rows:
        yield "no runs yet. Begin one: covey run start WORKSPACE PLAN"
    for row in rows:
        yield from run(row)


def agents(rows: Json) -> Iterator[str]:
    """A table."""
    if not rows:
        yield "no agents yet. Host one: covey agent add WORKSPACE FILE"
    keys = ("name", "role", "host", "model", "tools", "description")
    yield from table([{key: _cell(row, key) for key in keys} for row in rows])


def agent(row: Json) -> Iterator[str]:
    """An agent that was just added."""
    yield clean(f"{row['name']}  role {row['role']}, {_cell(row, 'model')}")
    yield f"card {row['card']}"


def answer(row: Json) -> Iterator[str]:
    """What an agent answered, and where it stands."""
    yield clean(row["answer"], keep_lines=True)
    yield clean(f"({row['agent']} on {short(row['by'])}; where it comes from: covey provenance {row['commit']})")


def memory(rows: Json) -> Iterator[str]:
    """What an agent remembers, a line each, and how to call it."""
    if not rows:
        yield "nothing. Tell it something: covey agent remember WORKSPACE AGENT TEXT"
    for row in rows:
        yield from remembered(row)


def remembered(row: Json) -> Iterator[str]:
    """Something that an agent remembers."""
    about = [row["kind"]] + (["shared"] if row["is_shared"] else [])
    about += [f"adapter {row['adapter']}"] if row["adapter"] else []
    about += [f"done by {row['source']}"] if row["source"] else []
    about += [f"score {row['score']:.4f}"] if row["score"] is not None else []
    yield clean(row["text"])
    yield f"  {', '.join(about)}"
    yield f"  {row['cid']}"


def _cell(row: Json, key: str) -> str:
    match key:
        case "host":
            at = row["host_name"] or short(row["host"])
            return at if row["is_reached"] else f"{at} (out of reach)"
        case "model":
            model = row["model"]
            adapter = model.get("adapter", "none")
            return (
                f"{model.get('kind')} {model.get('name') or ''}{' + ' + adapter if adapter != 'none' else ''}".strip()
            )
        case "tools":
            return " ".join(row["tools"]) or "-"
        case _:
            return row[key] or "-"
