"""What a workspace's agents may read of a node's content, and what its members give each other of it.

What an agent reads stands in its answer, for all members. So a member gives another what agents put into the workspace,
and never what it shows to that one's node for other reasons: that may be in confidence. Who asks is told the same of
what is private here as of what is not here. And what an agent may not read out of this node's own is asked of others
also where it is here, so that nobody can tell.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import structlog
import trio

from agents.adapters.ports import Ports
from agents.roster.shown import Audiences, content_pin, members_of
from agents.tools.tool import ToolFailed, ToolRefused
from agents.workspace.links import linked, teller
from agents.workspace.workspace import Workspace
from protocols.errors import ProtocolError, Tampered
from protocols.net import PeerInfo
from protocols.telling import OPEN_TIMEOUT_S
from protocols.workspaces import sync
from protocols.workspaces.entries import Commit
from storage.blockstore import MadeBlock, Visibility
from storage.cid import HASHES, RAW, Cid
from storage.errors import CorruptBlock, NotFound
from storage.keys import PeerId
from storage.pins import PinKind, PinState

FETCH_S: Final = 20.0
MAX_ASKED: Final = 32  # members, for one block
ASKED_AT_ONCE: Final = 4
MAX_HINTS: Final = 2000  # commits that are looked through for who has it

log = structlog.get_logger(__name__)


class Content:
    """A node's, of all its workspaces."""

    def __init__(self, ports: Ports, audiences: Audiences) -> None:
        self._ports = ports
        self._audiences = audiences
        self._links: dict[Cid, tuple[int, dict[Cid, set[PeerId]]]] = {}  # by workspace, at so many entry blocks

    async def get(self, one: Workspace, cid: Cid, n_most: int) -> bytes:
        """A block for an agent. Raises: ToolRefused, ToolFailed, StorageError, OSError."""
        data = await self._own(one, cid)
        if data is None:
            data = await self._from_members(one, cid)
            if data is None:
                raise ToolRefused(f"{cid} is not for everybody here, and no member who can be reached gave it")
            await self._ports.exchange.work(partial(self._keep, one.cid, MadeBlock(cid, data)))
        if len(data) > n_most:
            raise ToolFailed(f"{cid} has {len(data)} bytes; {n_most} are allowed")
        return data

    async def put(self, one: Workspace, data: bytes) -> Cid:
        """Keep what an agent made, for the members. Raises: StorageError, OSError."""
        block, members = MadeBlock.of(data, RAW), members_of(one.space)

        def keep() -> None:
            with self._ports.store.lease():
                self._keep(one.cid, block)
                self._audiences.publish(block.cid, Visibility.MEMBERS, one.cid, members)

        await self._ports.exchange.work(keep)
        return block.cid

    async def given(self, one: Workspace, peer: PeerId, cid: Cid) -> bytes | None:
        """A block for a member, if it is the workspace's content: put there by an agent here or given by a member; of
        what this node's user linked to, what that member is shown anyway. Raises: StorageError, OSError."""
        me = self._ports.identity.peer_id
        is_linked = me in self._linked(one).get(cid, ())
        asker = peer if is_linked else None

        def is_shown() -> bool:
            is_flock = is_linked and peer in self._ports.catalog.peers.flock()
            return self._ports.roots.may_see(asker, cid, is_flock=is_flock)

        return await self._ports.exchange.work(partial(self._read, one.cid, cid, is_shown))

    async def _own(self, one: Workspace, cid: Cid) -> bytes | None:
        """A block that is here, if agents here may read it."""
        ports, authors = self._ports, self._linked(one).get(cid, ())
        may_tell = teller(ports.identity.peer_id, ports.roots, ports.catalog.peers.flock)

        def is_shown() -> bool:
            return ports.roots.may_see(None, cid, is_flock=False) or any(may_tell(author, cid) for author in authors)

        return await ports.exchange.work(partial(self._read, one.cid, cid, is_shown))

    def _read(self, workspace: Cid, cid: Cid, is_shown: Callable[[], bool]) -> bytes | None:
        if not is_shown() and self._ports.pins.get(cid, content_pin(workspace)) is None:
            return None
        try:
            return self._ports.store.get(cid)
        except (NotFound, CorruptBlock):
            return None

    def _linked(self, one: Workspace) -> dict[Cid, set[PeerId]]:
        n_blocks = one.space.history.n_blocks
        known, links = self._links.get(one.cid, (-1, {}))
        if known != n_blocks:
            links = linked(one.space, self._ports.identity.peer_id)
            self._links[one.cid] = (n_blocks, links)
        return links

    def _keep(self, workspace: Cid, block: MadeBlock) -> None:
        with self._ports.store.lease():
            self._ports.store.put_many([block])  # what is here keeps who may see it
            self._ports.pins.add(block.cid, content_pin(workspace), PinKind.DIRECT, PinState.COMPLETE)

    # --- others

    async def _from_members(self, one: Workspace, cid: Cid) -> bytes | None:
        if cid.hash_code not in HASHES:
            raise ToolFailed(f"{cid} is named by a hash function that cannot be checked here")
        found: list[bytes] = []
        whom = self._whom(one, cid)

        async def ask_some() -> None:
            for peer in whom:
                data = await self._asked(one, peer, cid)
                if data is not None:
                    found.append(data)
                    nursery.cancel_scope.cancel()

        with trio.move_on_after(FETCH_S):
            async with trio.open_nursery() as nursery:
                for _ in range(ASKED_AT_ONCE):
                    nursery.start_soon(ask_some)
        return found[0] if found else None

    def _whom(self, one: Workspace, cid: Cid) -> Iterator[PeerId]:
        """The members to ask: who said that it has it, then who is connected, then the others."""
        connected, hints = set(self._ports.network.peers()), set(_said_by(one, cid))
        others = members_of(one.space) - {self._ports.identity.peer_id}
        return iter(sorted(others, key=lambda peer: (peer not in hints, peer not in connected, peer))[:MAX_ASKED])

    async def _asked(self, one: Workspace, peer: PeerId, cid: Cid) -> bytes | None:
        network = self._ports.network
        try:
            if peer not in network.peers():
                addresses = await self._ports.exchange.work(partial(self._ports.catalog.peers.addresses, peer))
                with trio.fail_after(OPEN_TIMEOUT_S):
                    await network.connect(PeerInfo(peer, addresses))
            return await sync.ask_content(network, peer, one.cid, cid)
        except Tampered as error:
            self._ports.emit("peer_misbehaved", by=peer, code=error.code)
        except (ProtocolError, trio.TooSlowError, OSError) as error:
            log.info("content_not_given", workspace=str(one.cid), peer=str(peer), error=str(error))
        return None


def _said_by(one: Workspace, cid: Cid) -> Iterator[PeerId]:
    """Whose agents said last that they put it there. It is a hint and no right: who is asked decides by itself."""
    text = str(cid)
    for node in one.space.commits()[-MAX_HINTS:]:
        says = node.says
        if isinstance(says, Commit) and text in str(says.output):
            yield node.author
