"""How experiments stand, as operations tell it."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import trio

from agents.federation.node.experiment import Experiment
from agents.federation.node.report import Report, Row, as_html, as_picture
from agents.federation.node.standing import MemberStanding, RoundStanding, members_of, round_of, state_of
from agents.federation.plans.options import gossip_of, options_of
from daemon.api.operations import fl, fl_report
from daemon.asked import names, new_target
from daemon.errors import Unfit
from daemon.experiments import find
from storage.durable import write_file
from storage.keys import PeerId

if TYPE_CHECKING:
    from daemon.app import Node

WATCH_S: Final = 0.25
SCORES_S: Final = 30.0  # so long the last result's scores are waited for
MAX_SHOWN_ROUNDS: Final = 100


async def standing(node: "Node", one: Experiment) -> "fl.Standing":
    """How it stands."""
    await one.weigh()
    called = await names(node)
    book, activity = one.book, one.activity
    current = _last_round(one)
    shown = range(max(1, current - MAX_SHOWN_ROUNDS + 1), current + 1) if book.start() is not None else range(0)
    rounds = [round_of(book, number) for number in shown]
    coordinator = rounds[-1].coordinator if rounds else None
    bounds = await one.clip_bounds(shown)
    privacy, epsilon = options_of(one.plan).privacy, one.secrets.epsilon(book)
    return fl.Standing(
        experiment=str(one.cid),
        title=one.plan.title,
        state=state(one),
        is_over=one.is_over,
        task=str(one.plan.task.get("task")),
        is_training=one.data is not None and node.identity.peer_id in book.joined_now(),
        n_members=len(one.told()),
        n_joined=len(book.joined_now()),
        n_reachable=activity.n_reachable,
        n_events=book.n_events,
        coordinator=str(coordinator) if coordinator is not None else None,
        doing=activity.doing,
        trouble=activity.trouble,
        fetched_bytes=activity.fetched_bytes,
        epsilon=epsilon if epsilon is not None and math.isfinite(epsilon) else None,
        epsilon_budget=privacy.budget.epsilon if privacy is not None else None,
        delta=privacy.budget.delta if privacy is not None else None,
        gossip=_gossip_words(one),
        rounds=[_round(found, one.update_bytes(found.number), bounds.get(found.number)) for found in rounds],
        members=[_member(member, called.get(member.peer)) for member in members_of(book, current)],
    )


def state(one: Experiment) -> str:
    """The same in a few words."""
    if one.is_let_out and not one.is_over:
        return f"let out: this node hears of it no more. The last: {state_of(one.book)}"
    if one.is_borne or one.book.cancelled() is not None:
        return state_of(one.book)
    return "over: its privacy budget is spent"


def _last_round(one: Experiment) -> int:
    """The last round that there is by now: the one that the budget does not bear never begins."""
    number = one.member.current()
    return min(number if one.is_borne else max(number - 1, 1), one.plan.n_rounds)


def _gossip_words(one: Experiment) -> str | None:
    """How members average, where nobody coordinates."""
    if one.plan.gossip is None:
        return None
    gossip = gossip_of(one.plan.gossip)
    if gossip.mixing == "moshpit":
        return f"moshpit, a grid of {gossip.n_dimensions} dimensions"
    around = f", {gossip.n_neighbours} neighbours" if gossip.topology == "flock" else ""
    return f"{gossip.mixing}, {gossip.topology}{around}"


def is_settled(one: Experiment) -> bool:
    """Is it over, and has everybody who took part in the last round told how its result does?"""
    book = one.book
    if not one.is_over:
        return False
    if not one.is_borne:
        return True
    last = round_of(book, one.plan.n_rounds)
    if one.plan.gossip is not None and one.plan.is_evaluated:
        return book.cancelled() is not None or len(last.scores) >= last.n_selected
    if book.cancelled() is not None or not one.plan.is_evaluated or last.result is None:
        return True
    return len(last.scores) >= last.n_closed


def _round(found: RoundStanding, update_bytes: int, clip_bound: float | None) -> "fl.Round":
    return fl.Round(
        round=found.number,
        phase=found.phase,
        term=found.term,
        n_keys=found.n_keys,
        n_shares=found.n_shares,
        n_unmasked=found.n_unmasked,
        n_selected=found.n_selected,
        n_submitted=found.n_submitted,
        n_receipts=found.n_receipts,
        n_votes=found.n_votes,
        n_closed=found.n_closed,
        n_refused=len(found.refused),
        update_bytes=update_bytes,
        loss=found.loss,
        n_scores=len(found.scores),
        result_loss=found.result_loss,
        result_accuracy=found.result_accuracy,
        refused=[fl.Refused(str(one.peer), one.reason) for one in found.refused],
        result=str(found.result) if found.result is not None else None,
        void=found.void,
        clip_bound=clip_bound,
    )


def _member(member: MemberStanding, name: str | None) -> "fl.Member":
    fields = member._asdict() | {"peer": str(member.peer)}
    return fl.Member(name=name, **fields)


async def write_report(node: "Node", params: "fl_report.Report") -> "fl_report.Reported":
    """Raises: UnknownExperiment, Unfit, NotFoundHere, TargetExists, StoreFull, OSError."""
    one, path = find(node, params.experiment), new_target(params.out)
    if path.suffix.lower() not in (".html", ".htm", ".png"):
        raise Unfit(f"{path.name} tells no form that a report can have: let its name end in .html or .png")
    await one.weigh()
    apart = await one.apart()
    called = await names(node)
    del called[node.identity.peer_id]  # others read it, to whom this node is not "me"
    found = _report(one, called, apart, await _epsilons(one))
    is_picture = path.suffix.lower() == ".png"
    data = await trio.to_thread.run_sync(lambda: as_picture(found) if is_picture else as_html(found).encode())
    await trio.to_thread.run_sync(write_file, path, data, 0o644)
    return fl_report.Reported(experiment=str(one.cid), out=params.out, n_rounds=len(found.rows), n_bytes=len(data))


async def _epsilons(one: Experiment) -> dict[int, float]:
    """By round, what was spent of a privacy budget by its end; an accountant may take half a second for each."""
    found = {}
    for number in range(1, min(one.member.current() + 1, one.plan.n_rounds + 1)):
        epsilon = one.secrets.epsilon(one.book, number)
        if epsilon is not None and math.isfinite(epsilon):
            found[number] = epsilon
        await trio.lowlevel.checkpoint()
    return found


def _report(
    one: Experiment, called: Mapping[PeerId, str], apart: dict[int, float], epsilons: Mapping[int, float]
) -> Report:
    book = one.book
    last = _last_round(one) if book.start() is not None else 0
    rounds = [round_of(book, number) for number in range(1, last + 1)]
    facts = [
        ("experiment", str(one.cid)),
        ("state", state(one)),
        ("task", str(one.plan.task.get("task"))),
        ("rule", " + ".join([*(str(step.get("before")) for step in one.plan.before), str(one.plan.rule.get("rule"))])),
        ("compression", str((one.plan.compression or {}).get("codec", "none"))),
        ("members", f"{len(one.told())}, of which {len(book.joined_now())} train"),
        ("deputies", ", ".join(called.get(peer, str(peer)) for peer in one.plan.deputies[:3])),
    ]
    if (words := _gossip_words(one)) is not None:
        facts = [fact for fact in facts if fact[0] not in ("rule", "deputies")]
        facts.append(("without a coordinator", words))
    if (privacy := options_of(one.plan).privacy) is not None:
        told = f"epsilon {one.secrets.epsilon(book) or 0.0:.4g} of {privacy.budget.epsilon:g}"
        facts.append(("privacy", f"{told} at delta {privacy.budget.delta:g}"))
    if rounds and rounds[-1].result is not None:
        facts.append(("result", str(rounds[-1].result)))
    rows = [_row(one, found, apart, epsilons) for found in rounds]
    refusals = [
        (found.number, called.get(refused.peer, str(refused.peer)), refused.reason)
        for found in rounds
        for refused in found.refused
    ]
    return Report(one.plan.title, facts, rows, refusals, is_gossip=one.plan.gossip is not None)


def _row(one: Experiment, found: RoundStanding, apart: Mapping[int, float], epsilons: Mapping[int, float]) -> Row:
    scores = found.scores if one.plan.gossip is not None else ()
    return Row(
        number=found.number,
        phase=found.phase,
        n_selected=found.n_selected,
        n_closed=found.n_closed,
        n_refused=len(found.refused),
        update_bytes=one.update_bytes(found.number),
        plain_bytes=one.plain_bytes * found.n_submitted,
        loss=found.loss,
        result_loss=found.result_loss,
        result_accuracy=found.result_accuracy,
        epsilon=epsilons.get(found.number),
        void=found.void,
        losses=tuple(score.loss for score in scores if score.loss is not None),
        accuracies=tuple(score.accuracy for score in scores if score.accuracy is not None),
        apart=apart.get(found.number),
    )
