"""Where an output comes from, drawn and verified."""

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from daemon.api.operation import Operation, Params, Result

if TYPE_CHECKING:
    from daemon.app import Node


class Of(Params, frozen=True):
    """Of what, and how it is told."""

    cid: Annotated[str, Meta(max_length=128, description="An entry, the output of a step, or content put by one.")]
    form: Annotated[
        Literal["tree", "dot", "prov"], Meta(description="A text, a graph for Graphviz, or W3C PROV-JSON.")
    ] = "tree"
    car: (
        Annotated[
            str,
            Meta(max_length=4096, description="Read it from this CAR of covey ws export alone.", extra={"path": True}),
        ]
        | None
    ) = None
    is_verify: Annotated[bool, Meta(description="Check signatures, hashes and prompts; fail where one is wrong.")] = (
        False
    )


class Checked(Result, frozen=True):
    """Something that was checked; `is_ok` is null where what it takes is not at hand."""

    what: str
    is_ok: bool | None
    text: str


class Provenance(Result, frozen=True):
    """The origin of an output, in the form that was asked for."""

    workspace: str
    title: str
    root: str
    n_items: int
    text: str
    checks: list[Checked]


async def show(node: "Node", params: Of) -> Provenance:
    """The steps, agents, models, prompts and tool outputs that something came from."""
    from daemon.provenance import show as show_it

    return await show_it(node, params)


OPERATIONS = (
    Operation(
        noun="provenance",
        verb="show",
        summary="Show where an output of agents comes from.",
        params=Of,
        result=Provenance,
        handler=show,
        arguments=("cid",),
        command=("provenance",),
    ),
)
