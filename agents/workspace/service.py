"""The workspaces of a node: read from their journals at the start, run side by side, and answered for."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import structlog
import trio

from agents.adapters.announce import Turnstile
from agents.adapters.ports import Ports
from agents.workspace.duties import until_of
from agents.workspace.errors import NotGranted, TooManyWorkspaces, UnknownWorkspace
from agents.workspace.history import Node
from agents.workspace.journal import Journal
from agents.workspace.pen import begin
from agents.workspace.room import MAX_BYTES
from agents.workspace.runs.effects import EFFECTS, Effect
from agents.workspace.runs.runner import Agents, Boundary, Runner
from agents.workspace.workspace import Work, Workspace
from protocols.entry import Entry
from protocols.errors import Remote
from protocols.net import Stream
from protocols.workspaces import sync
from protocols.workspaces.entries import PRIVATE_FORMAT, Grant, Join, Root, read_root
from protocols.workspaces.sync import Desk
from storage.cid import Cid
from storage.keys import PeerId

MAX_WORKSPACES: Final = 64
ASK_EVERY_S: Final = 0.05
ASK_BURST: Final = 400

log = structlog.get_logger(__name__)


class _Life:
    """What ends one workspace, and tells when it has ended."""

    def __init__(self) -> None:
        self.scope: Final = trio.CancelScope()
        self.over: Final = trio.Event()


class Workspaces:
    """All workspaces of a node."""

    def __init__(
        self,
        ports: Ports,
        folder: Path,
        work: Work = trio.to_thread.run_sync,
        effects: Mapping[str, Effect] = EFFECTS,
        on_boundary: Boundary | None = None,
        agents: Agents | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._ports = ports
        self._max_bytes = max_bytes
        self._effects = effects
        self._agents = agents
        self._on_boundary = on_boundary
        self._work = work
        self._folder = folder
        self._all: dict[Cid, Workspace] = {}
        self._journals: dict[Cid, Journal] = {}
        self._lives: dict[Cid, _Life] = {}
        self._nursery: trio.Nursery | None = None
        self._adding = trio.Lock()
        self._turnstile = Turnstile(ASK_EVERY_S, ASK_BURST)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every workspace, and answer members, for ever."""
        try:
            self._all = {one.cid: one for one in await self._work(lambda: list(self._load()))}
            self._ports.network.serve(sync.PROTOCOL, self._handle)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for one in self._all.values():
                    nursery.start_soon(self._live, one)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for journal in self._journals.values():
                journal.close()
            self._journals.clear()

    async def _live(self, one: Workspace, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run one, until it is forgotten."""
        life = self._lives[one.cid] = _Life()
        try:
            with life.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(one.run)
                    self._attend(one, nursery)
                    task_status.started()
        finally:
            self._lives.pop(one.cid, None)
            life.over.set()

    def _attend(self, one: Workspace, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._runner(one).run)
        if self._agents is not None:
            nursery.start_soon(self._agents.attend, one)

    def _runner(self, one: Workspace) -> Runner:
        network = self._ports.network

        def is_reached(peer: PeerId) -> bool:
            return peer in one.reached or peer in network.peers()

        more: dict[str, Any] = {"on_boundary": self._on_boundary} if self._on_boundary is not None else {}
        me, emit, unix_s = network.peer_id, self._ports.emit, self._ports.unix_s
        return Runner(one, me, is_reached, emit, self._effects, agents=self._agents, unix_s=unix_s, **more)

    def all(self) -> list[Workspace]:
        """Every workspace, the oldest first."""
        return sorted(self._all.values(), key=lambda one: (one.space.history.root.created_unix_s, one.cid))

    def get(self, cid: Cid) -> Workspace:
        """Raises: UnknownWorkspace."""
        try:
            return self._all[cid]
        except KeyError:
            raise UnknownWorkspace(
                f"there is no workspace {cid} here. To take part: covey ws join {cid} --from PEER"
            ) from None

    async def create(self, title: str, *, is_private: bool = False) -> Workspace:
        """Begin a workspace that this node owns. Raises: Local, TooManyWorkspaces, StorageError, OSError."""
        unix_s = self._ports.unix_s()
        root = Root(format=PRIVATE_FORMAT if is_private else 1, title=title, created_unix_s=int(unix_s))
        one = await self._follow(begin(self._ports.identity, root, int(unix_s * 1000)), ())
        await one.renew_key()
        return one

    async def join(self, cid: Cid, peers: Sequence[PeerId]) -> Workspace:
        """Take part in a workspace that one of `peers` has, and has a grant in for this node.

        Raises: UnknownWorkspace, NotGranted, TooManyWorkspaces, Remote, StorageError, OSError.
        """
        one = self._all.get(cid) or await self._brought_back(cid, peers)
        if one is None:
            root = await self._root_from(peers, cid)
            one = await self._follow(root, peers)
        one.hosts.update(peers)
        for peer in peers:
            try:
                await one.catch_up(peer)
            except (Remote, trio.TooSlowError) as error:
                log.info("not_caught_up", workspace=str(cid), peer=str(peer), error=repr(error))
        me = self._ports.identity.peer_id
        grant = grant_for(one, me)
        if me != one.space.history.owner and (grant is None or not one.may_read(me)):
            why = one.space.why_out(me) if grant is None else "what this node was granted is over by its clock"
            why = f"{why}. What it knew is here: covey ws log {cid}" if why else "nobody has invited this node yet"
            raise NotGranted(f"{why}. An admin there lets it in: covey ws invite {cid} {me}")
        if grant is not None and not one.space.has_joined(me):
            await one.say(Join(), link_to=grant.entry.cid)
            self._ports.emit("workspace_joined", workspace=str(cid), title=one.space.history.root.title)
        return one

    async def forget(self, cid: Cid) -> None:
        """Follow a workspace no more. Its history is put aside, and comes back when it is joined again: who began anew
        would sign numbers a second time, which is a fork. Raises: UnknownWorkspace, OSError."""
        async with self._adding:
            one = self.get(cid)
            with trio.CancelScope(shield=True):
                await one.end(UnknownWorkspace(f"{cid} was forgotten here. To take part again: covey ws join {cid}"))
                if (life := self._lives.get(cid)) is not None:
                    life.scope.cancel()
                    await life.over.wait()
                del self._all[cid]
                await self._work(self._journals.pop(cid).put_aside)

    async def _brought_back(self, cid: Cid, hosts: Sequence[PeerId]) -> Workspace | None:
        """A workspace that was forgotten, as it was then. Raises: TooManyWorkspaces, Remote, StorageError, OSError."""
        async with self._adding:
            if cid in self._all:
                return self._all[cid]
            self._need_room()
            with trio.CancelScope(shield=True):
                found = await self._work(partial(Journal.brought_back, self._folder / str(cid)))
            if found is None:
                return None
            journal, entries = found
            return await self._begin(self._of(entries[0], entries[1:], journal, hosts), journal)

    async def _root_from(self, peers: Sequence[PeerId], cid: Cid) -> Entry:
        failure: Exception | None = None
        for peer in peers:
            try:
                return await sync.ask_root(self._ports.network, peer, cid)
            except (Remote, trio.TooSlowError) as error:
                failure = failure or error
        raise UnknownWorkspace(
            f"none of {len(peers)} peers let this node into {cid}: name a member with --from, who must be connected, "
            f"and who has heard that this node is invited{f' ({failure})' if failure else ''}"
        )

    async def _follow(self, root: Entry, hosts: Sequence[PeerId]) -> Workspace:
        async with self._adding:
            if root.body_cid in self._all:
                return self._all[root.body_cid]
            read_root(root)
            self._need_room()
            with trio.CancelScope(shield=True):
                journal = await self._work(partial(Journal.create, self._folder / str(root.body_cid), root))
            return await self._begin(self._of(root, [], journal, hosts), journal)

    def _of(self, root: Entry, entries: Sequence[Entry], journal: Journal, hosts: Sequence[PeerId]) -> Workspace:
        return Workspace(self._ports, root, entries, journal, hosts, self._work, self._max_bytes)

    def _need_room(self) -> None:
        if len(self._all) >= MAX_WORKSPACES or self._nursery is None:
            raise TooManyWorkspaces(f"this node follows {len(self._all)} workspaces already")

    async def _begin(self, one: Workspace, journal: Journal) -> Workspace:
        assert self._nursery is not None, "there is room"
        self._journals[one.cid] = journal
        self._all[one.cid] = one
        await self._nursery.start(self._live, one)
        return one

    def _load(self) -> Iterator[Workspace]:
        """What the journals tell; one that cannot be read is told of and left alone."""
        for cid, journal, entries in Journal.load(self._folder):
            try:
                one = self._of(entries[0], entries[1:], journal, ())
            except Remote as error:
                journal.refuse(error)
                continue
            self._journals[cid] = journal
            yield one

    async def _handle(self, stream: Stream) -> None:
        if self._turnstile.admits(stream.peer, trio.current_time()):
            await sync.answer(stream, self._desk)

    def _desk(self, peer: PeerId, cid: Cid) -> Desk | None:
        """Only members learn that there is such a workspace."""
        one = self._all.get(cid)
        desk = one.desk(peer) if one is not None else None
        if one is None or desk is None or self._agents is None or not one.may_read(peer):
            return desk
        return desk._replace(content=partial(self._agents.content, one, peer))


def grant_for(one: Workspace, peer: PeerId) -> Node | None:
    """A live grant for this peer: of several the one that counts longest."""
    live = [node for node in one.space.live_grants() if cast(Grant, node.says).audience == peer]
    return max(live, key=lambda node: (until_of(node) or math.inf, node.rank), default=None)
