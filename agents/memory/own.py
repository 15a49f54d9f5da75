"""An agent's memory in its own hands: what its tools do with it, and what keeps an item in a workspace."""

from dataclasses import dataclass

import msgspec

from agents.memory.items import MAX_ITEMS, BadMemory, Item, checked, key_of
from agents.memory.mind import Mind
from agents.memory.wish import Memory
from agents.workspace.errors import NotGranted
from agents.workspace.workspace import Workspace
from protocols.workspaces.entries import Put, check
from storage.cid import Cid
from storage.keys import PeerId


async def keep(one: Workspace, me: PeerId, item: Item, agent: str | None) -> None:
    """Sign that an agent remembers something, or all do; once. Raises: BadMemory, NotGranted, NoKey, StorageError."""
    key, values = key_of(item, agent), one.space.values()
    if not one.space.may(me, "write", key):
        raise NotGranted(f"this node may not write {key!r} in {one.space.history.root.title!r}")
    if key in values:
        return
    room = key[: key.rindex("/") + 1]
    if sum(name.startswith(room) for name in values) >= MAX_ITEMS:
        raise BadMemory(f"{MAX_ITEMS} things are remembered there already: let it forget some (covey agent forget)")
    await one.say(check(Put(key=key, value=msgspec.to_builtins(item))))


@dataclass(frozen=True, slots=True)
class Own:
    """The memory of one agent that this node hosts."""

    one: Workspace
    mind: Mind
    me: PeerId
    agent: str
    wish: Memory

    async def remember(self, text: str) -> Cid:
        """Remember a fact; the same one twice is there once. Raises: as `keep`."""
        item = checked(Item(kind="fact", text=text))
        await keep(self.one, self.me, item, self.agent)
        return item.cid

    async def recall(self, question: str, n_most: int) -> list[Item]:
        """What fits, the best first."""
        recalled = await self.mind.recall(self.one.space, self.agent, self.wish, question)
        return [item for _, item in recalled.found[:n_most]]
