"""Agents as operations use them, and the models that they think with."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from agents.roster.announced import PREFIX, Announced, announced
from agents.roster.declaration import MAX_DECLARATION_BYTES, BadAgent, Declaration, Model
from agents.roster.errors import UnknownAgent
from agents.roster.language import EngineModel, LanguageModel, Scripted, Seat
from agents.workspace.runs.effects import EffectFailed
from daemon.api.operation import Done
from daemon.api.operations import agent as op
from daemon.errors import DaemonError, NotFoundHere
from daemon.workspaces import find, need, plain
from protocols.fetch.dag import fetch_blocks
from protocols.net import PeerInfo
from storage.blockstore import Visibility
from storage.cid import Cid
from storage.errors import NotFound

if TYPE_CHECKING:
    from agents.memory.items import Item
    from agents.workspace.workspace import Workspace
    from daemon.app import Node
    from protocols.entry import Entry

FETCH_LIMIT_S: Final = 30.0


# --- models


@contextmanager
def failing_a_step() -> Iterator[None]:
    """What this node refuses its user ends a step of an agent's, and nothing else. Raises: EffectFailed."""
    try:
        yield
    except DaemonError as error:
        raise EffectFailed(str(error)) from None


@asynccontextmanager
async def open_model(node: "Node", declared: Declaration) -> AsyncIterator[LanguageModel]:
    """The model that an agent thinks with. Raises: AgentError."""
    with failing_a_step():
        async with _opened(node, declared.model) as model:
            yield model


@asynccontextmanager
async def _opened(node: "Node", wish: Model) -> AsyncIterator[LanguageModel]:
    match wish.kind:
        case "scripted":
            yield Scripted(wish)
        case "attached":
            raise AssertionError("the crew hands these on itself")
        case "engine":
            yield await _of_engine(node, wish)
        case "peer":
            yield await _of_peer(node, wish)
        case "openai":
            from agents.engine.remote.server import ServerSettings, open_server

            token = _token(wish)
            settings = ServerSettings(
                url=wish.url, kind="generic", model=wish.name, token=token, silence_s=wish.timeout_s
            )
            async with open_server(settings) as server:
                yield EngineModel(server, Seat(wish.name, by=wish.url), wish)
        case "anthropic":
            from agents.roster.anthropic import open_anthropic

            async with open_anthropic(wish, _token(wish)) as server:
                yield server


async def _of_engine(node: "Node", wish: Model) -> LanguageModel:
    from agents.models import card_of, find_model
    from daemon.answering import engine_before, resolve_wish

    row = await trio.to_thread.run_sync(find_model, node.catalog, wish.name or None, node.config.engine.model)
    adapter = await trio.to_thread.run_sync(resolve_wish, node, row, wish.adapter)
    seat = Seat(row.name, card_of(row).base, adapter.cid if adapter else "", adapter.folder if adapter else None)
    return EngineModel(engine_before(node.answers, node.engine, node.desk, row, is_seeded=True), seat, wish)


async def _of_peer(node: "Node", wish: Model) -> LanguageModel:
    from agents.models import card_of
    from daemon.asking import engine_of, remote_model

    remote = await remote_model(node, wish.peer)
    adapter = remote.resolve(wish.adapter)
    seat = Seat(
        remote.row.name,
        card_of(remote.row).base,
        adapter.cid if adapter else "",
        adapter.folder if adapter else None,
        str(remote.info.peer),
    )
    return EngineModel(engine_of(node, remote, wish.timeout_s), seat, wish)


def _token(wish: Model) -> str:
    """Raises: BadConfig for a variable that is not there."""
    import os

    from daemon.errors import BadConfig

    if not wish.token_env:
        return ""
    token = os.environ.get(wish.token_env, "")
    if not token:
        raise BadConfig(f"model.token_env: there is no variable {wish.token_env} in the daemon's environment")
    return token


# --- operations


async def add(node: "Node", params: op.Add) -> op.Agent:
    """Raises: UnknownWorkspace, NotGranted, BadAgent, StorageError, OSError."""
    from agents.roster.declaration import read_declaration
    from daemon.memories import bring, declaration_of

    one, given, where = find(node, params.workspace), None, "the state"
    items: tuple[Item, ...] = ()
    if params.file is not None:
        given, where = await trio.to_thread.run_sync(_read, Path(params.file)), params.file
    if params.state is not None:
        data, state = await declaration_of(node, params.state, given, where)
        items = state.items
    elif given is not None:
        data = given
    else:
        raise BadAgent("which agent? Give its declaration, or --state with the CID of one that there was")
    declared = read_declaration(data, where)
    need(node, one, PREFIX + declared.name)
    before = _agent(one, declared.name)
    if before is not None and before.host != node.identity.peer_id:
        raise BadAgent(
            f"{before.host} hosts an agent {declared.name!r} there: give this one another name; or, if that host is "
            f"gone for good, take its place: covey ws drop {one.cid} {PREFIX}{declared.name}"
        )
    level = Visibility[params.visibility.upper()]
    await bring(node, one, declared, items)
    declared, card = await node.crew.add(one, data, level)
    if level == Visibility.PUBLIC:
        node.provider.provide_soon(card.cid)
    node.events.note("agent_added", {"workspace": str(one.cid), "agent": declared.name, "card": str(card.cid)})
    found = _agent(one, declared.name)
    assert found is not None, "it was just put there"
    return _row(node, one, found)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_DECLARATION_BYTES + 1)


async def remove(node: "Node", params: op.One) -> Done:
    """Raises: UnknownWorkspace, UnknownAgent."""
    await node.crew.remove(find(node, params.workspace), params.name)
    return Done(text=f"{params.name} is hosted here no longer; what it did stays in the history")


async def ask(node: "Node", params: op.Ask) -> op.Answer:
    """Raises: UnknownWorkspace, UnknownAgent, NotGranted, EffectFailed, trio.TooSlowError."""
    import secrets

    from agents.roster import asking
    from daemon import wall

    one, me = find(node, params.workspace), node.identity.peer_id
    name = params.name_of_run or f"{asking.PREFIX_OF_ASKS}.0.{secrets.token_hex(12)}"
    await asking.begin(one, me, params.agent, params.prompt, name, params.timeout_s, wall.unix_s())
    with trio.fail_after(params.timeout_s):
        value = await asking.answer(one, name, params.agent)
    run = asking.state_of(one.space, name)
    assert run is not None and run.steps[0].commit is not None, "it was answered"
    return op.Answer(
        run=name, agent=params.agent, by=str(run.steps[0].by), commit=str(run.steps[0].commit.id),
        n_tokens=run.n_tokens, answer=value if isinstance(value, str) else str(plain(value)),
    )  # fmt: skip


def _agent(one: "Workspace", name: str) -> Announced | None:
    return next((found for found in announced(one.space) if found.name == name), None)


def agents_of(node: "Node", workspace: str) -> list[op.Agent]:
    """Raises: UnknownWorkspace."""
    one = find(node, workspace)
    return [_row(node, one, found) for found in announced(one.space)]


def _row(node: "Node", one: "Workspace", found: Announced) -> op.Agent:
    peer, row = found.host, node.catalog.peers.get(found.host)
    is_here = peer == node.identity.peer_id
    return op.Agent(
        workspace=str(one.cid),
        name=found.name,
        role=found.role,
        description=found.description,
        capabilities=list(found.capabilities),
        tools=list(found.tools),
        model=plain(found.model),
        host=str(peer),
        host_name="me" if is_here else (row.name if row is not None else None),
        is_reached=is_here or peer in one.reached,
        card=str(found.card),
        a2a=f"{node.crew.a2a_url}/{one.cid}/{found.name}" if node.crew.a2a_url else None,
    )


async def card(node: "Node", params: op.Which) -> op.Card:
    """Raises: UnknownWorkspace, UnknownAgent, InvalidCid, Remote, NotFound."""
    if params.name is None:
        cid, hosts = Cid.parse(params.workspace), [PeerInfo(peer) for peer in node.network.peers()]
    else:
        found = _agent(find(node, params.workspace), params.name)
        if found is None:
            raise UnknownAgent(f"there is no agent {params.name!r}. See: covey agent ls {params.workspace}")
        cid, hosts = found.card, [PeerInfo(found.host, node.catalog.peers.addresses(found.host))]
    entry = await _card(node, cid, hosts)
    content = entry.content
    return op.Card(
        cid=str(cid),
        host=str(entry.author),
        role=str(content["role"]),
        model=plain(content["model"]),
        tools=plain(content["tools"]),
        workspace=str(content["workspace"]),
        card=plain(content["card"]),
    )


async def _card(node: "Node", cid: Cid, hosts: list[PeerInfo]) -> "Entry":
    from protocols.entry import read_entry

    try:
        return await trio.to_thread.run_sync(node.crew.read_card, cid)
    except NotFound:
        pass

    async def find_more() -> Any:
        return await node.network.find_providers(cid, 8)

    with trio.move_on_after(FETCH_LIMIT_S):
        await fetch_blocks(node.exchange, [cid], providers=hosts, find_more=find_more)
        body, _ = read_entry(await node.exchange.work(partial(node.store.get, cid)))
        await fetch_blocks(node.exchange, [body], providers=hosts, find_more=find_more)
        return await trio.to_thread.run_sync(node.crew.read_card, cid)
    raise NotFoundHere(f"the card {cid} is not here, and nobody who can be reached gave it within {FETCH_LIMIT_S:g} s")
