"""The memory of agents as operations use it, their states, and the encoder by which they remember meanings."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from agents.memory.indexes import Encoding
from agents.memory.items import (
    MAX_ITEM_BYTES,
    Item,
    Kept,
    UnknownMemory,
    checked,
    gather,
    key_of,
    keys_of,
    read_block,
)
from agents.memory.own import keep
from agents.memory.state import (
    MAX_DONE,
    MAX_STATE_BYTES,
    State,
    at_home,
    kept_of,
    missing_from,
    read_root,
    state_of,
)
from agents.memory.wish import MAX_EPISODES, Memory
from agents.roster.announced import announced
from agents.roster.declaration import Declaration, read_declaration, written
from agents.roster.errors import UnknownAgent
from agents.roster.shown import members_of, state_pin
from daemon.api.operation import Done
from daemon.api.operations import agent_memory as op
from daemon.workspaces import find, need
from protocols.fetch.dag import fetch_blocks, fetch_dag
from protocols.net import PeerInfo
from protocols.workspaces.entries import Drop, Put, check
from storage.blockstore import MadeBlock, Visibility
from storage.cid import Cid
from storage.pins import PinKind, PinState

if TYPE_CHECKING:
    from agents.workspace.workspace import Workspace
    from daemon.app import Node

FETCH_LIMIT_S: Final = 120.0


def encoding_of(node: "Node") -> Encoding | None:
    """The encoder that is installed or set, in the engine; None without one."""
    from agents.encoders import embed, encoder_of

    encoder = encoder_of(node.config.engine.encoder)
    return None if encoder is None else Encoding(encoder.name, partial(embed, node.engine, folder=encoder.folder))


# --- memory


def _wish(node: "Node", one: "Workspace", name: str) -> Memory:
    """How an agent remembers; of one that another node hosts all that it could. Raises: UnknownAgent."""
    declared = node.crew.hosted(one.cid).get(name)
    if declared is not None:
        return declared.remembers
    if name not in {found.name for found in announced(one.space)}:
        raise UnknownAgent(f"there is no agent {name!r}. See: covey agent ls {one.cid}")
    return Memory(is_shared=True)


async def remember(node: "Node", params: op.Remember) -> op.Remembered:
    """Raises: UnknownWorkspace, UnknownAgent, BadMemory, NotGranted, InvalidCid, StorageError."""
    one = find(node, params.workspace)
    _wish(node, one, params.name)
    adapter = str(Cid.parse(params.adapter)) if params.adapter is not None else ""
    item = checked(Item(kind="skill" if adapter else "fact", text=params.text, adapter=adapter))
    agent = None if params.shared else params.name
    need(node, one, key_of(item, agent))
    await keep(one, node.identity.peer_id, item, agent)
    return _row(item, is_shared=params.shared)


async def recall(node: "Node", params: op.Recall) -> list[op.Remembered]:
    """Raises: UnknownWorkspace, UnknownAgent."""
    one = find(node, params.workspace)
    wish, n_done = _wish(node, one, params.name), min(params.n, MAX_EPISODES)
    kept = gather(one.space, params.name, is_shared=wish.is_shared, n_done=n_done)
    shared = await trio.to_thread.run_sync(_shared, gather(one.space, params.name, is_shared=True))
    if params.question is None:

        def known() -> list[Item]:
            return [*kept.knowledge(), *kept.episodes(n_done)]

        items = await trio.to_thread.run_sync(known)
        return [_row(item, is_shared=item.cid in shared) for item in items[-params.n :]]
    recalled = await node.crew.mind.recall(one.space, params.name, wish, params.question)
    return [
        _row(item, is_shared=item.cid in shared, score=round(score, 6), by=recalled.by)
        for score, item in recalled.found[: params.n]
    ]


def _shared(kept: Kept) -> set[Cid]:
    return {item.cid for item in kept._replace(own=()).knowledge()}


def _row(item: Item, *, is_shared: bool, score: float | None = None, by: str | None = None) -> op.Remembered:
    return op.Remembered(
        cid=str(item.cid),
        kind=item.kind,
        text=item.text,
        adapter=item.adapter,
        source=item.source,
        is_shared=is_shared,
        score=score,
        by=by,
    )


async def forget(node: "Node", params: op.Forget) -> Done:
    """Raises: UnknownWorkspace, UnknownAgent, UnknownMemory, NotGranted, InvalidCid, StorageError."""
    one = find(node, params.workspace)
    _wish(node, one, params.name)
    cid, values = Cid.parse(params.cid), one.space.values()
    keys = [key for key in keys_of(cid, params.name) if key in values]
    if not keys:
        raise UnknownMemory(f"{cid} is nothing that it was told. See: covey agent recall {one.cid} {params.name}")
    for key in keys:
        need(node, one, key)
        await one.say(check(Drop(key=key)))
    return Done(text="forgotten: it comes to no mind any more. The history keeps what was signed")


# --- states


async def keep_state(node: "Node", params: op.StateOf) -> op.State:
    """Raises: UnknownWorkspace, UnknownAgent, StorageError."""
    one = find(node, params.workspace)
    declared = node.crew.hosted(one.cid).get(params.name)
    if declared is None:
        raise UnknownAgent(f"this node hosts no agent {params.name!r} there: its host can tell its state")
    kept, members = kept_of(one.space, declared), members_of(one.space)
    level = params.visibility or ("private" if one.space.history.root.is_private else "members")

    def store() -> list[MadeBlock]:
        blocks = state_of(kept, declared).blocks()
        root = blocks[0].cid
        with node.store.lease():
            node.store.put_many(blocks)
            node.pins.add(root, state_pin(one.cid, params.name), PinKind.RECURSIVE, PinState.COMPLETE)
            node.crew.audiences.publish(root, Visibility[level.upper()], one.cid, members)
        return blocks

    blocks = await node.exchange.work(store)
    root = blocks[0].cid
    if level == "public":
        node.provider.provide_soon(root)
    return op.State(
        state=str(root),
        agent=params.name,
        n_items=len(blocks) - 1,
        n_blocks=len(blocks),
        size_bytes=sum(len(block.data) for block in blocks),
        restore=f"covey agent add WORKSPACE --state {root}",
    )


async def fetch_state(node: "Node", root: Cid) -> State:
    """An agent's state, from here or from whoever has it. Raises: BadState, BadMemory, Remote, trio.TooSlowError."""
    peers = [PeerInfo(peer) for peer in node.network.peers()]

    async def find_more() -> Any:
        return await node.network.find_providers(root, 8)

    def below(cid: Cid, data: bytes) -> tuple[Cid, ...]:
        return read_root(data)[1] if cid == root else ()

    def read(cids: Sequence[Cid]) -> tuple[Item, ...]:
        return tuple(read_block(node.store.get(cid)) for cid in cids)

    with trio.fail_after(FETCH_LIMIT_S):
        await fetch_blocks(node.exchange, [root], providers=peers, find_more=find_more)
        declared, cids = read_root(await trio.to_thread.run_sync(node.store.get, root))
        if cids:
            await fetch_dag(
                node.exchange, root, providers=peers, find_more=find_more, links=below,
                max_blocks=len(cids) + 1, max_bytes=MAX_STATE_BYTES + len(cids) * MAX_ITEM_BYTES,
            )  # fmt: skip
    return State(declared, await trio.to_thread.run_sync(read, cids))


async def declaration_of(node: "Node", text: str, data: bytes | None, where: str) -> tuple[bytes, State]:
    """A state's declaration, completed by its new host, and the state. Raises: BadAgent, and as `fetch_state`."""
    state = await fetch_state(node, Cid.parse(text))
    completed = written(at_home(state.declared, data, where))
    read_declaration(completed, f"the state {text}")
    return completed, state


async def bring(node: "Node", one: "Workspace", declared: Declaration, items: tuple[Item, ...]) -> int:
    """Put into a workspace what it lacks of an agent's memory. Raises: NotGranted, StorageError."""
    kept = kept_of(one.space, declared, MAX_DONE)
    missing = await trio.to_thread.run_sync(missing_from, kept, declared, items)
    for key, item in missing:
        need(node, one, key)
        await one.say(check(Put(key=key, value=msgspec.to_builtins(item))))
    return len(missing)
