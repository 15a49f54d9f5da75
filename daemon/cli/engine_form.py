"""How `covey engine status` reads."""

from collections.abc import Iterator
from typing import Any

from daemon.cli.render import bytes_text, duration_text
from daemon.cli.text import clean

Json = Any


def engine_lines(result: Json) -> Iterator[str]:
    """What is known; what the engine does not say is left out."""
    yield from _backend_lines(result["backend"])
    head = clean(result["state"])
    if result["pid"] is not None:
        head += f", process {result['pid']}"
    if result["uptime_s"] is not None:
        head += f", up {duration_text(result['uptime_s'])}"
    if result["state"] == "waiting":
        head += f": it died, and may start again in {duration_text(result['wait_s'])}"
    if result["state"] == "stopped":
        head += ": the next request starts it" if result["backend"] is None else ": what is not the backend's starts it"
    yield f"engine    {head}"
    if result["model"] is not None:
        yield f"model     {clean(result['model'])} ({clean(result['dtype'])} on {clean(result['device'])})"
    memory = [] if result["rss_bytes"] is None else [f"{bytes_text(result['rss_bytes'])} in use"]
    if result["cache_budget_bytes"]:
        used, budget = bytes_text(result["cache_bytes"]), bytes_text(result["cache_budget_bytes"])
        memory.append(f"cache of prompts {used} of {budget}")
    if result["adapters"] and result["adapter_budget_bytes"]:
        used = bytes_text(sum(one["n_bytes"] for one in result["adapters"]))
        memory.append(f"adapters {used} of {bytes_text(result['adapter_budget_bytes'])}")
    if memory:
        yield f"memory    {', '.join(memory)}"
    if result["n_running"] is not None:
        yield f"answers   {result['n_running']} running, {result['n_waiting']} waiting, {_speed(result)}"
    if result["calls"]:
        calls = ", ".join(f"{n} {clean(kind)}" for kind, n in sorted(result["calls"].items()))
        yield f"in hand   {calls}"
    for place, one in enumerate(result["adapters"]):
        running = f", {one['n_running']} answering" if one["n_running"] else ""
        name = f"{clean(one['name'])}  rank {one['rank']}, {bytes_text(one['n_bytes'])}{running}"
        yield f"{'adapters' if place == 0 else '':<8}  {name}"
    yield f"restarts  {result['n_restarts']}, deaths {result['n_deaths']}"
    if result["last_death"] is not None:
        yield f"last      {duration_text(result['last_death_s_ago'])} ago: {clean(result['last_death'])}"
    yield from _lines_beside("trainer", result["trainer"])
    yield from _lines_beside("workshop", result["workshop"])


def _backend_lines(backend: Json) -> Iterator[str]:
    """Where there is one, it comes first: it is who answers."""
    if backend is None:
        return
    yield f"backend   {clean(backend['url'])} ({clean(backend['kind'])}), its model {clean(backend['model'])}"
    if backend["trouble"] is not None:
        yield f"          does not answer: {clean(backend['trouble'])}"
    else:
        yield f"          answers, {backend['n_running']} running"
    if backend["adapters"]:
        yield f"          was given {', '.join(map(clean, backend['adapters']))}"


def _lines_beside(title: str, beside: Json) -> Iterator[str]:
    """Nothing of one that was never needed."""
    if beside["pid"] is not None:
        does = [f"training {clean(name)}" for name in beside["trainings"]]
        does += [f"{n} {clean(kind)}" for kind, n in sorted(beside["calls"].items()) if kind != "train"]
        memory = "" if beside["rss_bytes"] is None else f", {bytes_text(beside['rss_bytes'])} in use"
        yield f"{title:<8}  process {beside['pid']}{memory}: {', '.join(does) or 'nothing to do'}"
    if beside["last_death"] is not None:
        died = f"{title:<8}  " if beside["pid"] is None else " " * 10
        yield f"{died}died {duration_text(beside['last_death_s_ago'])} ago: {clean(beside['last_death'])}"


def _speed(result: Json) -> str:
    return f"{result['tokens_per_s']:.1f} tok/s"
