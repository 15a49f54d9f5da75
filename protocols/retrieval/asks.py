"""How a block is asked for over HTTP, and what the answer means. No IO.

Sources: the trustless gateway specification (specs.ipfs.tech/http-gateways/trustless-gateway), the Kubo RPC API
reference. A gateway's word is never taken: what it sends is hashed.
"""

import io
from enum import Enum, auto
from typing import Final

from protocols.bitswap.session import Arrived
from protocols.bitswap.wire import Entry, WantType
from protocols.errors import Malformed
from protocols.retrieval.cars import CAR_TYPE
from protocols.sources import HttpSource
from protocols.web import Ask, Reply
from storage.blockstore import MAX_BLOCK_BYTES
from storage.car.reader import CarReader
from storage.cid import Cid
from storage.errors import InvalidCar, StoreFull

RAW_TYPE: Final = "application/vnd.ipld.raw"
MAX_CAR_BYTES: Final = MAX_BLOCK_BYTES + (64 << 10)  # one block, with a header and an index
_PLAIN: Final = (RAW_TYPE, "application/octet-stream", "")
_NO_SUCH_FORM: Final = (400, 406, 415, 501)
_BUSY: Final = (429, 503)
_NO_API: Final = (401, 403, 404, 405)


class Said(Enum):
    """What an answer is."""

    BLOCK = auto()
    CAR = auto()
    LACKS = auto()
    OTHER_FORM = auto()  # a gateway may have the block, but not in this form
    BUSY = auto()
    NO_API = auto()  # this is no Kubo


def ask_for(source: HttpSource, entry: Entry, *, as_car: bool) -> Ask:
    """The request for one line of a wantlist. A Kubo gives what it has, and does not look for more."""
    is_probe = entry.want_type is WantType.HAVE
    if source.is_kubo:
        what = "stat" if is_probe else "get"
        return Ask(f"{source.url}/api/v0/block/{what}?arg={entry.cid}&offline=true", method="POST")
    method = "HEAD" if is_probe else "GET"
    if as_car:
        return Ask(f"{source.url}/ipfs/{entry.cid}?format=car&dag-scope=block", f"{CAR_TYPE}; version=1", method)
    return Ask(f"{source.url}/ipfs/{entry.cid}?format=raw", RAW_TYPE, method)


def judge(source: HttpSource, reply: Reply) -> Said:
    """What an answer is, by its head."""
    if reply.status in _BUSY:
        return Said.BUSY
    if source.is_kubo:
        return Said.BLOCK if reply.status == 200 else Said.NO_API if reply.status in _NO_API else Said.LACKS
    if reply.status in _NO_SUCH_FORM:
        return Said.OTHER_FORM
    if reply.status != 200:
        return Said.LACKS
    if reply.kind == CAR_TYPE:
        return Said.CAR
    return Said.BLOCK if reply.kind in _PLAIN else Said.OTHER_FORM  # some page: this is no trustless gateway


def arrived(cid: Cid, data: bytes) -> Arrived:
    """Bytes that came for a block, known by their own hash."""
    return Arrived(cid if cid.matches(data) else Cid.of(data, cid.codec, cid.hash_code), data)


def arrived_in_car(cid: Cid, car: bytes) -> Arrived:
    """The block in a CAR that came for it; any other bytes where it is not there. Raises: Malformed."""
    try:
        with CarReader(io.BytesIO(car)) as reader:
            found = [section for section in reader.sections() if section.cid.multihash == cid.multihash]
    except (InvalidCar, StoreFull) as error:
        raise Malformed(f"that is no CAR: {error}") from None
    return arrived(cid, found[0].data if found else b"")
