"""Federated experiments: plan, join, start, watch, use what comes of them."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from daemon.api.operation import Done, Operation, Params, Progress, Result, reporting

if TYPE_CHECKING:
    from daemon.api.progress import Report
    from daemon.app import Node

CidText = Annotated[str, Meta(max_length=128, description="The experiment, as `covey fl plan` names it.")]
PeerText = Annotated[str, Meta(max_length=512)]


class Plan(Params, frozen=True):
    """What is trained, by whom, and how. Options go before what stands in the file."""

    file: (
        Annotated[
            str, Meta(max_length=4096, description="A plan in TOML; - for stdin.", extra={"path": True, "stdin": True})
        ]
        | None
    ) = None
    title: Annotated[str, Meta(max_length=200, description="What people call it.")] | None = None
    task: Annotated[str, Meta(max_length=64, description="What is trained: softmax, lora, given, ...")] | None = None
    settings: Annotated[
        tuple[Annotated[str, Meta(max_length=256)], ...],
        Meta(max_length=64, description="Settings of the task: NAME=VALUE, commas between."),
    ] = ()
    initial: (
        Annotated[
            str,
            Meta(
                max_length=4096,
                description="The tensors to begin with: a file, or a CID (default: the task makes them).",
                extra={"path_if_there": True},
            ),
        ]
        | None
    ) = None
    rounds: Annotated[int, Meta(ge=1, le=1 << 20, description="How many.")] | None = None
    members: Annotated[
        tuple[PeerText, ...], Meta(max_length=1024, description="Who may see and join, by id or name. You are one.")
    ] = ()
    deputies: Annotated[
        tuple[PeerText, ...],
        Meta(max_length=1024, description="Who coordinates, in order; `me` is you (default: you, then the members)."),
    ] = ()
    min_participants: Annotated[int, Meta(ge=1, le=1024, description="Fewer updates make a round void.")] | None = None
    selected: Annotated[int, Meta(ge=0, le=1024, description="How many take part in a round; 0 for all.")] | None = None
    deadline_s: Annotated[float, Meta(ge=0.1, le=30 * 86400.0, description="From a round's opening.")] | None = None
    lease_s: (
        Annotated[float, Meta(ge=0.1, le=30 * 86400.0, description="How long a silent coordinator is waited for.")]
        | None
    ) = None
    rule: (
        Annotated[str, Meta(max_length=64, description="How updates become one: fedavg, median, krum, ...")] | None
    ) = None
    before: Annotated[
        tuple[Annotated[str, Meta(max_length=64)], ...],
        Meta(max_length=4, description="Steps before it: nnm, bucketing."),
    ] = ()
    n_bad: (
        Annotated[int, Meta(ge=0, le=1024, description="How many bad updates the rule and these steps are to bear.")]
        | None
    ) = None


class Planned(Result, frozen=True, tag_field="type", tag="planned"):
    """The plan is signed. Members take part with `covey fl join EXPERIMENT --from PEER`.

    limits: what it promises less of than one may think; undecidable: what `covey fl verify` can never prove of it;
    needs_grants: others train once `covey fl grant` lets them in, those too whom the plan names.
    """

    experiment: str
    title: str
    initial: str
    n_params: int
    n_members: int
    needs_grants: bool
    join: str
    limits: list[str]
    undecidable: list[str]


class One(Params, frozen=True):
    """Which experiment."""

    experiment: CidText


class JoinIt(Params, frozen=True):
    """Which experiment, and what this node trains on."""

    experiment: CidText
    data: (
        Annotated[
            str,
            Meta(
                max_length=4096,
                description="What to train on; it never leaves this node. Without it: follow and verify alone.",
                extra={"path": True},
            ),
        ]
        | None
    ) = None
    rank: Annotated[
        int,
        Meta(ge=0, le=512, description="The own adapter's rank, where the plan's LoRA way lets you; 0 for the plan's."),
    ] = 0
    has: Annotated[
        tuple[Annotated[str, Meta(max_length=64)], ...],
        Meta(max_length=4, description="What this node has, where the plan asks and it was not measured: NAME=VALUE."),
    ] = ()
    from_: (
        Annotated[
            str, Meta(max_length=512, description="A member who has the plan: id, name or address (default: ask all).")
        ]
        | None
    ) = None


class Joined(Result, frozen=True):
    """This node takes part. `is_training`: from the next round on that is not closed yet.

    let_in_by: what lets it train, the plan or a grant; or which grant is missing.
    says: what this node says that it has, of what the plan asks for; all members read it.
    limits: what it can do less of than one may think.
    """

    experiment: str
    title: str
    task: str
    is_training: bool
    let_in_by: str
    says: str
    state: str
    limits: list[str]


class Called(Result, frozen=True):
    """A peer, and what it is called here."""

    peer: str
    name: str | None


class Started(Result, frozen=True):
    """It has begun with `participants`; `others` are the members who follow, or come in later where one can."""

    text: str
    participants: list[Called]
    others: list[Called]


class Which(Params, frozen=True):
    """One experiment, or all."""

    experiment: CidText | None = None


class Refused(Result, frozen=True):
    """An update that was not admitted."""

    peer: str
    reason: str


class Round(Result, frozen=True):
    """A round, as far as it is known here. Losses and accuracies are the participants' word.

    `loss` is the mean after each one's own training; `result_loss` and `result_accuracy` are those of the result, on
    what `n_scores` participants held out. `update_bytes` are those of the updates that are here. `n_keys`, `n_shares`,
    `n_unmasked`: who has got how far under secure aggregation; 0 without it. `clip_bound`: what updates are clipped to,
    or participants' single gradients; null without a promise of privacy, or where it is not known here yet.
    """

    round: int
    phase: str
    term: int
    n_keys: int
    n_shares: int
    n_selected: int
    n_submitted: int
    n_receipts: int
    n_votes: int
    n_unmasked: int
    n_closed: int
    n_refused: int
    update_bytes: int
    loss: float | None
    n_scores: int
    result_loss: float | None
    result_accuracy: float | None
    refused: list[Refused]
    result: str | None
    void: str
    clip_bound: float | None


class Member(Result, frozen=True):
    """A member, and what it did in the round at hand. `is_broken`: two of its events prove that it broke the rules."""

    peer: str
    name: str | None
    joined: bool
    selected: bool
    submitted: bool
    voted: bool
    is_broken: bool


class Standing(Result, frozen=True, tag_field="type", tag="standing"):
    """How an experiment stands. `trouble` is what failed here last and is tried again, or which event makes
    this program fail, so that its author is heard no further until the next start.

    epsilon: what results have told at the plan's `delta`, of `epsilon_budget`; null without a promise of privacy, and
    where there is no bound, or the own ledger cannot be read.
    gossip: how members average without a coordinator, else null. `n_submitted` are then states, `n_receipts` those that
    somebody took, `n_closed` means, and who voted has made its mean.
    """

    experiment: str
    title: str
    state: str
    is_over: bool
    task: str
    is_training: bool
    n_members: int
    n_joined: int
    n_reachable: int
    n_events: int
    coordinator: str | None
    doing: str
    trouble: str
    fetched_bytes: int
    epsilon: float | None
    epsilon_budget: float | None
    delta: float | None
    gossip: str | None
    rounds: list[Round]
    members: list[Member]


class Fetch(Params, frozen=True):
    """Which result, and what to make of it: a file of its tensors, or an adapter."""

    experiment: CidText
    round: Annotated[int, Meta(ge=0, le=1 << 20, description="Of which round; 0 for the last that has one.")] = 0
    out: (
        Annotated[str, Meta(max_length=4096, description="Write the tensors to this file.", extra={"path": True})]
        | None
    ) = None
    as_adapter: (
        Annotated[
            str,
            Meta(
                pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z",
                description="Keep it as an adapter, as `covey train` does: letters, digits, dots, dashes.",
            ),
        ]
        | None
    ) = None
    of: (
        Annotated[
            str,
            Meta(max_length=512, description="Without a coordinator: whose mean, by id or name (default: your own)."),
        ]
        | None
    ) = None


class Fetched(Result, frozen=True):
    """A round's result: its document, and its tensors in safetensors form. `adapter` is a folder to publish.

    Without a coordinator each member has a mean of its own: `result` is the event in which it is said.
    """

    experiment: str
    round: int
    result: str
    tensors: str
    n_updates: int
    out: str | None
    adapter: str | None = None


class CancelIt(Params, frozen=True):
    """Which experiment, and why."""

    experiment: CidText
    reason: Annotated[str, Meta(max_length=500, description="What the members read.")] = ""


@reporting
async def plan(node: "Node", params: Plan, report: "Report") -> Planned:
    """Check a plan, sign it, and follow it. A plan that would not hold is refused with the reason."""
    from daemon.experiments import make_plan

    return await make_plan(node, params, report)


async def start(node: "Node", params: One) -> Started:
    """Begin, with those who have joined by now. For the plan's author, once."""
    from daemon.experiments import start as start_it

    return await start_it(node, params)


async def join(node: "Node", params: JoinIt) -> Joined:
    """Take part in an experiment: train in it with --data, or follow and verify it without."""
    from daemon.experiments import join as join_it

    return await join_it(node, params)


async def leave(node: "Node", params: One) -> Done:
    """Train no more from the next round on; what was said stays, and can be verified."""
    from daemon.experiments import find
    from daemon.standings import state

    one = find(node, params.experiment)
    if one.is_over:
        return Done(text=f"nobody trains in it any more: it is {state(one)}")
    if node.identity.peer_id in one.book.joined_now():
        await one.do(one.member.leave)
        return Done(text="left: this node trains no more from the next round on, and still follows")
    return Done(text="this node was not training in it")


async def status(node: "Node", params: Which) -> list[Standing]:
    """How experiments stand, as far as this node knows."""
    from daemon.experiments import find
    from daemon.standings import standing

    chosen = [find(node, params.experiment)] if params.experiment else node.rounds.all()
    return [await standing(node, one) for one in chosen]


async def watch(node: "Node", params: One) -> AsyncIterator[Standing]:
    """How an experiment stands, again with every change, until it is over and its last result was looked at.

    Or until this node was let out, and hears no more.
    """
    import trio

    from daemon.experiments import find
    from daemon.standings import SCORES_S, WATCH_S, is_settled, standing

    one = find(node, params.experiment)
    before, over_s = None, None
    while True:
        now = await standing(node, one)
        if now != before:
            yield now
        over_s = over_s or (trio.current_time() if now.is_over else None)
        if one.is_let_out:
            return
        if over_s is not None and (is_settled(one) or trio.current_time() > over_s + SCORES_S):
            return
        before = now
        await trio.sleep(WATCH_S)
        one = node.rounds.get(one.cid)  # unless it was forgotten


async def result(node: "Node", params: Fetch) -> Fetched:
    """A round's result; what of it is not here is fetched from members."""
    from daemon.results import fetch_result

    return await fetch_result(node, params)


async def cancel(node: "Node", params: CancelIt) -> Done:
    """End an experiment for all its members. For the plan's author."""
    from daemon.errors import Unfit
    from daemon.experiments import find

    one = find(node, params.experiment)
    if one.book.author != node.identity.peer_id:
        raise Unfit(f"{one.book.author} made this plan, and alone can cancel it. To train no more: covey fl leave")
    if one.is_over:
        return Done(text="it was over already, and stays as it is")
    await one.do(lambda now_s: one.member.cancel(params.reason))
    return Done(text="cancelled")


OPERATIONS = (
    Operation(
        noun="fl",
        verb="plan",
        summary="Check, sign and follow a new experiment; print its CID.",
        params=Plan,
        result=Progress | Planned,
        handler=plan,
        is_stream=True,
        arguments=("file",),
    ),
    Operation(
        noun="fl",
        verb="start",
        summary="Begin an experiment with those who have joined.",
        params=One,
        result=Started,
        handler=start,
        arguments=("experiment",),
    ),
    Operation(
        noun="fl",
        verb="join",
        summary="Train in an experiment (--data), or follow and verify it.",
        params=JoinIt,
        result=Joined,
        handler=join,
        arguments=("experiment",),
    ),
    Operation(
        noun="fl",
        verb="leave",
        summary="Train no more in an experiment.",
        params=One,
        result=Done,
        handler=leave,
        arguments=("experiment",),
    ),
    Operation(
        noun="fl",
        verb="status",
        summary="Show how experiments stand.",
        params=Which,
        result=list[Standing],
        handler=status,
        arguments=("experiment",),
    ),
    Operation(
        noun="fl",
        verb="watch",
        summary="Watch an experiment until it is over.",
        params=One,
        result=Standing,
        handler=watch,
        is_stream=True,
        arguments=("experiment",),
    ),
    Operation(
        noun="fl",
        verb="result",
        summary="Show or write a round's result, or keep it as an adapter.",
        params=Fetch,
        result=Fetched,
        handler=result,
        arguments=("experiment",),
    ),
    Operation(
        noun="fl",
        verb="cancel",
        summary="End an experiment for all its members.",
        params=CancelIt,
        result=Done,
        handler=cancel,
        arguments=("experiment",),
    ),
)
