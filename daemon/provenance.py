"""Provenance as the operation uses it: out of the workspaces here, or out of a CAR and nothing else."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from agents.workspace.archive import unpack
from agents.workspace.audit import audit
from agents.workspace.errors import NoOrigin, Untrue
from agents.workspace.history import Node as Placed
from agents.workspace.provenance import Graph, dot_of, find, graph_of, prov_of, tree_of
from agents.workspace.space import Space
from daemon.api.operations import provenance as op
from storage.blockstore import Blockstore
from storage.car.importer import import_car
from storage.cid import Cid
from storage.memory import MemoryBlockstore

if TYPE_CHECKING:
    from daemon.app import Node


async def show(node: "Node", params: op.Of) -> op.Provenance:
    """Raises: NoOrigin, Untrue, InvalidCid, InvalidCar, Remote, StorageError, OSError."""
    cid = Cid.parse(params.cid)
    if params.car is not None:
        car = Path(params.car)
        return await trio.to_thread.run_sync(lambda: _of_car(car, cid, params))
    readable = [one.space for one in node.workspaces.all() if one.space.history.root.is_private]
    if any(find(space, cid) is not None for space in readable):  # only this node's own copy opens what is sealed
        return _shown(readable, cid, node.store, params)
    histories = [
        (one.space.history.root_entry, [placed.entry for placed in one.space.history.blocks()])
        for one in node.workspaces.all()
        if not one.space.history.root.is_private
    ]
    return await trio.to_thread.run_sync(
        lambda: _shown([Space.of(*history) for history in histories], cid, node.store, params)
    )


def _of_car(path: Path, cid: Cid, params: op.Of) -> op.Provenance:
    store = MemoryBlockstore()
    with path.open("rb") as file:
        imported = import_car(store, file, file_bytes=path.stat().st_size)
    spaces = [unpack(store, root.cid) for root in imported.roots]
    return _shown(spaces, cid, store, params)


def _shown(spaces: list[Space], cid: Cid, store: Blockstore, params: op.Of) -> op.Provenance:
    space, placed = _found(spaces, cid)
    graph = graph_of(space, placed)
    checks = audit(space, placed, store) if params.is_verify else []
    wrong = next((check for check in checks if check.is_ok is False), None)
    if wrong is not None:
        raise Untrue(f"{wrong.what}: {wrong.text}")
    return op.Provenance(
        workspace=str(space.history.workspace),
        title=space.history.root.title,
        root=str(placed.id),
        n_items=len(graph.items),
        text=_told(graph, params.form),
        checks=[op.Checked(what=check.what, is_ok=check.is_ok, text=check.text) for check in checks],
    )


def _found(spaces: list[Space], cid: Cid) -> tuple[Space, Placed]:
    for space in spaces:
        placed = find(space, cid)
        if placed is not None:
            return space, placed
    raise NoOrigin(f"no workspace here says where {cid} comes from. See what is said: covey ws log WORKSPACE")


def _told(graph: Graph, form: str) -> str:
    if form == "dot":
        return dot_of(graph)
    if form == "prov":
        return json.dumps(prov_of(graph), ensure_ascii=False, indent=2)
    return "\n".join(tree_of(graph))
