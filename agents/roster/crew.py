"""The agents that this node hosts: their declarations on the disk, and each at work when a step is its to do.

`agents/WORKSPACE/NAME.toml` below the node's home holds a declaration as its user wrote it. What an agent is to others,
its card, stands in the workspace.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import trio

from agents.adapters.ports import Ports
from agents.memory.indexes import Encoding
from agents.memory.mind import Mind
from agents.memory.own import Own
from agents.memory.view import View, recorded, worked
from agents.roster import asking, attached
from agents.roster.announced import PREFIX, announced, read_announced
from agents.roster.card import SCOPE, check_size, read_card, sign_card
from agents.roster.contained import contained
from agents.roster.content import Content
from agents.roster.deciding import Deciding
from agents.roster.declaration import LEARNT, BadAgent, Declaration, read_declaration
from agents.roster.errors import UnknownAgent
from agents.roster.language import LanguageModel
from agents.roster.perform import MODEL, Task, perform, prompt_of
from agents.roster.shown import Audiences, card_pin, members_of
from agents.tools.adapters import Adapters
from agents.tools.tool import Reach
from agents.workspace.runs.core import Perform, Run, StepView
from agents.workspace.runs.effects import EffectFailed
from agents.workspace.workspace import Workspace
from protocols.entry import Entry, external_aad, open_entry, read_entry
from protocols.workspaces.entries import Drop, Put, check
from storage import durable
from storage.blockstore import Visibility
from storage.cid import Cid
from storage.errors import InvalidCid, StorageError
from storage.keys import PeerId
from storage.pins import PinKind, PinState

MAX_AGENTS: Final = 64  # of one workspace, on one node
ATTEND_GAP_S: Final = 1.0
SUFFIX: Final = ".toml"
KIND: Final = "agent"

OpenModel = Callable[[Declaration], AbstractAsyncContextManager[LanguageModel]]
log = structlog.get_logger(__name__)


class Crew:
    """All agents of a node. `attach` says how models are opened, before the first is needed."""

    def __init__(self, ports: Ports, folder: Path) -> None:
        self._ports = ports
        self._folder = folder
        self._hosted: dict[tuple[Cid, str], Declaration] = {}
        self._n_busy: dict[str, int] = {}
        self._open_model: OpenModel | None = None
        self._adapters: Adapters | None = None
        self.mind = Mind(folder)
        self.audiences = Audiences(ports)
        self._content = Content(ports, self.audiences)
        self.attached = attached.Attached()
        self.a2a_url: str | None = None  # where programs that speak A2A reach agents, while they do
        self.load()

    def attach(self, open_model: OpenModel, encoding: Encoding | None = None, adapters: Adapters | None = None) -> None:
        """From now on agents can think, with an encoding remember by meaning, and train."""
        self._open_model = open_model
        self.mind.encoding = encoding
        self._adapters = adapters

    def load(self) -> None:
        """Read every declaration; one that cannot be read is told of and left alone."""
        for path in sorted(self._folder.glob(f"*/*{SUFFIX}")) if self._folder.is_dir() else []:
            try:
                declared = read_declaration(path.read_bytes(), str(path))
                self._hosted[Cid.parse(path.parent.name), declared.name] = declared
            except (BadAgent, InvalidCid, OSError) as error:
                log.error("agent_unusable", path=str(path), error=str(error))

    def hosted(self, workspace: Cid) -> dict[str, Declaration]:
        """The agents of this node's in a workspace, by name."""
        return {name: declared for (cid, name), declared in sorted(self._hosted.items()) if cid == workspace}

    # --- who comes and goes

    async def add(self, one: Workspace, data: bytes, level: Visibility) -> tuple[Declaration, Entry]:
        """Host an agent from now on: its declaration is kept, its card signed, held and announced.

        Raises: BadAgent, StorageError, OSError.
        """
        declared = read_declaration(data)
        hosted = self.hosted(one.cid)
        if declared.name not in hosted and len(hosted) >= MAX_AGENTS:
            raise BadAgent(f"this node hosts {len(hosted)} agents there already: covey agent rm one first")
        members = members_of(one.space)
        card = await self._ports.exchange.work(partial(self._keep, one.cid, declared, data, level, members))
        value = {
            "role": declared.role,
            "capabilities": list(declared.capabilities),
            "description": declared.description,
            "tools": list(declared.tools),
            "model": dict(card.content["model"]),
        }
        self._hosted[one.cid, declared.name] = declared
        await one.say(check(Put(key=PREFIX + declared.name, value=value, link=card.cid)))
        return declared, card

    def _keep(
        self, workspace: Cid, declared: Declaration, data: bytes, level: Visibility, members: frozenset[PeerId]
    ) -> Entry:
        ports = self._ports
        sequence = ports.catalog.sequences.next(external_aad(KIND, SCOPE), ports.unix_s())
        card = sign_card(ports.identity, declared, workspace, sequence)
        check_size(card)
        name = card_pin(workspace, declared.name)
        with ports.store.lease():
            ports.store.put_many(card.blocks)
            for block in card.blocks:
                ports.pins.add(block.cid, name, PinKind.DIRECT, PinState.COMPLETE)
            self.audiences.publish(card.cid, level, workspace, members)
        folder = self._folder / str(workspace)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write_file(folder / f"{declared.name}{SUFFIX}", data)
        return card

    async def remove(self, one: Workspace, name: str) -> None:
        """Host an agent no longer. Raises: UnknownAgent, StorageError, OSError."""
        if self._hosted.pop((one.cid, name), None) is None:
            raise UnknownAgent(f"this node hosts no agent {name!r} there. See: covey agent ls {one.cid}")
        path = self._folder / str(one.cid) / f"{name}{SUFFIX}"
        await self._ports.exchange.work(partial(path.unlink, missing_ok=True))
        await self.mind.forget(one.cid, name)
        node = one.space.values().get(PREFIX + name)
        if node is not None and node.author == self._ports.identity.peer_id:
            await one.say(Drop(key=PREFIX + name))

    def read_card(self, cid: Cid) -> Entry:
        """The card that is here, its signature checked. Raises: NotFound, Remote."""
        block = self._ports.store.get(cid)
        entry = open_entry(block, self._ports.store.get(read_entry(block)[0]))
        read_card(entry)
        return entry

    async def attend(self, one: Workspace) -> None:
        """Show what agents left for a workspace's members to whoever is one, for ever."""
        shown: frozenset[PeerId] | None = None
        while True:
            seen, members = one.n_news, members_of(one.space)
            if members != shown:
                try:
                    await self._ports.exchange.work(partial(self.audiences.follow, one.cid, members))
                    shown = members
                except StorageError as error:  # tried again with the next news
                    log.error("members_not_shown", workspace=str(one.cid), error=str(error))
            await one.news(seen)
            await trio.sleep(ATTEND_GAP_S)

    async def content(self, one: Workspace, peer: PeerId, cid: Cid) -> bytes | None:
        """A block of the workspace's content, for a member. Raises: StorageError, OSError."""
        return await self._content.given(one, peer, cid)

    # --- at work

    async def perform(self, one: Workspace, act: Perform) -> tuple[Any, dict[str, Any]]:
        """Have an agent of this node's do a step; of several with the role the one that has least to do."""
        me, step = self._ports.identity.peer_id, act.plan
        able = [
            found
            for found in announced(one.space)
            if found.host == me and (found.name == step.agent if step.agent is not None else found.role == step.role)
        ]
        able = [found for found in able if (one.cid, found.name) in self._hosted]
        if not able:
            raise EffectFailed(f"this node hosts no agent for {step.name}: covey agent add")
        chosen = min(able, key=lambda found: (self._n_busy.get(found.name, 0), found.name))
        left = max(1, act.run.plan.max_tokens - act.run.n_tokens) if act.run.plan.max_tokens else 0
        depth, before = asking.depth_of(act.run.name), tuple(worked(act.run, act.view))
        return await self._work(one, chosen.name, chosen.card, Task(step.do, act.input, act.key, left, depth, before))

    def told(self, one: Workspace, run: Run, view: StepView, given: Any) -> list[dict[str, str]] | None:
        """What a step's agent, if it is this node's, would be told now, with what it then had in mind.

        None where that is another's, or changes with what servers it asks have to offer. Raises: BadMemory,
        UnknownMemory.
        """
        declared = self._hosted.get((one.cid, str(view.made.get("agent"))))
        if declared is None or declared.policy.servers:
            return None
        record = view.made.get("memory")
        memory = recorded(one.space, record, run, view) if record is not None else View()
        return [{"role": turn.role, "content": turn.content} for turn in prompt_of(declared, given, memory.text())]

    async def ask(self, one: Workspace, name: str, task: Task) -> tuple[Any, dict[str, Any]]:
        """Have an agent of this node's do something. Raises: UnknownAgent, and what the work raises."""
        node = one.space.values().get(PREFIX + name)
        found = read_announced(one.space, PREFIX + name, node) if node is not None else None
        if found is None or (one.cid, name) not in self._hosted or found.host != self._ports.identity.peer_id:
            raise UnknownAgent(f"this node hosts no agent {name!r} there. See: covey agent ls {one.cid}")
        return await self._work(one, name, found.card, task)

    async def _work(self, one: Workspace, name: str, card: Cid, task: Task) -> tuple[Any, dict[str, Any]]:
        with contained(name):
            return await self._done(one, name, card, task)

    async def _done(self, one: Workspace, name: str, card: Cid, task: Task) -> tuple[Any, dict[str, Any]]:
        declared = self._hosted[one.cid, name]
        memory, wish = View(), declared.remembers
        if task.do == MODEL:
            memory = await self.mind.view(one.space, name, wish, task.input, task.before)
            if declared.model.adapter == LEARNT:
                skill = await self.mind.newest_skill(one.space, name, wish)
                thinks = msgspec.structs.replace(declared.model, adapter=skill.adapter if skill else "none")
                declared = msgspec.structs.replace(declared, model=thinks)
                memory = memory._replace(skill=str(skill.cid) if skill else "")
        self._n_busy[name] = self._n_busy.get(name, 0) + 1
        try:
            async with self._opened(one.cid, declared, task) as model:
                reach = self._reach(one, declared, task.key, task.depth)
                return await perform(declared, card, task, model, reach, memory)
        finally:
            self._n_busy[name] -= 1

    def _opened(
        self, workspace: Cid, declared: Declaration, task: Task
    ) -> AbstractAsyncContextManager[LanguageModel | None]:
        if task.do != MODEL:
            return nullcontext()  # a tool needs no model, so it does not matter whether there is one
        if declared.model.kind == attached.KIND:
            return nullcontext(attached.AttachedModel(self.attached, workspace, declared, task.key))
        if self._open_model is None:
            raise EffectFailed("the node is not ready yet")
        return self._open_model(declared)

    def _reach(self, one: Workspace, declared: Declaration, key: str, depth: int) -> Reach:
        ports, me = self._ports, self._ports.identity.peer_id

        async def ask(agent: str, prompt: str, of: str) -> str:
            name = asking.name_for(of, agent, prompt, depth + 1)
            unix_s = ports.unix_s()
            await asking.begin(one, me, agent, prompt, name, declared.model.timeout_s, unix_s)
            return str(await asking.answer(one, name, agent, prompt))

        own = Own(one, self.mind, me, declared.name, declared.remembers)
        return Reach(
            policy=declared.policy, key=key, space=one.space, own=own, ask=ask, agent=declared.name,
            get=partial(self._content.get, one), put=partial(self._content.put, one), adapters=self._adapters,
            decisions=Deciding(one, me, declared.policy.decides, ports.unix_s()),
        )  # fmt: skip
