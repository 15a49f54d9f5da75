"""How experiments look on a terminal: a line for each change while they are watched, tables when asked for."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from agents.training.curves import Curve, as_text
from daemon.cli.render import bytes_text, pairs, short, table
from daemon.cli.text import clean

Json = Any


def status(rows: Json) -> Iterator[str]:
    """One experiment in full, several as a table."""
    if not rows:
        yield "no experiments yet. Make one: covey fl plan PLAN.toml; or take part: covey fl join CID --from PEER"
        return
    if len(rows) > 1:
        yield from table(
            [
                {
                    "experiment": short(row["experiment"]),
                    "state": row["state"],
                    "n_joined": row["n_joined"],
                    "title": row["title"],
                    "doing": row["doing"],
                }
                for row in rows
            ]
        )
        return
    yield from _whole(rows[0])


def _whole(row: Json) -> Iterator[str]:
    names = {one["peer"]: one["name"] or short(one["peer"]) for one in row["members"]}
    hidden = ("type", "rounds", "members", "is_over", "epsilon", "epsilon_budget", "delta")
    head = {key: value for key, value in row.items() if key not in hidden}
    if row["epsilon_budget"] is not None:
        head["privacy"] = _privacy(row)
    if row["gossip"] is None:
        head.pop("gossip")
    head["coordinator"] = names.get(row["coordinator"], row["coordinator"])
    yield from pairs(head)
    if row["rounds"]:
        yield ""
        yield "rounds:"
        yield from table([_round(one, row["gossip"] is not None) for one in row["rounds"]])
        yield from _curves(row["rounds"])
        for one in row["rounds"]:
            for refused in one["refused"]:
                who = names.get(refused["peer"], short(refused["peer"]))
                yield clean(f"round {one['round']}: the update of {who} was refused: {refused['reason']}")
    yield ""
    yield "members:"
    yield from table([_member(one, row["gossip"] is not None) for one in row["members"]], wraps=True)
    if row["state"].startswith("waiting"):
        yield ""
        yield f"next: members join with `covey fl join {row['experiment']} --from PEER --data PATH`; then its author"
        yield f"starts it: covey fl start {row['experiment']}"


def _curves(rounds: Json) -> Iterator[str]:
    """Loss and accuracy over the rounds, once there is more to them than the table shows at a glance."""
    shown = {
        "loss": [("result, held out", "result_loss", False), ("after training", "loss", True)],
        "accuracy": [("result, held out", "result_accuracy", False)],
    }
    for axis, curves in shown.items():
        found = [
            Curve(name, [(one["round"], one[key]) for one in rounds if one[key] is not None], is_marks=is_marks)
            for name, key, is_marks in curves
        ]
        if any(len(curve.points) > 2 for curve in found):
            yield ""
            yield from as_text([curve for curve in found if curve.points], "rounds", axis).splitlines()


def _privacy(row: Json) -> str:
    spent = "no bound" if row["epsilon"] is None else f"{row['epsilon']:.4g}"
    return f"epsilon {spent} of {row['epsilon_budget']:g} at delta {row['delta']:g}"


# A terminal's width cuts what comes later.
_FIRST: Final = (
    "round",
    "phase",
    "loss",
    "result_loss",
    "result_accuracy",
    "n_closed",
    "n_means",
    "n_refused",
    "updates",
)


def _round(one: Json, is_gossip: bool) -> Json:
    hidden = {"result", "void", "refused", "update_bytes"}
    if not one["n_keys"]:
        hidden |= {"n_keys", "n_shares", "n_unmasked"}
    shown = {key: value for key, value in one.items() if key not in hidden}
    if is_gossip:
        names = {"n_selected": "n_active", "n_submitted": "n_states", "n_receipts": "n_taken", "n_closed": "n_means"}
        without = ("term", "n_votes", *hidden)
        shown = {names.get(key, key): value for key, value in shown.items() if key not in without}
    if one["clip_bound"] is None:
        shown.pop("clip_bound")
    else:
        shown["clip_bound"] = f"{one['clip_bound']:.4g}"
    for key in ("loss", "result_loss", "result_accuracy"):
        shown[key] = f"{one[key]:.4g}" if one[key] is not None else "-"
    shown["updates"] = bytes_text(one["update_bytes"])
    shown = {key: shown.pop(key) for key in _FIRST if key in shown} | shown
    if is_gossip:
        return shown
    return shown | {"result": one["void"] or (short(one["result"]) if one["result"] else "-")}


def _member(one: Json, is_gossip: bool) -> Json:
    words = ("takes part", "gave a state", "made a mean") if is_gossip else ("selected", "submitted", "voted")
    did = zip(("joined", *words), (one[word] for word in ("joined", "selected", "submitted", "voted")), strict=True)
    acts = [word for word, is_so in did if is_so]
    broken = ["broke the rules: covey fl verify tells how"] if one["is_broken"] else []
    return {"name": one["name"] or "-", "peer": one["peer"], "in_this_round": ", ".join([*acts, *broken]) or "follows"}


def watched(row: Json) -> Iterator[str]:
    """One line: where it stands now."""
    last = row["rounds"][-1] if row["rounds"] else None
    parts = [row["state"], f"{row['n_joined']} joined", f"{row['n_reachable']} reachable"]
    if last is not None:
        if last["n_keys"]:
            parts.append(f"{last['n_keys']} keys, {last['n_shares']} shares, {last['n_unmasked']} unmask")
        of = f"{last['n_submitted']}/{last['n_selected']}"
        if row["gossip"]:
            parts.append(f"{of} states, {last['n_receipts']} taken, {last['n_closed']} means")
        else:
            parts.append(f"{of} submitted, {last['n_receipts']} received, {last['n_votes']} votes")
        if last["term"]:
            parts.append(f"term {last['term']}")
        if last["clip_bound"] is not None:
            parts.append(f"clipped to {last['clip_bound']:.4g}")
        if last["loss"] is not None:
            parts.append(f"loss {last['loss']:.4g}")
        parts += _scored(row["rounds"])
        if last["void"]:
            parts.append(f"void: {last['void']}")
        if last["n_refused"]:
            parts.append(f"{last['n_refused']} refused")
        parts.append(f"updates {bytes_text(last['update_bytes'])}")
    parts += [_privacy(row)] if row["epsilon_budget"] is not None else []
    parts.append(f"fetched {bytes_text(row['fetched_bytes'])}")
    parts += [row["doing"]] if row["doing"] else []
    parts += [f"trouble: {row['trouble']}"] if row["trouble"] else []
    yield clean("  ".join(parts))


def watched_to_the_end(row: Json) -> Iterator[str]:
    """The curves, and what there is to do, once the last line was shown."""
    yield from _curves(row["rounds"])
    if row["is_over"] and (row["gossip"] or any(one["result"] for one in row["rounds"])):
        yield f"next: covey fl result {row['experiment']} --out FILE, or prove it: covey fl verify {row['experiment']}"


def _scored(rounds: Json) -> list[str]:
    """How the last result does that somebody looked at."""
    found = next((one for one in reversed(rounds) if one["n_scores"]), None)
    if found is None:
        return []
    words = [f"result of round {found['round']}, on held-out data of {found['n_scores']}:"]
    words += [f"loss {found['result_loss']:.4g}"] if found["result_loss"] is not None else []
    words += [f"accuracy {100 * found['result_accuracy']:.1f} %"] if found["result_accuracy"] is not None else []
    return [" ".join(words)]


def fetched(result: Json) -> Iterator[str]:
    """The result, and what can be done with it."""
    yield from pairs(result)
    if result["adapter"]:
        yield f"next: covey adapter publish {Path(result['adapter']).name}"


def verified(result: Json) -> Iterator[str]:
    """The findings, and what they come to."""
    yield from table(
        [
            {
                "round": one["round"] or "all",
                "verdict": one["verdict"],
                "by": one["name"] or (short(one["by"]) if one["by"] else "-"),
                "what": one["what"],
            }
            for one in result["findings"]
        ],
        wraps=True,
    )
    yield f"{clean(result['title'])}: {result['verdict']}, from {result['n_events']:,} signed events"


def joined(result: Json) -> Iterator[str]:
    """How this node takes part, and what to know of it."""
    yield from pairs({key: value for key, value in result.items() if key != "limits"})
    yield from (clean(f"note: {why}") for why in result["limits"])


def started(result: Json) -> Iterator[str]:
    """What its author reads."""
    yield clean(result["text"])


def planned(result: Json) -> Iterator[str]:
    """The CID, and what its members type."""
    yield result["experiment"]
    yield from (f"note: {why}" for why in result["limits"])
    yield from (f"nobody can prove: {why}" for why in result["undecidable"])
    if result["needs_grants"]:
        yield f"next, for each other who is to train: covey fl grant {result['experiment']} PEER"
    yield f"next, on each of {result['n_members']} members: {result['join']}"
    yield f"then here: covey fl start {result['experiment']}"


def forgotten(result: Json) -> Iterator[str]:
    """What went, and how to have its room."""
    yield clean(f"forgotten: {result['title'] or result['experiment']}")
    yield (
        f"held no more: {_files(result['n_files'])}; shown no more: {_files(result['n_hidden'])}; "
        f"gone: {bytes_text(result['n_journal_bytes'])} of its history"
    )
    if result["n_bytes"]:
        yield f"next: covey repo gc frees {bytes_text(result['n_bytes'])} that nothing else holds"


def _files(n: int) -> str:
    return f"{n:,} file{'' if n == 1 else 's'}"


def exported(result: Json) -> Iterator[str]:
    """What was written."""
    what = f"{result['n_events']:,} events, {result['n_blocks']:,} blocks, {bytes_text(result['size_bytes'])}"
    yield f"{result['root']}  {what} -> {clean(result['out'])}"
    if result["n_missing"]:
        yield f"{result['n_missing']:,} blocks that events name are not here and were left out"


FORMS: Final[dict[str, Callable[[Json], Iterator[str]]]] = {
    "fl/export": exported,
    "fl/forget": forgotten,
    "fl/join": joined,
    "fl/plan": planned,
    "fl/result": fetched,
    "fl/start": started,
    "fl/status": status,
    "fl/verify": verified,
    "fl/watch": watched,
}
ENDS: Final[dict[str, Callable[[Json], Iterator[str]]]] = {"fl/watch": watched_to_the_end}
"""What is said behind the last item of a stream that came to its end."""
