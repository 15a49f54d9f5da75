"""IPNS names: those of this node, kept alive in the DHT, and records of others, served at its gateway."""

from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from daemon.api.operation import Done, Nothing, Operation, Params, Result

if TYPE_CHECKING:
    from daemon.app import Node
    from storage.catalog.names import NameRow
    from storage.keys import PeerId

_NS: Final = 1_000_000_000
Name = Annotated[str, Meta(max_length=512, description="An IPNS name: k51..., 12D3KooW... or Qm...")]


class Add(Params, frozen=True):
    """A record to keep. It is verified first; an older one than the one here is not taken."""

    path: Annotated[
        str, Meta(max_length=4096, description="The record; - for stdin.", extra={"path": True, "stdin": True})
    ]
    name: (
        Annotated[
            str,
            Meta(max_length=512, description="Whose record it is (default: as its key or the file's name says)."),
        ]
        | None
    ) = None


class Named(Params, frozen=True):
    """A name."""

    name: Name


class Publish(Params, frozen=True):
    """What a name of this node stands for from now on; `self` is the key that the node itself is known by."""

    cid: Annotated[str, Meta(max_length=4096, description="CID, /ipfs/CID/path or /ipns/NAME.")]
    key: Annotated[
        str, Meta(max_length=80, description="Any word of yours: each has a name of its own, always the same.")
    ] = "self"
    lifetime_s: Annotated[int, Meta(ge=60, le=10 * 366 * 86_400, description="How long the record is valid.")] = (
        48 * 3600
    )
    ttl_s: Annotated[int, Meta(ge=0, le=366 * 86_400, description="How long others may cache it.")] = 300


class NameRecord(Result, frozen=True):
    """A name, and what it stands for. `is_valid` says whether its time is not over, `key` by which of this node's keys
    it is signed.
    """

    name: str
    value: str
    sequence: int
    expires_unix_s: float
    ttl_s: float
    is_valid: bool
    received_unix_s: float
    key: str | None = None


class NameAdded(NameRecord, frozen=True, kw_only=True):
    """The record that is kept now; `is_new` says whether it is the one that was given."""

    is_new: bool


class NamePublished(NameAdded, frozen=True, kw_only=True):
    """The record that is kept, and given to the DHT, from now on; `n_peers` took it already."""

    n_peers: int
    note: str | None = None


async def add(node: "Node", params: Add) -> NameAdded:
    """Verify and keep a record."""
    import trio

    from daemon import wall

    return await trio.to_thread.run_sync(_add, node, params, wall.unix_s())


async def publish(node: "Node", params: Publish) -> NamePublished:
    """Sign a record with one of the node's keys, keep it, and give it to the DHT."""
    from functools import partial

    import trio

    from daemon import wall
    from daemon.naming import key_of

    value = _value(params.cid)
    name = key_of(node.identity, params.key).peer_id
    if node.network.peers():
        await _learn(node, name)  # from before this catalog, or from another machine: its sequence is to grow on
    row, is_new = await trio.to_thread.run_sync(
        partial(node.names.sign, value, params.key, lifetime_s=params.lifetime_s, ttl_s=params.ttl_s)
    )
    n_peers = await node.names.tell(row)
    note = await trio.to_thread.run_sync(_hidden, node, value)
    if note is None and not n_peers:
        note = "nobody of the DHT has it yet: it is told again as soon as a peer is connected"
    return NamePublished(**_told(node, row, wall.unix_s()), is_new=is_new, n_peers=n_peers, note=note)


def _hidden(node: "Node", value: str) -> str | None:
    """Whether strangers find the name and get nothing by it: the content is here, and not for all."""
    from storage.cid import Cid

    if not value.startswith("/ipfs/"):
        return None
    root = Cid.parse(value.removeprefix("/ipfs/").partition("/")[0])
    if node.store.seen(root) is None or node.roots.may_see(None, root, is_flock=False):
        return None
    return f"what it stands for is not for all to see. To change that: covey share {root} --visibility public"


async def _learn(node: "Node", name: "PeerId") -> None:
    from contextlib import suppress

    import trio

    from daemon import wall
    from daemon.naming import look_up
    from protocols.errors import Remote

    records = await look_up(node, name)
    if records:
        with suppress(Remote):
            await trio.to_thread.run_sync(keep_best, node, records, name, wall.unix_s())


async def ls(node: "Node", _params: Nothing) -> list[NameRecord]:
    """Every name."""
    import trio

    from daemon import wall

    unix_s = wall.unix_s()
    rows = await trio.to_thread.run_sync(node.catalog.names.list)
    return [NameRecord(**_told(node, row, unix_s)) for row in rows]


async def show(node: "Node", params: Named) -> NameRecord:
    """One name."""
    import trio

    from daemon import wall
    from daemon.errors import NotFoundHere
    from protocols.ipns import parse_name

    row = await trio.to_thread.run_sync(node.catalog.names.get, parse_name(params.name))
    if row is None:
        raise NotFoundHere(f"no record of {params.name} is kept. See: covey name ls")
    return NameRecord(**_told(node, row, wall.unix_s()))


async def rm(node: "Node", params: Named) -> Done:
    """Forget a record."""
    import trio

    from daemon.errors import NotFoundHere
    from protocols.ipns import name_text, parse_name

    name = parse_name(params.name)
    if not await trio.to_thread.run_sync(node.catalog.names.remove, name):
        raise NotFoundHere(f"no record of {params.name} is kept. See: covey name ls")
    return Done(text=f"forgot {name_text(name)}")


def _add(node: "Node", params: Add, unix_s: float) -> NameAdded:
    from pathlib import Path

    from daemon.content import file_bytes
    from protocols.errors import Malformed
    from protocols.ipns import parse_name
    from storage.catalog.names import MAX_RECORD_BYTES

    file_bytes(Path(params.path))  # a pipe is refused
    with open(params.path, "rb") as file:
        raw = file.read(MAX_RECORD_BYTES + 1)
    name = parse_name(params.name) if params.name is not None else None
    try:
        return _keep(node, raw, name or _holder(params.path, raw), unix_s)
    except Malformed as error:
        raise Malformed(f"{params.path}: {error}. `covey name add` takes a file with an IPNS record") from None


def _holder(path: str, raw: bytes) -> "PeerId":
    """Whose record this is. Raises: Malformed; Unfit where nothing tells."""
    import os

    from daemon.errors import Unfit
    from protocols.errors import Malformed
    from protocols.ipns import holder_of, parse_name

    if (holder := holder_of(raw)) is not None:
        return holder
    stem, _, ending = os.path.basename(path).partition(".")
    try:
        if ending == "ipns-record":
            return parse_name(stem.partition("_")[0])
    except Malformed:
        pass
    raise Unfit("the record does not hold its key; say whose it is: covey name add FILE --name NAME")


def _value(text: str) -> str:
    """A content path in its standard form. Raises: InvalidCid, Malformed."""
    from protocols.ipns import name_text, parse_name
    from storage.cid import Cid

    if text.startswith("/ipns/"):
        name, _, path = text.removeprefix("/ipns/").partition("/")
        return f"/ipns/{name_text(parse_name(name))}" + (f"/{path}" if path else "")
    root, _, path = text.removeprefix("ipfs://").removeprefix("/ipfs/").partition("/")
    return f"/ipfs/{Cid.parse(root)}" + (f"/{path}" if path else "")


def _keep(node: "Node", raw: bytes, name: "PeerId", unix_s: float) -> NameAdded:
    from daemon.naming import row_of

    row = row_of(raw, name, unix_s)
    is_new = node.catalog.names.put(row)
    kept = node.catalog.names.get(name) or row
    return NameAdded(**_told(node, kept, unix_s), is_new=is_new)


def keep_best(node: "Node", records: "list[bytes]", name: "PeerId", unix_s: float) -> NameAdded:
    """Keep the best of the records that are good. Raises: Remote where none is, with what is wrong with the last."""
    from protocols.errors import Remote

    added: NameAdded | None = None
    fault: Remote | None = None
    for raw in records:
        try:
            added = _keep(node, raw, name, unix_s)
        except Remote as error:
            fault = error
    if added is None and fault is not None:
        raise fault
    assert added is not None, "somebody gave a record"
    return added


def _told(node: "Node", row: "NameRow", unix_s: float) -> dict[str, Any]:
    from protocols.ipns import name_text

    return {
        "name": name_text(row.name),
        "value": row.value.decode("utf-8", "replace"),
        "sequence": row.sequence,
        "expires_unix_s": row.expires_unix_ns / _NS,
        "ttl_s": row.ttl_ns / _NS,
        "is_valid": row.expires_unix_ns > unix_s * _NS,
        "received_unix_s": row.received_unix_s,
        "key": own.label if (own := node.catalog.names.own_of(row.name)) else None,
    }


OPERATIONS = (
    Operation(
        noun="name",
        verb="add",
        summary="Verify an IPNS record and keep it, for the gateway.",
        params=Add,
        result=NameAdded,
        handler=add,
        arguments=("path",),
    ),
    Operation(
        noun="name",
        verb="publish",
        summary="Let an IPNS name of this node stand for content.",
        params=Publish,
        result=NamePublished,
        handler=publish,
        arguments=("cid",),
        begins="telling the DHT",
    ),
    Operation(
        noun="name",
        verb="ls",
        summary="List the IPNS names whose records are kept.",
        params=Nothing,
        result=list[NameRecord],
        handler=ls,
    ),
    Operation(
        noun="name",
        verb="show",
        summary="Show what an IPNS name stands for.",
        params=Named,
        result=NameRecord,
        handler=show,
        arguments=("name",),
    ),
    Operation(
        noun="name",
        verb="rm",
        summary="Forget the record of an IPNS name.",
        params=Named,
        result=Done,
        handler=rm,
        arguments=("name",),
    ),
)
