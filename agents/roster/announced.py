"""The agents of a workspace, as everybody reads them there: the value of the key `agents/NAME`, put by its host."""

from typing import Annotated, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import msgspec
from msgspec import Meta

from agents.workspace.history import Node
from agents.workspace.runs.plan import Name
from agents.workspace.space import Space
from protocols.workspaces.entries import Put
from storage.cid import Cid
from storage.keys import PeerId

PREFIX: Final = "agents/"


class _Value(msgspec.Struct, frozen=True):
    """What is read of an announcement; whatever else stands there is the card's."""

    role: Name
    capabilities: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=32)] = []
    model: dict[str, Any] = {}
    tools: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=32)] = []
    description: Annotated[str, Meta(max_length=1000)] = ""


class Announced(NamedTuple):
    """An agent. Its host is who put it there: nobody can announce an agent in another's name."""

    name: str
    role: str
    capabilities: tuple[str, ...]
    description: str
    model: dict[str, Any]
    tools: tuple[str, ...]
    host: PeerId
    card: Cid


_KEPT: Final[WeakKeyDictionary[Space, tuple[int, list[Announced]]]] = WeakKeyDictionary()


def announced(space: Space) -> list[Announced]:
    """Every agent whose host is a member still, by name. What does not read as one is none.

    It is asked for each step of each run that waits: what was found is kept until there are more entries.
    """
    n_blocks, found = _KEPT.get(space, (-1, []))
    if n_blocks != space.history.n_blocks:
        ours = sorted((key, node) for key, node in space.values().items() if key.startswith(PREFIX))
        found = [one for key, node in ours if (one := read_announced(space, key, node))]
        _KEPT[space] = space.history.n_blocks, found
    return list(found)


def read_announced(space: Space, key: str, node: Node) -> Announced | None:
    """The agent that an entry announces, where it does."""
    name = key.removeprefix(PREFIX)
    if not key.startswith(PREFIX) or not name or "/" in name or not isinstance(node.says, Put):
        return None
    if node.says.link is None or not space.is_member(node.author):
        return None
    try:
        value = msgspec.convert(node.says.value, _Value)
    except msgspec.ValidationError:
        return None
    return Announced(
        name, value.role, tuple(value.capabilities), value.description, value.model, tuple(value.tools),
        node.author, node.says.link,
    )  # fmt: skip


def announced_as(space: Space, name: str, card: Cid, host: PeerId) -> str | None:
    """The role in which a host once announced an agent of that name by that card; None where it never did."""
    for node in space.history:
        says = node.says
        if isinstance(says, Put) and (says.key, says.link, node.author) == (PREFIX + name, card, host):
            role = says.value.get("role") if isinstance(says.value, dict) else None
            if isinstance(role, str) and not space.code(node):
                return role
    return None


def performers(space: Space, agent: str | None, role: str | None) -> frozenset[PeerId] | None:
    """Who can perform a step that is this agent's, or any agent's of this role; None where that is anybody."""
    if agent is None and role is None:
        return None
    return frozenset(
        one.host for one in announced(space) if (one.name == agent if agent is not None else one.role == role)
    )
