"""dag-pb: the protobuf of files and directories: bytes, and links with a name and a size.

Source: the DAG-PB specification (ipld.io/specs/codecs/dag-pb). Written in one form only: links before data, links
sorted by the bytes of their names. Read in both orders of links and data, and with links in any order.
"""

from types import UnionType
from typing import Any, Final, NamedTuple

from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import DAG_PB, Cid, bytes_decode, varint_decode, varint_encode
from storage.codecs import MAX_LINKS, Codec
from storage.errors import InvalidBlock, TooLarge

MAX_TSIZE: Final = (1 << 63) - 1

_DATA, _LINKS = 0x0A, 0x12  # tags of a node: field 1 and 2, both with a length


class PbLink(NamedTuple):
    """A link. `name` keeps bytes that are not UTF-8 as surrogates, as Python's file names do; None is "not written"."""

    cid: Cid
    name: str | None = ""
    tsize: int | None = None


class PbNode(NamedTuple):
    """A node: what the specification calls Data and Links."""

    data: bytes | None = None
    links: tuple[PbLink, ...] = ()


def name_bytes(name: str | None) -> bytes:
    """A link's name as it is written, and as links are sorted. Raises: InvalidBlock."""
    try:
        return (name or "").encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidBlock(f"a link's name is no text: {error}") from None


def encode(node: PbNode) -> bytes:
    """The node as a block. Raises: InvalidBlock, TooLarge."""
    _require(node, PbNode, "a node")
    _require(node.data, bytes | None, "its data")
    _check_links(len(node.links))
    parts = []
    for link in node.links:
        _require(link, PbLink, "a link")
        _require(link.cid, Cid, "a link's CID")
        _require(link.name, str | None, "a link's name")
        _require(link.tsize, int | None, "a link's size")
    last_name = b""
    for link in node.links:
        name = name_bytes(link.name)
        if name < last_name:
            raise InvalidBlock(f"not a DAG-PB node: the link {link.name!r} is not in the order of names")
        last_name = name
        body = _encode_link(link)
        parts.append(b"\x12" + varint_encode(len(body)) + body)
    if node.data is not None:
        parts.append(b"\x0a" + varint_encode(len(node.data)) + node.data)
    data = b"".join(parts)
    if len(data) > MAX_BLOCK_BYTES:
        raise TooLarge(f"a DAG-PB block of {len(data)} bytes; the limit is {MAX_BLOCK_BYTES}")
    return data


def _require(value: object, kind: type | UnionType, what: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, Cid) and kind is not Cid):
        raise InvalidBlock(f"not a DAG-PB node: {what} is {type(value).__name__}")


def _encode_link(link: PbLink) -> bytes:
    body = b"\x0a" + varint_encode(len(link.cid)) + link.cid
    if link.name is not None:
        name = name_bytes(link.name)
        body += b"\x12" + varint_encode(len(name)) + name
    if link.tsize is not None:
        if not 0 <= link.tsize <= MAX_TSIZE:
            raise InvalidBlock(f"a link's size of {link.tsize} is out of range")
        body += b"\x18" + varint_encode(link.tsize)
    return body


def decode(data: bytes) -> PbNode:
    """The node in a block. Raises: InvalidBlock, TooLarge."""
    if len(data) > MAX_BLOCK_BYTES:
        raise TooLarge(f"a DAG-PB block of {len(data)} bytes; the limit is {MAX_BLOCK_BYTES}")
    content: bytes | None = None
    found: list[PbLink] = []
    links_ended = False
    at = 0
    try:
        while at < len(data):
            tag = data[at]
            if tag not in (_DATA, _LINKS):
                raise InvalidBlock(f"not DAG-PB: the tag 0x{tag:02x} at {at}")
            body, at = bytes_decode(data, at + 1)
            if tag == _LINKS:
                if links_ended:
                    raise InvalidBlock("not DAG-PB: data between links")
                found.append(_decode_link(body))
                _check_links(len(found))
            elif content is not None:
                raise InvalidBlock("not DAG-PB: data stands twice")
            else:
                content, links_ended = body, bool(found)
    except InvalidBlock:
        raise
    except ValueError as error:
        raise InvalidBlock(f"not DAG-PB: {error}") from None
    return PbNode(content, tuple(found))


def _decode_link(body: bytes) -> PbLink:
    if body[:1] != b"\x0a":
        raise ValueError("a link does not begin with a CID")
    raw, at = bytes_decode(body, 1)
    name: str | None = None
    tsize: int | None = None
    if body[at : at + 1] == b"\x12":
        raw_name, at = bytes_decode(body, at + 1)
        name = raw_name.decode("utf-8", "surrogateescape")
    if body[at : at + 1] == b"\x18":
        tsize, at = varint_decode(body, at + 1)
    if at != len(body):
        raise ValueError("a link has unknown, repeated or disordered fields")
    return PbLink(Cid(raw), name, tsize)


def _check_links(n_links: int) -> None:
    if n_links > MAX_LINKS:
        raise TooLarge(f"a DAG-PB block of over {MAX_LINKS} links")


def to_value(node: PbNode) -> dict[str, Any]:
    """The node in the data model, as other codecs write it: {"Data", "Links": [{"Hash", "Name", "Tsize"}]}."""
    found = []
    for link in node.links:
        fields = {"Hash": link.cid, "Name": link.name, "Tsize": link.tsize}
        found.append({name: field for name, field in fields.items() if field is not None})
    return {"Links": found} if node.data is None else {"Data": node.data, "Links": found}


def from_value(value: Any) -> PbNode:
    """The node that a value in the data model stands for. Raises: InvalidBlock."""
    fields = _fields_of(value, frozenset({"Data", "Links"}), "Links")
    if not isinstance(fields["Links"], list):
        raise InvalidBlock("not a DAG-PB node: Links is no list")
    made = []
    for link in fields["Links"]:
        parts = _fields_of(link, frozenset({"Hash", "Name", "Tsize"}), "Hash")
        made.append(PbLink(parts["Hash"], parts.get("Name"), parts.get("Tsize")))
    return PbNode(fields.get("Data"), tuple(made))


def _fields_of(value: Any, known: frozenset[str], needed: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value.keys() <= known or needed not in value or None in value.values():
        raise InvalidBlock(f"not a DAG-PB node: a map of {', '.join(sorted(known))} was expected, {needed} in it")
    return value


def links(data: bytes) -> list[Cid]:
    """The links of a block, in the order in which they stand."""
    return [link.cid for link in decode(data).links]


CODEC: Final = Codec(DAG_PB, "dag-pb", encode, decode, links)
