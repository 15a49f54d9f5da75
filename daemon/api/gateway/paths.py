"""From a content path to the block at its end: folders by name, documents by key, IPNS names by their records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from daemon.api.gateway.refusal import Refusal
from daemon.api.gateway.view import noting
from protocols.errors import Remote
from protocols.ipns import Record, parse_name, read_record
from storage.blockstore import Blockstore
from storage.cid import DAG_PB, Cid
from storage.errors import InvalidCid, NotFound, UnknownCodec
from storage.keys import PeerId
from storage.path import MAX_BLOCKS, PathWalk
from storage.unixfs import resolve

MAX_NAME_STEPS: Final = 8
MAX_NAME_CACHE_S: Final = 7 * 86_400
_NS: Final = 1_000_000_000

RecordOf = Callable[[PeerId], bytes | None]


@dataclass(frozen=True, slots=True)
class Way:
    """A path that was walked. `passed` are the blocks read before the end, shards of folders included; `roots` what
    each name led to; `rest` the names that stay inside the document at the end.
    """

    passed: tuple[Cid, ...]
    roots: tuple[Cid, ...]
    end: Cid
    rest: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pointed:
    """Where an IPNS name leads: a root and names below it, the first record on the way, and how long that is good."""

    root: Cid
    segments: tuple[str, ...]
    record: Record
    max_age_s: int


def walk(store: Blockstore, root: Cid, segments: Sequence[str]) -> Way:
    """Follow names from `root`. Raises: NotFound, Refusal for a codec without names, InvalidBlock."""
    passed: list[Cid] = []
    roots, at, left = [root], root, list(segments)
    while left:
        if len(passed) > MAX_BLOCKS:
            raise Refusal(400, f"the path leads through over {MAX_BLOCKS} blocks")
        if at.codec == DAG_PB:
            noted, read = noting(store)
            below = resolve(noted, at, left.pop(0))
            passed += read
        else:
            found, left = _descend(store, at, left)
            if found is None:
                return Way(tuple(passed), tuple(roots), at, tuple(left))
            passed.append(at)
            below = found
        roots.append(below)
        at = below
    return Way(tuple(passed), tuple(roots), at)


def _descend(store: Blockstore, cid: Cid, names: Sequence[str]) -> tuple[Cid | None, list[str]]:
    """The first link on the way into a document, and the names behind it; no link where they end inside."""
    inside = PathWalk(cid, names)
    data = store.get(cid)  # first of all: what is not here has no codec either
    try:
        inside.take(data)
    except NotFound:
        raise NotFound(f"there is no {'/'.join(names)!r} in {cid}") from None
    except UnknownCodec:
        raise Refusal(400, f"the codec 0x{cid.codec:x} of {cid} has no paths here") from None
    return (None, list(names)) if inside.is_done else (inside.cid, list(inside.names))


def follow(record_of: RecordOf, name: str, unix_s: float) -> Pointed:
    """Follow a name, and names that it leads to, by the records that are kept here. Raises: NotFound."""
    first: Record | None = None
    max_age_s = float(MAX_NAME_CACHE_S)
    for _ in range(MAX_NAME_STEPS):
        record = _record(record_of, name, unix_s)
        first = first or record
        max_age_s = min(max_age_s, record.ttl_ns / _NS, record.expires_unix_ns / _NS - unix_s)
        namespace, root, segments = _read_value(record.value)
        if namespace == "ipfs":
            try:
                return Pointed(Cid.parse(root), segments, first, max(int(max_age_s), 0))
            except InvalidCid:
                break
        if segments:
            break
        name = root
    raise NotFound("the name leads nowhere that this gateway can follow")


def _record(record_of: RecordOf, name: str, unix_s: float) -> Record:
    """The record of a name, verified again: the table beside the blocks is trusted no more than they are."""
    try:
        peer = parse_name(name)
        raw = record_of(peer)
        if raw is not None:
            return read_record(raw, peer, unix_s)
    except Remote:
        pass
    raise NotFound("there is no valid record of that name here")


def _read_value(value: bytes) -> tuple[str, str, tuple[str, ...]]:
    empty, namespace, root, *segments = [*value.decode("utf-8", "surrogateescape").split("/"), "", "", ""][:200]
    if empty or namespace not in ("ipfs", "ipns"):
        raise NotFound("the name leads nowhere that this gateway can follow")
    return namespace, root, tuple(part for part in segments if part)
