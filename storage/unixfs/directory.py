"""Directories: their entries as links, in one block or in shards."""

import os
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

from storage.blockstore import Block, Blockstore
from storage.cid import DAG_PB, RAW, Cid, varint_encode
from storage.codecs import dag_pb
from storage.codecs.dag_pb import PbLink, name_bytes
from storage.errors import InvalidBlock, NoSuchName, NotAFolder, NotUnixfs
from storage.multicodec import codec_name
from storage.unixfs import hamt
from storage.unixfs.data import Kind, UnixFsData, decode
from storage.unixfs.layout import NO_ATTRIBUTES, Attributes
from storage.unixfs.profiles import HAMT_THRESHOLD_BYTES, Profile

MAX_SHOWN_CHARS: Final = 60


class DirEntry(NamedTuple):
    """A name in a directory, what it names, and the bytes of all blocks below as its maker stated them."""

    name: str
    cid: Cid
    dag_bytes: int | None


def build(links: list[PbLink], profile: Profile, about: Attributes = NO_ATTRIBUTES) -> Generator[Block, None, PbLink]:
    """Yield the blocks of a directory, children first; return an unnamed link to its root."""
    links.sort(key=lambda link: name_bytes(link.name))
    message = UnixFsData(Kind.DIRECTORY, mode=about.mode, mtime=about.mtime)
    if _is_large(links, profile, message):
        return (yield from hamt.build(links, profile, about))
    block = profile.node(message, tuple(links))
    yield block
    return PbLink(block.cid, "", len(block.data) + sum(link.tsize or 0 for link in links))


def _is_large(links: list[PbLink], profile: Profile, message: UnixFsData) -> bool:
    if profile.counts_link_bytes:
        return sum(len(name_bytes(link.name)) + len(link.cid) for link in links) > HAMT_THRESHOLD_BYTES
    return len(profile.node(message).data) + sum(map(_link_bytes, links)) > HAMT_THRESHOLD_BYTES


def _link_bytes(link: PbLink) -> int:
    """What a link adds to its block."""
    n_name = len(name_bytes(link.name))
    n_body = (
        sum(1 + len(varint_encode(n)) + n for n in (len(link.cid), n_name)) + 1 + len(varint_encode(link.tsize or 0))
    )
    return 1 + len(varint_encode(n_body)) + n_body


def list_dir(store: Blockstore, cid: Cid) -> Iterator[DirEntry]:
    """The entries of a directory; of two with one name, the first. Raises: NotFound, NotAFolder, InvalidBlock."""
    if cid.codec == RAW:
        raise NotAFolder(f"{cid} is a file, not a folder")
    node, message = open_node(store, cid)
    if message.kind == Kind.HAMT_SHARD:
        links: Iterator[PbLink] = hamt.entries(store, cid, node)
    elif message.kind == Kind.DIRECTORY:
        links = iter(node.links)
    else:
        raise NotAFolder(wrong_kind(cid, message, "folder"))
    names: set[str] = set()
    for link in links:
        name = link.name or ""
        if name not in names:
            names.add(name)
            yield DirEntry(name, link.cid, link.tsize)


def resolve(store: Blockstore, cid: Cid, path: str) -> Cid:
    """What a path below a directory names; symlinks are not followed. Raises: NoSuchName, NotFound, InvalidBlock."""
    for name in path.strip("/").split("/") if path.strip("/") else ():
        link = _find(store, cid, name)
        if link is None:
            raise NoSuchName(f"there is no {name!r} in the folder {cid}")
        cid = link.cid
    return cid


def _find(store: Blockstore, cid: Cid, name: str) -> PbLink | None:
    if cid.codec == RAW:
        raise _nothing_below(name, cid, "file")
    node, message = open_node(store, cid)
    if message.kind == Kind.HAMT_SHARD:
        return hamt.find(store, cid, node, name)
    if message.kind == Kind.DIRECTORY:
        return next((link for link in node.links if link.name == name), None)
    raise _nothing_below(name, cid, message.kind.word)


def _nothing_below(name: str, cid: Cid, what: str) -> NoSuchName:
    return NoSuchName(f"there is no {name!r} in {cid}: that is a {what}. To write it out: covey get {cid}")


def wrong_kind(cid: Cid, message: UnixFsData, wanted: str) -> str:
    """What is to be told of content that is not of the kind that was asked for."""
    if message.kind != Kind.SYMLINK:
        return f"{cid} is a {message.kind.word}, not a {wanted}"
    to = os.fsdecode(message.data or b"")[:MAX_SHOWN_CHARS]
    return f"{cid} is a symlink to {to!r}, not a {wanted}. To read what it names: the path of that, or covey get"


def open_node(store: Blockstore, cid: Cid) -> tuple[dag_pb.PbNode, UnixFsData]:
    """A UnixFS block, decoded. Raises: NotFound, NotUnixfs, InvalidBlock."""
    if cid.codec != DAG_PB:
        raise NotUnixfs(f"{cid} is a block of {codec_name(cid.codec)}, not a file or folder")
    node = dag_pb.decode(store.get(cid))
    try:
        return node, decode(node.data or b"")
    except InvalidBlock as error:
        raise NotUnixfs(f"{cid} is a block of dag-pb, not a file or folder: {error}") from None
