"""What comes of an experiment, for its user: tensors in a file, or an adapter to publish and to chat with."""

import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from agents.federation.node.experiment import Experiment
from agents.federation.node.standing import round_of
from agents.federation.node.training import find_base
from agents.federation.results.outcome import Document
from agents.federation.tasks import task_of
from daemon.api.operations import fl
from daemon.asked import new_target
from daemon.errors import NotFoundHere, Unfit
from daemon.experiments import find
from daemon.training import sole
from storage.cid import Cid
from storage.durable import make_folder
from storage.errors import TargetExists
from storage.staging import beside
from storage.unixfs import export as export_file

if TYPE_CHECKING:
    from daemon.app import Node


async def fetch_result(node: "Node", params: "fl.Fetch") -> "fl.Fetched":
    """Raises: NotFoundHere, BadTask, TargetExists, Busy, Remote, StorageError."""
    one = find(node, params.experiment)
    last = one.member.current() - 1
    number = params.round or last
    if number > last or number < 1:
        yet = "" if one.is_over else " yet"
        raise NotFoundHere(f"round {max(number, 1)} has no result{yet}: covey fl status {one.cid}")
    out = new_target(params.out) if params.out is not None else None
    with sole(node, params.as_adapter) if params.as_adapter is not None else nullcontext():
        folder = _adapter_folder(node, params.as_adapter) if params.as_adapter is not None else None
        result, document = await _brought(node, one, number, params.of)
        if out is not None:
            await trio.to_thread.run_sync(export_file, node.store, document.tensors, out)
        if folder is not None:
            await trio.to_thread.run_sync(partial(_write_adapter, node, one, number, result, document, folder))
    return fl.Fetched(
        experiment=str(one.cid),
        round=number,
        result=str(result),
        tensors=str(document.tensors),
        n_updates=len(document.updates),
        out=params.out,
        adapter=str(folder) if folder is not None else None,
    )


async def _brought(node: "Node", one: Experiment, number: int, of: str | None) -> tuple[Cid, Document]:
    if one.plan.gossip is not None:
        from agents.federation.node.neighbours import GossipExperiment
        from daemon.api.operations.peer import resolve

        assert isinstance(one, GossipExperiment)
        peer = await resolve(node, of) if of is not None else node.identity.peer_id
        if of is None and not one.neighbour.is_part:
            raise NotFoundHere(
                "this node has no model of its own in it: name a member with --of, as `covey fl status` tells them"
            )
        said, mix = await one.mean_of(peer, number)
        return said.cid, Document(one.plan.initial, mix.tensors, (), mix.states)
    if of is not None:
        raise Unfit("there is one result for all members in this experiment: leave out --of")
    result = one.book.result(number)
    if result is None or result == one.plan.initial:
        raise NotFoundHere(f"round {number} was void, and so was every one before: the tensors are the plan's")
    return result, await one.bring_result(result)


def _adapter_folder(node: "Node", name: str) -> Path:
    """Raises: TargetExists."""
    folder = node.home.training / name
    if folder.exists():
        raise TargetExists(f"there is an adapter {name!r} here: choose another name, or delete {folder}")
    return folder


def _write_adapter(node: "Node", one: Experiment, number: int, result: Cid, document: Document, folder: Path) -> None:
    """A PEFT folder among those that were trained here; whole or not at all. Raises: BadTask, TargetExists, OSError."""
    make_folder(folder.parent)
    facts = _facts(one, number, result, document)
    with tempfile.TemporaryDirectory(dir=node.home.scratch) as scratch, beside(folder) as staged:
        export_file(node.store, document.tensors, Path(scratch) / "tensors")
        staged.mkdir()
        task_of(one.plan.task).write_adapter(Path(scratch) / "tensors", staged, facts, partial(find_base, node.catalog))


def _facts(one: Experiment, number: int, result: Cid, document: Document) -> dict[str, str | int | float | bool]:
    """Whence it comes, and how it did where it was trained; its members can prove the first."""
    found = round_of(one.book, number)
    facts: dict[str, str | int | float | bool] = {
        "experiment": str(one.cid),
        "round": number,
        "result": str(result),
        "n_updates": len(document.updates),
        "title": one.plan.title,
    }
    if found.result_loss is not None:
        facts["loss_after"] = found.result_loss
    if found.result_accuracy is not None:
        facts["accuracy"] = found.result_accuracy
    return facts
