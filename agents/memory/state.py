"""An agent's state: a CID for who it is and what it remembers, from which it comes to life on another node.

A root block names the declaration, without what stays on its host, and links to a block for each item of its memory.
It has no time, host or signature, so the same agent with the same memory has the same state anywhere.
"""

from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from agents.errors import AgentError
from agents.memory.items import MAX_ITEMS, Item, Kept, gather, key_of
from agents.memory.wish import MAX_EPISODES
from agents.roster.declaration import BadAgent, Declaration, Model, Policy
from agents.workspace.space import Space
from storage.blockstore import MadeBlock
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock, TooLarge

MAX_STATE_ITEMS: Final = 2 * MAX_ITEMS + MAX_EPISODES
MAX_STATE_BYTES: Final = 256 << 10
MAX_DONE: Final = 1 << 20  # more than a workspace has
LATER_RIGHTS: Final = ("decides",)
ON_ITS_HOST: Final = ("url", "token_env", "peer")  # of a model: where it is reached


class BadState(AgentError):
    """That is no agent's state. Ask whom it is from for the CID that `covey agent state` printed."""

    code = "bad_state"


class Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a root block says."""

    format: Literal[1] = 1
    kind: Literal["agent-state"] = "agent-state"
    agent: dict[str, Any]
    items: Annotated[list[Cid], Meta(max_length=MAX_STATE_ITEMS)]


class State(NamedTuple):
    """A declaration with nothing of its host in it, and the items in the order in which they were remembered."""

    declared: Declaration
    items: tuple[Item, ...]

    def blocks(self) -> list[MadeBlock]:
        """The root first, then the items, each once."""
        root = dag_cbor.encode(
            {
                "format": 1,
                "kind": "agent-state",
                "agent": _fields(self.declared),
                "items": [item.cid for item in self.items],
            }
        )
        unique = {item.cid: item for item in self.items}
        return [MadeBlock.of(root, DAG_CBOR), *(MadeBlock.of(item.block, DAG_CBOR) for item in unique.values())]


def _fields(declared: Declaration) -> dict[str, Any]:
    """A declaration as a root block has it: without rights that are younger than the format, which are empty."""
    fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(declared))
    for name in LATER_RIGHTS:
        del fields["policy"][name]
    return fields


def kept_of(space: Space, declared: Declaration, n_done: int = MAX_EPISODES) -> Kept:
    """What an agent's state is made of, as it stands now."""
    return gather(space, declared.name, is_shared=declared.remembers.is_shared, n_done=n_done)


def state_of(kept: Kept, declared: Declaration) -> State:
    """An agent with its memory: what of its workspace's it shares is its own from here on."""
    return State(portable(declared), (*kept.knowledge(), *kept.episodes(MAX_EPISODES)))


def portable(declared: Declaration) -> Declaration:
    """A declaration without what is its host's business: what its tools may reach, and where its model is."""
    model = msgspec.structs.replace(declared.model, **dict.fromkeys(ON_ITS_HOST, ""))
    return msgspec.structs.replace(declared, model=model, policy=Policy())


def read_root(data: bytes) -> tuple[Declaration, tuple[Cid, ...]]:
    """What a root block says. Raises: BadState."""
    if len(data) > MAX_STATE_BYTES:
        raise BadState(f"an agent's state has {MAX_STATE_BYTES} bytes at most, this has {len(data)}")
    try:
        root = msgspec.convert(dag_cbor.decode(data), Root, dec_hook=_link)
        declared = msgspec.convert(root.agent, Declaration)
    except (InvalidBlock, TooLarge, msgspec.ValidationError) as error:
        raise BadState(f"no agent's state: {error}") from None
    if declared != portable(declared):
        raise BadState(
            "an agent's state says what its tools may reach or where its model is: that is its host's to say"
        )
    return declared, tuple(root.items)


def _link(form: type, value: object) -> object:
    if form is Cid and isinstance(value, Cid) and value.codec == DAG_CBOR:
        return value
    raise ValueError("a link to a DAG-CBOR block was expected")


class Local(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a host adds to an agent that comes from a state: its policy, and, if it says so, another model."""

    policy: Policy = Policy()
    model: Model | None = None


def at_home(declared: Declaration, data: bytes | None, where: str) -> Declaration:
    """The declaration as a host's user completes it, in TOML of [policy] and [model] alone. Raises: BadAgent."""
    import tomllib

    if data is None:
        return declared
    try:
        local = msgspec.convert(tomllib.loads(data.decode()), Local)
    except (ValueError, msgspec.ValidationError) as error:
        raise BadAgent(f"{where}: beside a state there are [policy] and [model] alone: {error}") from None
    return msgspec.structs.replace(declared, policy=local.policy, model=local.model or declared.model)


def missing_from(kept: Kept, declared: Declaration, items: tuple[Item, ...]) -> list[tuple[str, Item]]:
    """What a workspace lacks of an agent's memory, with its keys, in order. Args: kept: all of it that is there."""
    wanted = {item.cid: item for item in items}
    known = {item.cid for item in (*kept.knowledge(), *kept.episodes(MAX_DONE))}
    return [(key_of(item, declared.name), item) for cid, item in wanted.items() if cid not in known]
