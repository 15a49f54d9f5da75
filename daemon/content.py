"""Content by reference: fetch no more of a DAG than is asked for, from peers that are connected, named or found."""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from daemon.api.operation import Progress as Told
from daemon.errors import Unfit
from daemon.naming import followed
from protocols.artifacts import describe
from protocols.entry import read_entry, stored_entry
from protocols.errors import NoProviders, Remote, TimedOut
from protocols.fetch.dag import Links, Progress, fetch_dag
from protocols.net import PeerInfo
from storage.blockstore import MAX_BLOCK_BYTES, MadeBlock
from storage.cid import DAG_CBOR, DAG_PB, HASHES, Cid
from storage.codecs import dag_pb
from storage.codecs import links as codec_links
from storage.errors import Corrupt, InvalidName, NotFound, TooLarge
from storage.path import PathWalk
from storage.pins import PinKind, PinState
from storage.unixfs import data as unixfs
from storage.unixfs import hamt, resolve
from storage.unixfs.exporter import check_symlink

if TYPE_CHECKING:
    from daemon.app import Node

MAX_PROVIDERS: Final = 20


async def fetch_reference(
    node: "Node",
    reference: str,
    *,
    timeout_s: float,
    providers: Sequence[str] = (),
    report: Callable[[Told], None] = lambda told: None,
) -> tuple[Cid, Progress]:
    """Bring what `CID/path` names here, whole; of the folders on the way only the names."""
    cid, names = parse(reference)
    named = [PeerInfo.parse(address) for address in providers]
    for name in names:
        await _fetch(node, cid, timeout_s, named, links=folder_links)
        cid = resolve(node.store, cid, name)

    def on_progress(progress: Progress) -> None:
        why = f": {progress.damaged} is damaged here, and peers are asked for it" if progress.damaged else ""
        report(Told(step=f"fetching {cid}{why}", n_done=progress.n_bytes + progress.n_reused_bytes))

    return cid, await _fetch(node, cid, timeout_s, named, on_progress=on_progress)


async def files_of(node: "Node", reference: str, *, timeout_s: float, providers: Sequence[str] = ()) -> str:
    """The same reference, where it begins with the manifest of an artifact: to the files that it describes.

    A name (`/ipns/NAME`) is followed first. Only the manifest is fetched, and its signature is checked. What else is
    named by DAG-CBOR is left as it is.
    Raises: Remote, InvalidCid.
    """
    reference = await followed(node, reference)
    cid, names = parse(reference)
    if cid.codec != DAG_CBOR:
        return reference
    named = [PeerInfo(peer) for peer in node.network.peers()]
    named = [*map(PeerInfo.parse, providers), *named]
    await _fetch(node, cid, timeout_s, named, links=lambda cid, data: ())
    try:
        body, _ = read_entry(await node.exchange.work(partial(node.store.get, cid)))
    except Remote:  # some other DAG
        return reference
    await _fetch(node, body, timeout_s, named, links=lambda cid, data: ())
    entry = await node.exchange.work(partial(stored_entry, node.store, cid))
    return "/".join((str(describe(entry).files), *names))


async def fetch_folder(node: "Node", reference: str, *, timeout_s: float) -> Cid:
    """Bring the names of the folder `CID/path` here, not what they name. Raises: Remote, StorageError."""
    cid, names = parse(reference)
    for name in (*names, None):
        await _fetch(node, cid, timeout_s, [], links=folder_links)
        if name is not None:
            cid = resolve(node.store, cid, name)
    return cid


async def fetch_block(node: "Node", cid: Cid, timeout_s: float) -> None:
    """Bring one block here, without what it links to. Raises: Remote, StorageError."""
    await _fetch(node, cid, timeout_s, [], links=lambda cid, data: ())


async def read_block(node: "Node", cid: Cid, timeout_s: float) -> bytes:
    """The bytes of one block, from here or else from a peer. Raises: Remote, StorageError."""
    try:
        return await node.exchange.work(partial(node.store.get, cid))
    except (NotFound, Corrupt):
        await fetch_block(node, cid, timeout_s)
    return await node.exchange.work(partial(node.store.get, cid))


async def walk_path(node: "Node", reference: str, *, timeout_s: float, needs_value: bool) -> PathWalk:
    """Follow `CID/path` through blocks of any codec, each fetched where it is not here; to its value, or its CID alone.

    Raises: InvalidCid, Remote, StorageError.
    """
    walk = PathWalk(*parse(reference))
    while not walk.is_done and (needs_value or walk.names):
        data = await read_block(node, walk.cid, timeout_s)
        await node.exchange.work(partial(walk.take, data))
    return walk


def parse(reference: str) -> tuple[Cid, list[str]]:
    """Read `CID/path`, `/ipfs/CID/path` or `ipfs://CID/path`. Raises: InvalidCid."""
    head, *names = reference.removeprefix("ipfs://").removeprefix("/ipfs/").strip("/").split("/")
    return Cid.parse(head), [name for name in names if name]


def folder_links(cid: Cid, data: bytes) -> Iterable[Cid]:
    """The blocks that make up a folder itself: the shards of a big one, none of a small one. Raises: InvalidBlock."""
    if cid.codec != DAG_PB:
        return []
    node = dag_pb.decode(data)
    if unixfs.decode(node.data or b"").kind is not unixfs.Kind.HAMT_SHARD:
        return []
    return hamt.shards_below(cid, node)


def seen_by(node: "Node", cid: Cid) -> str:
    """Who may see a block, in one word."""
    seen = node.store.seen(cid)
    return "private" if seen is None else seen.level.name.lower()


def file_bytes(path: Path) -> int:
    """How long a file is. A pipe would keep a thread waiting, and the daemon from stopping. Raises: Unfit."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise Unfit(f"{path} is not a file; what comes from a pipe is read with - from stdin")
    return about.st_size


def read_for_block(path: Path) -> bytes:
    """The bytes of a file that is to be a block. Raises: Unfit, TooLarge."""
    n_bytes = file_bytes(path)
    if n_bytes <= MAX_BLOCK_BYTES:
        with path.open("rb") as file:
            data = file.read(MAX_BLOCK_BYTES + 1)  # it may have grown
        n_bytes = len(data)
    if n_bytes > MAX_BLOCK_BYTES:
        raise TooLarge(f"a block of {n_bytes} bytes; the limit is {MAX_BLOCK_BYTES}. For a file: covey add")
    return data


def keep_block(node: "Node", data: bytes, codec: int, hash_name: str, *, is_pinned: bool) -> Cid:
    """Store one block, pinned by itself if at all: what it links to may not be here. Raises: StorageError."""
    code = next(code for code, known in HASHES.items() if known.name == hash_name)
    block = MadeBlock.of(data, codec, code)
    with node.store.lease():
        node.store.put_many([block])
        if is_pinned and node.pins.get(block.cid) is None:  # never a wider pin made narrower
            node.pins.add(block.cid, kind=PinKind.DIRECT, state=PinState.COMPLETE)
    return block.cid


def bytes_below(path: Path) -> int:
    """How many bytes a file, or all files of a folder, hold."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)


def outward_symlinks(path: Path) -> list[str]:
    """The symlinks below a folder that `covey get` will not write out again: they may lead out of it."""
    found = []
    for folder, folders, names in os.walk(path):
        for entry in (Path(folder, name) for name in (*folders, *names)):
            if entry.is_symlink():
                inside = entry.relative_to(path)
                try:
                    check_symlink(os.fsencode(entry.readlink()), depth=len(inside.parts) - 1)
                except InvalidName:
                    found.append(str(inside))
    return sorted(found)


async def _fetch(
    node: "Node",
    cid: Cid,
    timeout_s: float,
    named: Sequence[PeerInfo],
    *,
    links: Links = codec_links,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    connected = [PeerInfo(peer) for peer in node.network.peers()]
    try:
        return await fetch_dag(
            node.exchange,
            cid,
            providers=[*named, *connected],
            find_more=partial(node.network.find_providers, cid, MAX_PROVIDERS),
            on_progress=on_progress,
            idle_timeout_s=timeout_s,
            links=links,
        )
    except (NoProviders, TimedOut) as error:  # the index may not know that a block was here, once it was made anew
        if "covey repo verify" in str(error) or not await node.exchange.work(partial(_was_whole, node, cid)):
            raise
        kept = f"it is pinned, and was here whole: `covey repo verify` tells what this disk has lost of it; {error}"
        raise type(error)(kept) from None


def _was_whole(node: "Node", cid: Cid) -> bool:
    return any(pin.state is PinState.COMPLETE for pin in node.pins.list(cid))
