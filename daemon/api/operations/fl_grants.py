"""Who may train in an experiment whose plan asks for grants: let members in, and out again."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from daemon.api.operation import Done, Operation, Params

if TYPE_CHECKING:
    from agents.federation.node.experiment import Experiment
    from daemon.app import Node

CidText = Annotated[str, Meta(max_length=128, description="The experiment, as `covey fl plan` names it.")]
PeerText = Annotated[str, Meta(max_length=512, description="Whom: a peer, by id or name.")]


class GrantIt(Params, frozen=True):
    """Whom to let in, and whether it may let others in."""

    experiment: CidText
    peer: PeerText
    depth: Annotated[int, Meta(ge=0, le=8, description="How many times the grant may be passed on.")] = 0
    lifetime_s: Annotated[
        int, Meta(ge=0, le=10 * 366 * 86_400, description="How long the member has to come into a round; 0 for no end.")
    ] = 0


class RevokeIt(Params, frozen=True):
    """Whom to let out."""

    experiment: CidText
    peer: PeerText


async def grant(node: "Node", params: GrantIt) -> Done:
    """Let a member train, by a grant of this node's: as the plan's author, or passed on from one that it holds."""
    from agents.federation.events.grants import NotGranted, granting
    from daemon import wall
    from daemon.api.operations.peer import resolve
    from daemon.asked import way_here

    one = _experiment(node, params.experiment)
    peer = await resolve(node, params.peer)
    unix_s = wall.unix_s()
    end = int(unix_s) + params.lifetime_s if params.lifetime_s else None
    events = granting(one.book, node.identity.peer_id, peer, params.depth, unix_s, end)
    if not events:
        raise NotGranted(
            f"this node holds no grant that may be passed on {params.depth} more times: ask {one.book.author}"
        )
    await one.do(lambda now_s: one.member.declare(events, now_s))
    within = f", if it comes into a round within {params.lifetime_s} s" if params.lifetime_s else ""
    how = "" if peer in one.plan.members else f" with `covey fl join {one.cid} --from {way_here(node)} --data PATH`"
    return Done(text=f"{peer} may train from the next round on, once it has joined{how}{within}")


async def revoke(node: "Node", params: RevokeIt) -> Done:
    """End the grants of a member that come from this node, and what was passed on from them."""
    from agents.federation.events.grants import NotGranted, ending
    from daemon.api.operations.peer import resolve

    one = _experiment(node, params.experiment)
    peer = await resolve(node, params.peer)
    events = ending(one.book, node.identity.peer_id, peer)
    if not events:
        raise NotGranted(f"{peer} holds no grant that comes from this node")
    await one.do(lambda now_s: one.member.declare(events, now_s))
    return Done(text=f"{peer} trains no more from the next round on, unless another grant lets it")


def _experiment(node: "Node", text: str) -> "Experiment":
    from daemon.errors import Unfit
    from daemon.experiments import find

    one = find(node, text)
    if one.plan.joining != "granted":
        raise Unfit('by this plan every member may train: it asks for no grants (joining = "granted")')
    return one


OPERATIONS = (
    Operation(
        noun="fl",
        verb="grant",
        summary="Let a member train, where the plan asks for grants.",
        params=GrantIt,
        result=Done,
        handler=grant,
        arguments=("experiment", "peer"),
    ),
    Operation(
        noun="fl",
        verb="revoke",
        summary="Let a member train no more.",
        params=RevokeIt,
        result=Done,
        handler=revoke,
        arguments=("experiment", "peer"),
    ),
)
