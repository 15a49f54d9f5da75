"""A federated experiment as a page to look at."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from daemon.api.operation import Operation, Params, Result
from daemon.api.operations.fl import CidText

if TYPE_CHECKING:
    from daemon.app import Node


class Report(Params, frozen=True):
    """Which experiment, and where its report goes."""

    experiment: CidText
    out: Annotated[
        str,
        Meta(
            max_length=4096,
            description="A file that ends in .html or .png (default: the experiment's CID, with .html).",
            extra={"path": True, "default_from": "experiment", "suffix": ".html"},
        ),
    ]


class Reported(Result, frozen=True):
    """The report is written; it needs nothing else to be looked at."""

    experiment: str
    out: str
    n_rounds: int
    n_bytes: int


async def report(node: "Node", params: Report) -> Reported:
    """Write curves and a table of all rounds: losses, accuracy, participants, refused updates, bytes."""
    from daemon.standings import write_report

    return await write_report(node, params)


OPERATIONS = (
    Operation(
        noun="fl",
        verb="report",
        summary="Draw the curves of an experiment into an HTML page or a PNG.",
        params=Report,
        result=Reported,
        handler=report,
        arguments=("experiment",),
    ),
)
