"""Paths through blocks of any codec: into maps and lists, and across links. No IO: who asks brings the blocks.

A name is the key of a map or the index of a list. In a dag-pb block it is the name of a link (of several, the first),
or else a part of its form in the data model: `Links/0/Hash`, `Data`. In a sharded directory it is first of all the name
of an entry, which is looked up through the shards below; only one that is no entry can be a shard's link or a part.

Source: IPLD pathing (ipld.io/docs/data-model/pathing).
"""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from storage.cid import DAG_PB, Cid
from storage.codecs import codec_of, dag_pb
from storage.errors import InvalidBlock, NotFound, TooLarge
from storage.unixfs import data as unixfs
from storage.unixfs import hamt

MAX_NAMES: Final = 256
MAX_BLOCKS: Final = 256  # more than names alone need: a block that is nothing but a link is crossed without one

_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_KINDS: Final = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a text",
    bytes: "bytes",
    type(None): "null",
}


class _LookUp(NamedTuple):
    """A name being looked up below the first shard of a directory, `cid`."""

    cid: Cid
    node: dag_pb.PbNode
    used_bits: int


class PathWalk:
    """Where a path leads, block by block: give it the block `cid` until it `is_done`.

    `names` are those still to be followed from `cid` on; once it is done, those that lead to `value` inside of it. As
    soon as none are left, `cid` is what the path names, whether its block is here or not.
    """

    def __init__(self, root: Cid, names: Sequence[str]) -> None:
        """Raises: TooLarge."""
        if len(names) > MAX_NAMES:
            raise TooLarge(f"a path of {len(names)} names; the limit is {MAX_NAMES}")
        self.cid = root
        self.names = tuple(names)
        self.is_done = False
        self.value: Any = None
        self._n_blocks = 0
        self._look_up: _LookUp | None = None

    def take(self, data: bytes) -> None:
        """Follow the path through the bytes of `cid`. Raises: NotFound, InvalidBlock, UnknownCodec, TooLarge."""
        self._n_blocks += 1
        if self._n_blocks > MAX_BLOCKS:
            raise TooLarge(f"the path leads through over {MAX_BLOCKS} blocks, up to {self.cid}")
        value = codec_of(self.cid).decode(data)
        n_followed = 0
        if isinstance(value, dag_pb.PbNode):
            found = self._in_shards(value)
            if found is None:
                return
            if isinstance(found, dag_pb.PbNode):
                link = self._link_named(found)
                value, n_followed = (dag_pb.to_value(found), 0) if link is None else (link, 1)
            else:
                value, n_followed = found, 1
        elif self._look_up is not None:
            raise InvalidBlock(f"{self.cid} is no shard of the directory {self._look_up.cid}")
        while n_followed < len(self.names) and not isinstance(value, Cid):
            value = self._below(value, n_followed)
            n_followed += 1
        if isinstance(value, Cid) and self.names:
            self.cid, self.names = value, self.names[n_followed:]
        else:
            self.value, self.is_done = value, True

    def _in_shards(self, node: dag_pb.PbNode) -> dag_pb.PbNode | Cid | None:
        """What a sharded directory's entry names; else the node whose links and parts count; None: a shard comes first.

        A name that is no entry may be one in the first shard, so that is come back to. Raises: InvalidBlock.
        """
        above, self._look_up = self._look_up, None
        if above is None and not (self.names and _is_shard(node)):
            return node
        first = above or _LookUp(self.cid, node, 0)
        at = hamt.step(self.cid, node, self.names[0], first.used_bits)
        if at is None:
            self.cid = first.cid
            return first.node
        if at.is_entry:
            return at.link.cid
        self._look_up, self.cid = first._replace(used_bits=at.used_bits), at.link.cid
        return None

    def _link_named(self, node: dag_pb.PbNode) -> Cid | None:
        if self.cid.codec != DAG_PB or not self.names:
            return None
        return next((link.cid for link in node.links if link.name == self.names[0]), None)

    def _below(self, value: Any, n_followed: int) -> Any:
        name = self.names[n_followed]
        if isinstance(value, dict) and name in value:
            return value[name]
        if isinstance(value, list) and _INDEX.fullmatch(name) and int(name) < len(value):
            return value[int(name)]
        where = "/".join((str(self.cid), *self.names[:n_followed]))
        if isinstance(value, dict):
            what = f"there is no {name!r} in {where}"
        elif isinstance(value, list):
            what = f"there is no {name!r} in {where}, a list of {len(value)}"
        else:
            what = f"there is no {name!r} in {where}: it is {_KINDS[type(value)]}"
        raise NotFound(f"{what}. To see what there is: covey dag get {self.cid}")


def _is_shard(node: dag_pb.PbNode) -> bool:
    try:
        return unixfs.decode(node.data or b"").kind is unixfs.Kind.HAMT_SHARD
    except InvalidBlock:
        return False
