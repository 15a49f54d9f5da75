"""How experiments stand, as operations tell it."""

import math
from typing import TYPE_CHECKING, Final

from agents.federation.experiment import Experiment
from agents.federation.standing import MemberStanding, RoundStanding, members_of, round_of, state_of
from daemon.api.operations import fl
from storage.keys import PeerId

if TYPE_CHECKING:
    from daemon.app import Node

WATCH_S: Final = 0.25
SCORES_S: Final = 30.0  # so long the last result's scores are waited for
MAX_SHOWN_ROUNDS: Final = 100


async def standing(node: "Node", one: Experiment) -> "fl.Standing":
    """How it stands."""
    await one.weigh()
    book, activity = one.book, one.activity
    current = min(book.current(), one.plan.n_rounds)
    shown = range(max(1, current - MAX_SHOWN_ROUNDS + 1), current + 1) if book.start() is not None else range(0)
    rounds = [round_of(book, number) for number in shown]
    coordinator = rounds[-1].coordinator if rounds else None
    return fl.Standing(
        experiment=str(one.cid),
        title=one.plan.title,
        state=state_of(book),
        is_over=one.is_over,
        task=str(one.plan.task.get("task")),
        is_training=one.data is not None and node.identity.peer_id in book.joined_now(),
        n_members=len(one.plan.members),
        n_joined=len(book.joined_now()),
        n_reachable=activity.n_reachable,
        n_events=len(book.entries()),
        coordinator=str(coordinator) if coordinator is not None else None,
        doing=activity.doing,
        trouble=activity.trouble,
        fetched_bytes=activity.fetched_bytes,
        rounds=[_round(found, one.update_bytes(found.number)) for found in rounds],
        members=[_member(node, member) for member in members_of(book, current)],
    )


def is_settled(one: Experiment) -> bool:
    """Is it over, and has everybody who took part in the last round told how its result does?"""
    book = one.book
    if not one.is_over:
        return False
    last = round_of(book, one.plan.n_rounds)
    if book.cancelled() is not None or not one.plan.is_evaluated or last.result is None:
        return True
    return len(last.scores) >= last.n_closed


def _round(found: RoundStanding, update_bytes: int) -> "fl.Round":
    return fl.Round(
        round=found.number,
        phase=found.phase,
        term=found.term,
        n_selected=found.n_selected,
        n_submitted=found.n_submitted,
        n_receipts=found.n_receipts,
        n_votes=found.n_votes,
        n_closed=found.n_closed,
        n_refused=len(found.refused),
        update_bytes=update_bytes,
        loss=math.fsum(found.losses) / len(found.losses) if found.losses else None,
        n_scores=len(found.scores),
        result_loss=found.result_loss,
        result_accuracy=found.result_accuracy,
        refused=[fl.Refused(str(one.peer), one.reason) for one in found.refused],
        result=str(found.result) if found.result is not None else None,
        void=found.void,
    )


def _member(node: "Node", member: MemberStanding) -> "fl.Member":
    fields = member._asdict() | {"peer": str(member.peer)}
    return fl.Member(name=name_of(node, member.peer), **fields)


def name_of(node: "Node", peer: PeerId) -> str | None:
    """What a peer is called here."""
    if peer == node.identity.peer_id:
        return "me"
    row = node.catalog.peers.get(peer)
    return row.name if row is not None else None
