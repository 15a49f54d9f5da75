"""Bitswap's messages, byte for byte: protobuf by hand, strict and bounded.

Source: the Bitswap specification (ipfs/specs, bitswap-protocol.md). One wire form serves all versions: 1.0.0 carries
bare `blocks`, 1.1.0 `payload` with a CID prefix, 1.2.0 adds want-have and presences. Fields that we do not know are
skipped, as protobuf asks; everything else that is out of order is `Malformed`.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from protocols.errors import Malformed, TooBig
from protocols.protobuf import as_bool, as_bytes, as_int32, as_view, fields
from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import DAG_PB, HASHES, SHA2_256, Cid, bytes_decode, varint_decode, varint_encode
from storage.errors import InvalidCid

BITSWAP_1_2: Final = "/ipfs/bitswap/1.2.0"
BITSWAP_1_1: Final = "/ipfs/bitswap/1.1.0"
BITSWAP_1_0: Final = "/ipfs/bitswap/1.0.0"
BITSWAP: Final = "/ipfs/bitswap"
PROTOCOLS: Final = (BITSWAP_1_2, BITSWAP_1_1, BITSWAP_1_0, BITSWAP)  # best first

MAX_MESSAGE_BYTES: Final = 4 << 20
MAX_ITEMS: Final = 1 << 14  # wantlist entries, blocks and presences of one message together
FIELDS_PER_ITEM: Final = 8  # it has six at most; the rest is room for unknown ones
MAX_OTHER_FIELDS: Final = 64  # of one message, beside those of its items
MAX_PREFIX_BYTES: Final = 4 * 9
WHOLE_BYTES: Final = 32 << 10  # a part of a message this large is not copied to go out with others
_V0_PREFIX: Final = bytes((0, DAG_PB, SHA2_256, 32))


class WantType(IntEnum):
    """What an entry asks for: the block, or only whether the peer has it."""

    BLOCK = 0
    HAVE = 1


class Entry(NamedTuple):
    """One line of a wantlist. A higher priority is wanted sooner."""

    cid: Cid
    priority: int = 1
    is_cancel: bool = False
    want_type: WantType = WantType.BLOCK
    send_dont_have: bool = False


class Payload(NamedTuple):
    """A block as it travels: the CID without its digest, which the receiver computes."""

    prefix: bytes
    data: bytes


class Message(NamedTuple):
    """What one peer says to another. `is_full`: the entries replace the wantlist instead of changing it.

    `n_passed_over`: entries for blocks that nobody could have here.
    """

    entries: tuple[Entry, ...] = ()
    is_full: bool = False
    blocks: tuple[Payload, ...] = ()
    haves: tuple[Cid, ...] = ()
    dont_haves: tuple[Cid, ...] = ()
    pending_bytes: int = 0
    n_passed_over: int = 0

    @property
    def n_items(self) -> int:
        """How many entries, blocks and presences it has: reading them is what it costs."""
        return len(self.entries) + self.n_passed_over + len(self.blocks) + len(self.haves) + len(self.dont_haves)


def payload_of(cid: Cid, data: bytes) -> Payload:
    """The travelling form of a block."""
    if cid.version == 0:
        return Payload(_V0_PREFIX, data)
    return Payload(bytes(cid[: len(cid) - len(cid.digest)]), data)


def identify(payload: Payload) -> Cid | None:
    """Hash a block that came in; None where its prefix names no hash that we accept. Costs one hash of the data."""
    try:
        version, at = varint_decode(payload.prefix)
        codec, at = varint_decode(payload.prefix, at)
        code, at = varint_decode(payload.prefix, at)
        length, at = varint_decode(payload.prefix, at)
    except ValueError:
        return None
    if at != len(payload.prefix) or code not in HASHES or HASHES[code][1] != length:
        return None
    if version == 0:
        return Cid.of(payload.data, DAG_PB).as_v0() if payload.prefix == _V0_PREFIX else None
    return Cid.of(payload.data, codec, code) if version == 1 else None


# --- writing


def encode(message: Message, protocol: str = BITSWAP_1_2) -> bytes:
    """A message (without its length prefix) in the form that `protocol` understands.

    Peers older than 1.2 know neither want-have nor presences: those are left out for them.
    """
    return b"".join(_parts(message, protocol))


def framed(message: Message, protocol: str = BITSWAP_1_2) -> list[bytes]:
    """The same behind its length, in pieces to be written one after the other: large blocks go uncopied."""
    parts = _parts(message, protocol)
    pieces: list[bytes] = []
    small = [varint_encode(sum(map(len, parts)))]
    for part in parts:
        if len(part) < WHOLE_BYTES:
            small.append(part)
        else:
            pieces += (b"".join(small), part)
            small = []
    return [*pieces, b"".join(small)] if small else pieces


def _parts(message: Message, protocol: str) -> list[bytes]:
    is_modern = protocol == BITSWAP_1_2
    parts: list[bytes] = []
    wantlist = _encode_wantlist(message, is_modern)
    if wantlist:
        parts += (b"\x0a", varint_encode(len(wantlist)), wantlist)
    for prefix, data in message.blocks:
        if protocol in (BITSWAP_1_0, BITSWAP):
            parts += (b"\x12", varint_encode(len(data)), data)
        else:
            head = b"".join((b"\x0a", varint_encode(len(prefix)), prefix, b"\x12", varint_encode(len(data))))
            parts += (b"\x1a", varint_encode(len(head) + len(data)), head, data)
    if is_modern:
        parts += [_encode_presence(cid, 0) for cid in message.haves]
        parts += [_encode_presence(cid, 1) for cid in message.dont_haves]
        if message.pending_bytes:
            parts += (b"\x28", varint_encode(message.pending_bytes))
    return parts


def _encode_wantlist(message: Message, is_modern: bool) -> bytes:
    parts: list[bytes] = []
    for entry in message.entries:
        if entry.want_type is WantType.HAVE and not is_modern and not entry.is_cancel:
            continue
        body = b"".join((b"\x0a", varint_encode(len(entry.cid)), entry.cid))
        if entry.priority:
            body += b"\x10" + varint_encode(entry.priority & (1 << 64) - 1)
        if entry.is_cancel:
            body += b"\x18\x01"
        if is_modern:
            body += b"\x20\x01" if entry.want_type is WantType.HAVE else b""
            body += b"\x28\x01" if entry.send_dont_have else b""
        parts += (b"\x0a", varint_encode(len(body)), body)
    if message.is_full:
        parts.append(b"\x10\x01")
    return b"".join(parts)


def _encode_presence(cid: Cid, kind: int) -> bytes:
    body = b"".join((b"\x0a", varint_encode(len(cid)), cid, b"\x10\x01" if kind else b""))
    return b"".join((b"\x22", varint_encode(len(body)), body))


# --- reading


class _Budget:
    """Counts what one message spends, so that no arrangement of bytes costs more than its share of time."""

    def __init__(self) -> None:
        self.n_fields = MAX_OTHER_FIELDS
        self.n_items = MAX_ITEMS
        self.n_passed_over = 0

    def spend_field(self) -> None:
        self.n_fields -= 1
        if self.n_fields < 0:
            raise TooBig("a Bitswap message of too many fields for what it holds")

    def spend_item(self) -> None:
        self.n_items -= 1
        self.n_fields += FIELDS_PER_ITEM
        if self.n_items < 0:
            raise TooBig(f"a Bitswap message of over {MAX_ITEMS} entries")


def decode(data: bytes) -> Message:
    """Read a message (without its length prefix). Raises: Malformed, TooBig."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise TooBig(f"a Bitswap message of {len(data)} bytes; the limit is {MAX_MESSAGE_BYTES}")
    budget = _Budget()
    entries: list[Entry] = []
    blocks: list[Payload] = []
    presences: tuple[list[Cid], list[Cid]] = ([], [])
    is_full, pending_bytes = False, 0
    for field, value in fields(memoryview(data), budget.spend_field):
        if field == 1:
            is_full |= _decode_wantlist(as_view(value), entries, budget)
        elif field == 2:
            budget.spend_item()
            blocks.append(_checked(_V0_PREFIX, as_view(value)))
        elif field == 3:
            budget.spend_item()
            blocks.append(_decode_payload(as_view(value), budget))
        elif field == 4:
            budget.spend_item()
            _decode_presence(as_view(value), presences, budget)
        elif field == 5:
            pending_bytes = max(0, as_int32(value))
    haves, dont_haves = map(tuple, presences)
    return Message(tuple(entries), is_full, tuple(blocks), haves, dont_haves, pending_bytes, budget.n_passed_over)


def _decode_wantlist(data: memoryview, entries: list[Entry], budget: _Budget) -> bool:
    is_full = False
    for field, value in fields(data, budget.spend_field):
        if field == 1:
            budget.spend_item()
            entry = _decode_entry(as_view(value), budget)
            if entry is not None:
                entries.append(entry)
            else:
                budget.n_passed_over += 1
        elif field == 2:
            is_full = as_bool(value)
    return is_full


def _decode_entry(data: memoryview, budget: _Budget) -> Entry | None:
    """None for a CID with a digest as no hash function makes it here: others shorten them, and want such blocks."""
    raw, priority, is_cancel, want_type, send_dont_have = b"", 0, False, 0, False
    for field, value in fields(data, budget.spend_field):
        if field == 1:
            raw = as_bytes(value)
        elif field == 2:
            priority = as_int32(value)
        elif field == 3:
            is_cancel = as_bool(value)
        elif field == 4:
            want_type = as_bool(value)
        elif field == 5:
            send_dont_have = as_bool(value)
    try:
        cid = _as_cid(raw)
    except Malformed:
        if _is_odd(raw):
            return None
        raise
    return Entry(cid, priority, is_cancel, WantType(want_type), send_dont_have)


def _decode_payload(data: memoryview, budget: _Budget) -> Payload:
    prefix = block = memoryview(b"")
    for field, value in fields(data, budget.spend_field):
        if field == 1:
            prefix = as_view(value)
        elif field == 2:
            block = as_view(value)
    return _checked(prefix, block)


def _decode_presence(data: memoryview, presences: tuple[list[Cid], list[Cid]], budget: _Budget) -> None:
    raw, kind = b"", 0
    for field, value in fields(data, budget.spend_field):
        if field == 1:
            raw = as_bytes(value)
        elif field == 2:
            kind = as_bool(value)
    presences[kind].append(_as_cid(raw))


def _checked(prefix: bytes | memoryview, data: memoryview) -> Payload:
    if len(data) > MAX_BLOCK_BYTES:
        raise TooBig(f"a block of {len(data)} bytes; the limit is {MAX_BLOCK_BYTES}")
    if len(prefix) > MAX_PREFIX_BYTES:
        raise Malformed(f"a CID prefix of {len(prefix)} bytes; the limit is {MAX_PREFIX_BYTES}")
    return Payload(bytes(prefix), bytes(data))


def _as_cid(raw: bytes) -> Cid:
    try:
        return Cid(raw)
    except InvalidCid as error:
        raise Malformed(str(error)) from None


def _is_odd(raw: bytes) -> bool:
    """Is it a CIDv1 by its form?"""
    try:
        version, at = varint_decode(raw)
        for _ in ("codec", "hash function"):
            _, at = varint_decode(raw, at)
        _, at = bytes_decode(raw, at)
    except ValueError:
        return False
    return version == 1 and at == len(raw)
