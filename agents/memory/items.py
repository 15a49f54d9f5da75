"""What an agent remembers, as everybody reads it in its workspace: a pure reading of the signed history.

An item is known by the CID of its block. It stands in the workspace as the value of the key `memory/agents/NAME/ID` or,
for all agents, `memory/shared/ID`, ID being the end of that CID: the same thing remembered twice is there once. An
agent's episodes are what it committed, and those that were brought along from another workspace.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from agents.errors import AgentError
from agents.workspace.history import Node, Rank
from agents.workspace.space import Space
from protocols.workspaces.entries import Commit, Put
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock, InvalidCid, TooLarge

PREFIX: Final = "memory/"
SHARED: Final = "memory/shared/"
ID_CHARS: Final = 32  # 160 bits of the CID
MAX_ITEMS: Final = 1024  # of an agent, and as many shared: the newest count
MAX_TEXT_CHARS: Final = 4096
MAX_EPISODE_CHARS: Final = 300
MAX_ITEM_BYTES: Final = 32 << 10
MAX_CID_CHARS: Final = 128


class BadMemory(AgentError):
    """That is nothing that an agent can remember: a text of 1 to 4096 characters, for a skill with an adapter's CID."""

    code = "bad_memory"


class UnknownMemory(AgentError):
    """That is not in the agent's memory. See what is: covey agent recall WORKSPACE AGENT."""

    code = "unknown_memory"


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """Something remembered.

    fact: told to it; skill: an adapter that it was given or that was trained for it, and what that is good for;
    episode: what it did, by the commit `source`.
    """

    kind: Literal["fact", "skill", "episode"]
    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARS)]
    adapter: Annotated[str, Meta(max_length=MAX_CID_CHARS)] = ""
    source: Annotated[str, Meta(max_length=MAX_CID_CHARS)] = ""

    @property
    def block(self) -> bytes:
        """Its bytes as a block."""
        return dag_cbor.encode(msgspec.to_builtins(self))

    @cached_property
    def cid(self) -> Cid:
        """By what it is known."""
        return Cid.of(self.block, DAG_CBOR)


def checked(item: Item) -> Item:
    """The same item, where it is one. Raises: BadMemory."""
    return _convert(msgspec.to_builtins(item))


def read_block(data: bytes) -> Item:
    """The item that a block holds. Raises: BadMemory."""
    if len(data) > MAX_ITEM_BYTES:
        raise BadMemory(f"a memory of {len(data)} bytes; {MAX_ITEM_BYTES} are allowed")
    try:
        item = _convert(dag_cbor.decode(data))
    except (InvalidBlock, TooLarge) as error:
        raise BadMemory(f"no memory: {error}") from None
    if item.block != data:
        raise BadMemory("a memory that is written in another way than it has to be")
    return item


def _convert(value: Any) -> Item:
    try:
        item = msgspec.convert(value, Item)
        item.text.encode()
        for text in (item.adapter, item.source):
            if text:
                Cid.parse(text)
    except (msgspec.ValidationError, InvalidCid, ValueError) as error:
        raise BadMemory(f"no memory: {error}") from None
    if (item.kind == "skill") != bool(item.adapter) or (item.kind == "episode") != bool(item.source):
        raise BadMemory("a skill has an adapter, an episode the commit that it comes from, and nothing else has one")
    return item


# --- where it stands


def key_of(item: Item, agent: str | None) -> str:
    """The key of an item in the workspace; of no agent's own, it is shared."""
    own, shared = keys_of(item.cid, agent or "")
    return shared if agent is None else own


def keys_of(cid: Cid, agent: str) -> tuple[str, str]:
    """Where an item of that CID would stand: as an agent's own, and shared."""
    tail = str(cid)[-ID_CHARS:]
    return f"{PREFIX}agents/{agent}/{tail}", SHARED + tail


def read_item(key: str, node: Node) -> Item | None:
    """The item that an entry puts under a key; None where it is none, or stands under another's key."""
    return _read(key, node.says.value) if isinstance(node.says, Put) else None


def _read(key: str, value: Any) -> Item | None:
    if not isinstance(value, dict):
        return None
    try:
        item = _convert(value)
    except BadMemory:
        return None
    return item if key.endswith("/" + str(item.cid)[-ID_CHARS:]) else None


class Stored(NamedTuple):
    """A value where a memory may stand, by its place in the order: not looked into yet."""

    rank: Rank
    key: str
    value: Any


class Kept(NamedTuple):
    """What stands in a workspace where an agent's memory is: gathered in no time, and read in a thread of its own.

    own, shared: as they stand in the order. done: what the agent committed there last.
    """

    own: tuple[Stored, ...]
    shared: tuple[Stored, ...]
    done: tuple[tuple[Rank, Item], ...]

    def knowledge(self) -> list[Item]:
        """Facts and skills in the order in which they were put there, each once."""
        found = sorted(_items(self.own) + _items(self.shared), key=lambda one: one[0])
        return list({item.cid: item for _, item in found if item.kind != "episode"}.values())

    def episodes(self, n_most: int) -> list[Item]:
        """What the agent did last, the oldest first, whoever hosted it: its episodes are the history itself."""
        brought = [(rank, item) for rank, item in _items(self.own) if item.kind == "episode"] if n_most else []
        ordered = sorted([*brought, *self.done], key=lambda one: one[0])
        return list({item.cid: item for _, item in ordered}.values())[-n_most:] if n_most else []

    def newest_skill(self) -> Item | None:
        """The adapter that it learnt last."""
        skills = [item for item in self.knowledge() if item.kind == "skill"]
        return skills[-1] if skills else None


def _items(stored: Iterable[Stored]) -> list[tuple[Rank, Item]]:
    read = ((one.rank, _read(one.key, one.value)) for one in stored)
    return [(rank, item) for rank, item in read if item is not None][-MAX_ITEMS:]


def gather(space: Space, agent: str, *, is_shared: bool, n_done: int = 0) -> Kept:
    """What there is of an agent's memory: of all agents' too if `is_shared`, and its last `n_done` commits."""
    values, done = space.values(), list[tuple[Rank, Item]]()
    for node in reversed(space.commits()) if n_done else ():
        if (item := episode_of(node, agent)) is not None:
            done.append((node.rank, item))
            if len(done) == n_done:
                break
    shared = _stored(values, SHARED) if is_shared else ()
    return Kept(_stored(values, f"{PREFIX}agents/{agent}/"), shared, tuple(reversed(done)))


def _stored(values: Mapping[str, Node], prefix: str) -> tuple[Stored, ...]:
    found = (
        Stored(node.rank, key, node.says.value)
        for key, node in values.items()
        if key.startswith(prefix) and "/" not in key[len(prefix) :] and isinstance(node.says, Put)
    )
    return tuple(sorted(found, key=lambda one: one.rank))


def knowledge(space: Space, agent: str, *, is_shared: bool) -> list[Item]:
    """Facts and skills in the order in which they were put there, each once; of all agents too if `is_shared`."""
    return gather(space, agent, is_shared=is_shared).knowledge()


def episode_of(node: Node, agent: str) -> Item | None:
    """What an agent did, where an entry commits something of its."""
    output = node.says.output if isinstance(node.says, Commit) else None
    made = output.get("made") if isinstance(output, dict) else None
    if not isinstance(output, dict) or not isinstance(made, dict) or made.get("agent") != agent:
        return None
    text = str(output.get("value"))[:MAX_EPISODE_CHARS]
    return Item(kind="episode", text=text, source=str(node.id)) if text else None


def episodes(space: Space, agent: str, n_most: int) -> list[Item]:
    """What an agent did last, the oldest first."""
    return gather(space, agent, is_shared=False, n_done=n_most).episodes(n_most)


def ever(space: Space, wanted: Iterable[str]) -> dict[str, Item]:
    """Items by their CIDs as texts, those that are forgotten by now too: what a record names."""
    left, found = set(wanted), dict[str, Item]()
    for _, item in every(space) if left else ():
        name = str(item.cid)
        if name in left:
            left.discard(name)
            found[name] = item
            if not left:
                break
    return found


def every(space: Space) -> Iterator[tuple[Node, Item]]:
    """All that was ever remembered by anybody, with the entry that says so, in the order in which it came here."""
    for node in space.history:
        match node.says:
            case Put(key=key) if key.startswith(PREFIX) and (item := read_item(key, node)) is not None:
                yield node, item
            case Commit(output={"made": {"agent": str(agent)}}) if (item := episode_of(node, agent)) is not None:
                yield node, item
