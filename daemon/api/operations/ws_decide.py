"""Decisions in a workspace: propose, vote, close, see what came of it."""

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from daemon.api.operation import Operation, Params, Result
from daemon.api.operations.ws import One, Which

if TYPE_CHECKING:
    from daemon.app import Node

Rule = Literal["majority", "weighted", "unanimous", "veto", "ranked"]


class Propose(Params, frozen=True):
    """What is to be decided."""

    workspace: Which
    text: Annotated[str, Meta(max_length=16384, description="What to decide.")]
    options: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...],
        Meta(max_length=16, description="Between what; commas between."),
    ] = ("yes", "no")
    key: Annotated[
        str, Meta(max_length=128, description="Under which key it stands: who has a vote there decides.")
    ] = "decisions"
    rule: Annotated[Rule, Meta(description="How votes are counted.")] = "majority"
    quorum: Annotated[int, Meta(ge=0, le=512, description="How many have to vote.")] = 0
    minutes: Annotated[float, Meta(ge=0.0, le=525600.0, description="Closed by itself after so long; 0: by hand.")] = (
        0.0
    )


class Vote(Params, frozen=True):
    """On which proposal, and for what."""

    workspace: Which
    proposal: Annotated[str, Meta(max_length=128, description="Its id, or an end of it.")]
    ranking: Annotated[
        tuple[Annotated[str, Meta(max_length=200)], ...],
        Meta(max_length=16, description="Options, the best first; none to abstain."),
    ] = ()
    veto: Annotated[bool, Meta(description="Stop it, under a rule that allows that.")] = False


class CloseIt(Params, frozen=True):
    """Which proposal."""

    workspace: Which
    proposal: Annotated[str, Meta(max_length=128, description="Its id, or an end of it.")]


class Decision(Result, frozen=True):
    """A proposal, and what came of it. `tally` is by option; while it is open, of the votes so far.

    `n_voters` have a vote on what stands under its key.
    """

    id: str
    key: str
    text: str
    rule: str
    options: list[str]
    is_open: bool
    chosen: str | None
    why: str
    tally: list[int]
    n_voters: int


async def propose(node: "Node", params: Propose) -> Decision:
    """Put something to the vote; this node closes it."""
    from daemon.workspaces import propose as propose_it

    return await propose_it(node, params)


async def vote(node: "Node", params: Vote) -> Decision:
    """Vote; a later vote takes the place of an earlier one."""
    from daemon.workspaces import vote as vote_it

    return await vote_it(node, params)


async def close(node: "Node", params: CloseIt) -> Decision:
    """Have the votes counted that are here."""
    from daemon.workspaces import close as close_it

    return await close_it(node, params)


async def decisions(node: "Node", params: One) -> list[Decision]:
    """What was proposed, and what came of it."""
    from daemon.workspaces import decisions_of, find

    return decisions_of(find(node, params.workspace))


OPERATIONS = (
    Operation(
        noun="ws",
        verb="propose",
        summary="Put something to the vote in a workspace.",
        params=Propose,
        result=Decision,
        handler=propose,
        arguments=("workspace", "text"),
    ),
    Operation(
        noun="ws",
        verb="vote",
        summary="Vote on a proposal.",
        params=Vote,
        result=Decision,
        handler=vote,
        arguments=("workspace", "proposal"),
    ),
    Operation(
        noun="ws",
        verb="close",
        summary="Close a proposal, and count.",
        params=CloseIt,
        result=Decision,
        handler=close,
        arguments=("workspace", "proposal"),
    ),
    Operation(
        noun="ws",
        verb="decisions",
        summary="Show what was proposed and decided in a workspace.",
        params=One,
        result=list[Decision],
        handler=decisions,
        arguments=("workspace",),
    ),
)
