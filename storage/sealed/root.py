"""The root of sealed content: the block that says what is sealed and holds the ways in. Format: storage/FORMAT.md."""

import hashlib
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec

from storage.blockstore import MadeBlock
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import BrokenSeal, InvalidBlock, NotSealed, TooLarge, UnknownSeal

KIND: Final = "covey/sealed"
VERSION: Final = 1
DOMAIN: Final = b"covey/sealed/1"  # associated data of every chunk, and the beginning of every binding
PREFIX_BYTES: Final = 19
COMMITMENT_BYTES: Final = 32
WRAP_BYTES: Final = 80
MAX_RECIPIENTS: Final = 1024
MAX_ROOT_BYTES: Final = 1 << 18
_MAX_ROSTER_BYTES: Final = 1 << 16


class Content(NamedTuple):
    """What is sealed: the ciphertext, its length in bytes, the beginning of its nonces, and which key opens it."""

    data: Cid
    n_bytes: int
    prefix: bytes
    commitment: bytes

    @property
    def binding(self) -> bytes:
        """The hash that ties wraps and roster to this content and this version of the format."""
        return hashlib.sha256(DOMAIN + dag_cbor.encode(self._asdict())).digest()


class Root(NamedTuple):
    """A content and who can open it: a wrap of its key for each recipient, and the list of them, itself encrypted."""

    content: Content
    wraps: tuple[bytes, ...]
    roster: bytes

    def block(self) -> MadeBlock:
        """The root as a block."""
        value = {
            "kind": KIND,
            "version": VERSION,
            "content": self.content._asdict(),
            "roster": self.roster,
            "wraps": list(self.wraps),
        }
        return MadeBlock.of(dag_cbor.encode(value), DAG_CBOR)


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data: Cid
    n_bytes: int
    prefix: bytes
    commitment: bytes


class _Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    version: int
    content: _Content
    roster: bytes
    wraps: list[bytes]


def decode(cid: Cid, data: bytes) -> Root:
    """Read a root. Raises: NotSealed; UnknownSeal for another version, BrokenSeal for what is no root, TooLarge."""
    if cid.codec != DAG_CBOR:
        raise NotSealed(f"{cid} is not sealed; to get it as it is: covey get {cid}")
    if len(data) > MAX_ROOT_BYTES:
        raise TooLarge(f"a sealed root of {len(data)} bytes; the limit is {MAX_ROOT_BYTES}")
    try:
        value = dag_cbor.decode(data)
    except InvalidBlock as error:
        raise NotSealed(f"{cid} is not sealed: {error}") from None
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise NotSealed(f"{cid} is not sealed; to see it as it is: covey dag get {cid}")
    if value.get("version") != VERSION:
        raise UnknownSeal(f"{cid} is sealed in version {_short(value.get('version'))}; this Covey knows {VERSION}")
    try:
        fields = msgspec.convert(value, _Root)
    except msgspec.ValidationError as error:
        raise BrokenSeal(f"{cid} is no root of sealed content: {error}") from None
    content = Content(fields.content.data, fields.content.n_bytes, fields.content.prefix, fields.content.commitment)
    root = Root(content, tuple(fields.wraps), fields.roster)
    _check(cid, root)
    return root


def _check(cid: Cid, root: Root) -> None:
    content, wraps = root.content, root.wraps
    if len(content.prefix) != PREFIX_BYTES or len(content.commitment) != COMMITMENT_BYTES or content.n_bytes <= 0:
        raise BrokenSeal(f"{cid} states a content that cannot be")
    if len(wraps) > MAX_RECIPIENTS or any(len(wrap) != WRAP_BYTES for wrap in wraps):
        raise BrokenSeal(f"{cid} has {len(wraps)} wraps, or one of another length than {WRAP_BYTES} bytes")
    if any(one >= other for one, other in pairwise(wraps)):
        raise BrokenSeal(f"the wraps of {cid} are not sorted")
    if len(root.roster) > _MAX_ROSTER_BYTES:
        raise BrokenSeal(f"the roster of {cid} has {len(root.roster)} bytes")


def _short(value: Any) -> str:
    return repr(value)[:20]
