"""What a command adds for people: below its result, where that takes another question to the daemon; or on stderr."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from daemon.cli.text import clean

Json = Any
Ask = Callable[[str], Json]  # an operation without parameters


def _beside_adapters(ask: Ask, params: Json, rows: Json) -> Iterator[str]:
    if not rows:
        yield _why_no_adapters(ask, params)
    if not params:
        names = [clean(one["name"]) for one in ask("training/ls") if one["is_finished"] and not one["is_published"]]
        if names:
            yield f"trained here and not published: {', '.join(names)}. Publish one: covey adapter publish NAME"


def _why_no_adapters(ask: Ask, params: Json) -> str:
    if params:
        return "no adapter fits. To see all: covey adapter ls"
    if not ask("model/ls"):
        return "no adapters: they are heard of for the models here, and there is none. Bring one in: covey model pull"
    if any("adapters" in peer["trusted"] for peer in ask("peer/ls")):
        return "no adapters yet: nothing was heard of. Train one: covey train FILE --name NAME"
    return "no adapters yet. Train one: covey train FILE --name NAME; or trust a peer that has: covey peer trust PEER"


def _beside_providers(ask: Ask, params: Json, rows: Json) -> Iterator[str]:
    if not rows:
        yield "nobody says so. Connected peers are asked themselves by: covey get CID"


def _note_of_added(params: Json, result: Json) -> Iterator[str]:
    if "visibility" not in params and result.get("is_stored") and result["visibility"] == "private":
        yield f"only this node sees it; to let others have it: covey share {result['cid']} --visibility public"


BESIDE: Final[dict[str, Callable[[Ask, Json, Json], Iterator[str]]]] = {
    "adapter/ls": _beside_adapters,
    "net/providers": _beside_providers,
}
NOTES: Final[dict[str, Callable[[Json, Json], Iterator[str]]]] = {"content/add": _note_of_added}  # of params and result
