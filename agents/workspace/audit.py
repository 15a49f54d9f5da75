"""Is what an output says of its origin true? Signatures, links and hashes are checked as a history is read; this checks
the rest: that steps were agreed on, that prompts follow from plan and earlier outputs, that cards are their hosts'.
"""

from typing import NamedTuple, cast

from agents.memory.items import BadMemory, UnknownMemory
from agents.memory.view import recorded
from agents.roster.announced import announced_as
from agents.roster.card import read_card
from agents.roster.perform import recorded_prompt
from agents.workspace.history import Node
from agents.workspace.provenance import Drawing
from agents.workspace.runs.core import Run, StepView
from agents.workspace.runs.plan import Step, filled, idempotency_key
from agents.workspace.runs.replay import output_cid, rebuilt
from agents.workspace.space import Space
from protocols.entry import open_entry, read_entry
from protocols.errors import Remote
from protocols.workspaces.entries import Commit
from storage.blockstore import Blockstore
from storage.cid import Cid
from storage.errors import NotFound, StorageError


class Check(NamedTuple):
    """Something that was checked. `is_ok` is None where what it takes is not at hand."""

    what: str
    is_ok: bool | None
    text: str


def audit(space: Space, node: Node, store: Blockstore) -> list[Check]:
    """Check what stands behind an entry. That its history is here means that each signature and hash in it held."""
    found = [Check("history", True, f"{len(space.history)} entries: each signature, hash, link and number holds")]
    code = space.code(node)
    found.append(Check("entry", not code, f"it has no effect: {code}" if code else "it has effect"))
    drawing = Drawing(space)
    drawing.behind(node)
    for run, view in drawing.visited:
        found += _step(space, run, view, store)
    return found


def _step(space: Space, run: Run, view: StepView, store: Blockstore) -> list[Check]:
    commit, name = cast(Node, view.commit), f"{view.name} of {run.name}"
    done = space.done(view.task, view.number)
    n_voters = len(space.voters())
    found = [
        Check(name, done is not None and done.id == commit.id, f"its commit was accepted by most of {n_voters} voters")
    ]
    output = cast(Commit, commit.says).output
    key = output.get("key") if isinstance(output, dict) else None
    if not view.is_failed:
        found.append(Check(name, key == idempotency_key(run.node, view.number), "its idempotency key is the plan's"))
    if view.made:
        step = run.plan.steps[view.place]
        now, why = rebuilt(run, view, step, filled(step.input, run.outputs(view)))
        is_same = now == output_cid(output)
        found.append(
            Check(name, is_same, "its prompt follows from the plan and the outputs before" if is_same else why)
        )
        found.append(_card(space, name, step, view, store))
        if "memory" in view.made:
            found.append(_memory(space, name, run, view))
    return found


def _memory(space: Space, name: str, run: Run, view: StepView) -> Check:
    """Does all that it was told of its memory stand in the history, and in its prompt as it stands there?"""
    try:
        text = recorded(space, view.made["memory"], run, view).text()
    except (BadMemory, UnknownMemory) as error:
        return Check(name, False, str(error))
    told = recorded_prompt(view.made) or ()
    is_told = any(turn.role == "system" and text in turn.content for turn in told)
    return Check(name, is_told, "what it remembered stands in the history, and so in its prompt")


def _card(space: Space, name: str, step: Step, view: StepView, store: Blockstore) -> Check:
    """Did the agent do it that the plan names, and on the node of its host?"""
    cid, commit = view.made.get("card"), cast(Node, view.commit)
    if not isinstance(cid, Cid):
        return Check(name, False, "it names no card")
    try:
        block = store.get(cid)
        entry = open_entry(block, store.get(read_entry(block)[0]))
        card = read_card(entry)["card"]
    except NotFound:
        return Check(name, None, f"the card {cid} is not here")
    except (Remote, StorageError) as error:
        return Check(name, False, f"the card {cid}: {error}")
    agent = str(view.made.get("agent"))
    if entry.author != commit.author or card["name"] != agent:
        return Check(name, False, f"the card of {card['name']} is signed by {entry.author}")
    role = announced_as(space, agent, cid, commit.author)
    if role is None:
        return Check(name, False, f"{entry.author} signed that card of {agent}, and never announced it")
    if step.agent not in (None, agent) or step.role not in (None, role):
        return Check(name, False, f"the plan gives it to {step.agent or step.role}, and {agent} ({role}) did it")
    return Check(name, True, f"the card of {agent} is signed by {entry.author}")
