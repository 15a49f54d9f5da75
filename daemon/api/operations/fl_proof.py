"""Federated experiments, proved: verify them, and export them so that others can."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from daemon.api.operation import Operation, Params, Progress, Result, reporting
from daemon.api.operations.fl import CidText

if TYPE_CHECKING:
    from daemon.api.progress import Report
    from daemon.app import Node

Verdict = Literal["proved", "refuted", "not decidable"]


class Verify(Params, frozen=True):
    """What to check."""

    what: Annotated[
        str,
        Meta(
            max_length=4096, description="An experiment that is followed here, or a CAR.", extra={"path_if_there": True}
        ),
    ]
    is_offline: Annotated[bool, Meta(description="Fetch nothing: check with what is here.")] = False


class Finding(Result, frozen=True):
    """One thing that was checked; `round` is 0 for the experiment as a whole, `by` who is to blame, `name` what that
    peer is called here."""

    round: int
    verdict: Verdict
    what: str
    by: str | None
    name: str | None = None


class Verified(Result, frozen=True, tag_field="type", tag="verified"):
    """What came of it."""

    experiment: str
    title: str
    verdict: Verdict
    n_events: int
    findings: list[Finding]


class Export(Params, frozen=True):
    """What to write out, and where to."""

    experiment: CidText
    out: Annotated[
        str,
        Meta(
            max_length=4096,
            description="Where to write it (default: the experiment's CID, with .car).",
            extra={"path": True, "default_from": "experiment", "suffix": ".car"},
        ),
    ]
    is_offline: Annotated[bool, Meta(description="Fetch nothing: leave out what is not here.")] = False


class Exported(Result, frozen=True, tag_field="type", tag="exported"):
    """The CAR is written. Of what events name, `n_missing` blocks are not here."""

    experiment: str
    root: str
    out: str
    n_events: int
    n_blocks: int
    size_bytes: int
    n_missing: int


async def verify(node: "Node", params: Verify) -> AsyncIterator[Progress | Verified]:
    """Read every signed event again, compute every round again, and say what is proved, or refuted by whom."""
    from functools import partial

    from agents.federation.files.audit import Refuted, Undecided
    from daemon.api.progress import telling
    from daemon.experiments import verify as verify_it

    verdict = ""
    async with aclosing(telling(partial(verify_it, node, params))) as items:
        async for item in items:
            verdict = getattr(item, "verdict", verdict)
            yield item
    if verdict == "refuted":
        raise Refuted("refuted: the findings say what, and by whom")
    if verdict != "proved":
        raise Undecided("not decidable: the findings say why")


@reporting
async def export(node: "Node", params: Export, report: "Report") -> Exported:
    """Write plan, events, updates, results and tensors to one CAR, which verifies offline: `covey fl verify FILE`."""
    from daemon.experiments import export as export_it

    return await export_it(node, params, report)


OPERATIONS = (
    Operation(
        noun="fl",
        verb="verify",
        summary="Prove or refute every round of an experiment, or of a CAR.",
        params=Verify,
        result=Progress | Verified,
        handler=verify,
        is_stream=True,
        arguments=("what",),
    ),
    Operation(
        noun="fl",
        verb="export",
        summary="Write a whole experiment to one CAR.",
        params=Export,
        result=Progress | Exported,
        handler=export,
        is_stream=True,
        arguments=("experiment",),
    ),
)
