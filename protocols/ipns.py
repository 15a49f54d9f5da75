"""IPNS records: who holds a key says what its name stands for, until when, and for how long that may be cached.

Names and records are judged here without any network; publishing them and asking others for them is not here.
Source: the IPNS record specification (specs.ipfs.tech/ipns/ipns-record). Written as V2 alone, without the legacy
copies; where a record carries those, they have to say the same.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

from protocols.errors import Expired, Forged, Local, Malformed, Oversize, TooBig
from protocols.ipns_keys import PublicKey
from protocols.protobuf import bytes_field, read_varint
from storage import multibase
from storage.catalog.names import MAX_RECORD_BYTES
from storage.cid import IDENTITY, MAX_CID_TEXT, SHA2_256, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidCid, StorageError
from storage.keys import Identity, InvalidPeerId, PeerId

LIBP2P_KEY: Final = 0x72
DEFAULT_LIFETIME_S: Final = 48 * 3600
DEFAULT_TTL_S: Final = 300

_SIGNED: Final = b"ipns-signature:"
_MAX_UINT64: Final = (1 << 64) - 1
_NS: Final = 1_000_000_000
_EOL: Final = 0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII
)

# The protobuf's fields by number: what they are called, and whether they hold a number or bytes.
_NUMBERS: Final = {3: "validityType", 5: "sequence", 6: "ttl"}
_TEXTS: Final = {1: "value", 2: "signatureV1", 4: "validity", 7: "pubKey", 8: "signatureV2", 9: "data"}
_LEGACY: Final = {"Value": "value", "Validity": "validity", "ValidityType": "validityType"}
_LEGACY_NUMBERS: Final = {"Sequence": "sequence", "TTL": "ttl"}


@dataclass(frozen=True, slots=True)
class Record:
    """A record whose signature was verified. `expires_unix_ns` is the end of its validity."""

    name: PeerId
    raw: bytes
    value: bytes
    sequence: int
    expires_unix_ns: int
    ttl_ns: int

    @property
    def rank(self) -> tuple[int, int]:
        """Of two records of one name the one with the greater rank counts."""
        return self.sequence, self.expires_unix_ns

    def has_expired(self, unix_s: float) -> bool:
        """Is its time over?"""
        return self.expires_unix_ns <= unix_s * _NS


def parse_name(text: str) -> PeerId:
    """Read a name: a CIDv1 of a libp2p key in any multibase, or the bare multihash in base58. Raises: Malformed."""
    text = text.removeprefix("/ipns/")
    try:
        if text.startswith(("1", "Qm")):
            return PeerId.parse(text)
        cid = Cid.parse(text)
        if cid.codec != LIBP2P_KEY or cid.hash_code not in (IDENTITY, SHA2_256):
            raise InvalidCid("it is a CID of content, not of a key")
        return PeerId(cid.multihash)
    except (InvalidCid, InvalidPeerId) as error:
        raise Malformed(f"{text[:MAX_CID_TEXT]!r} is not an IPNS name: {error}") from None


def name_text(name: PeerId) -> str:
    """A name as it is written today: CIDv1, libp2p-key, base36."""
    return multibase.encode(b"\x01\x72" + name, "base36")


def make_record(
    identity: Identity,
    value: str,
    *,
    sequence: int,
    unix_s: float,
    lifetime_s: int = DEFAULT_LIFETIME_S,
    ttl_s: int = DEFAULT_TTL_S,
) -> bytes:
    """Sign that the identity's name stands for `value` (`/ipfs/...` or `/ipns/...`). Raises: Oversize, Local."""
    if not 0 <= sequence <= _MAX_UINT64 or not 0 <= ttl_s * _NS <= _MAX_UINT64:
        raise Local(f"sequence {sequence} or TTL {ttl_s} s is out of range")
    data = dag_cbor.encode(
        {
            "Value": value.encode(),
            "Validity": validity_text(int((unix_s + lifetime_s) * 1000) * (_NS // 1000)).encode(),
            "ValidityType": _EOL,
            "Sequence": sequence,
            "TTL": ttl_s * _NS,
        }
    )
    raw = bytes_field(8, identity.sign(_SIGNED + data)) + bytes_field(9, data)
    if len(raw) > MAX_RECORD_BYTES:
        raise Oversize(f"the record would have {len(raw)} bytes; the limit is {MAX_RECORD_BYTES}")
    return raw


def read_record(raw: bytes, name: PeerId, unix_s: float) -> Record:
    """Verify a record for `name`, in the specification's order. Raises: TooBig, Malformed, Forged, Expired."""
    if len(raw) > MAX_RECORD_BYTES:
        raise TooBig(f"a record of {len(raw)} bytes; the limit is {MAX_RECORD_BYTES}")
    fields = _read_fields(raw)
    signature, data = fields.get("signatureV2"), fields.get("data")
    if not signature or not data:
        raise Malformed("the record has no signature of version 2; ask its publisher for one of today's form")
    key = _key_of(fields.get("pubKey"), name)
    document = _read_document(data)
    if not key.verifies(signature, _SIGNED + data):
        raise Forged(f"the signature of the record is not one by the key of {name_text(name)}")
    if fields.get("signatureV1") or fields.get("value"):
        _compare_legacy(fields, document)
    record = Record(
        name, raw, document["Value"], document["Sequence"], _expiry(document["Validity"]), ttl_ns=document["TTL"]
    )
    if record.has_expired(unix_s):
        raise Expired(f"the record of {name_text(name)} was valid until {validity_text(record.expires_unix_ns)}")
    return record


def holder_of(raw: bytes) -> PeerId | None:
    """The name whose key a record carries, where it does: one of an Ed25519 key need not. Nothing is verified."""
    key = _read_fields(raw[:MAX_RECORD_BYTES]).get("pubKey")
    return PublicKey.read(key).peer_id if key else None


def parse_validity(text: str) -> int:
    """Nanoseconds since 1970 from RFC 3339 text. Raises: Malformed."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise Malformed(f"the validity {text[:40]!r} is not a time as RFC 3339 writes it")
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    fraction, sign, off_hours, off_minutes = match.groups()[6:]
    try:
        offset = timedelta(hours=int(off_hours or 0), minutes=int(off_minutes or 0))
        zone = timezone(-offset if sign == "-" else offset)
        at = datetime(year, month, day, hour, minute, second, tzinfo=zone)
    except ValueError as error:
        raise Malformed(f"the validity {text!r} is no time: {error}") from None
    return (at - _EPOCH) // timedelta(seconds=1) * _NS + int((fraction or "0").ljust(9, "0"))


def validity_text(unix_ns: int) -> str:
    """The RFC 3339 text of a time, with as many digits as it needs. Raises: Malformed beyond the year 9999."""
    seconds, nanoseconds = divmod(unix_ns, _NS)
    try:
        at = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        raise Malformed("a validity beyond the year 9999 cannot be written") from None
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{at.year:04}-{at:%m-%dT%H:%M:%S}{fraction}Z"


def _key_of(embedded: Any, name: PeerId) -> PublicKey:
    """The key that the record carries, if it is the name's; else the one inside the name."""
    if embedded:
        key = PublicKey.read(embedded)
        if name not in key.names:
            raise Forged(f"the record carries another key than that of {name_text(name)}")
        return key
    if name[0] != IDENTITY:
        raise Malformed(f"the record of {name_text(name)} has to carry its key, for the name does not hold it")
    return PublicKey.read(name[2:])


def _read_document(data: bytes) -> dict[str, Any]:
    """The signed part, with every field of the specification; others are not looked at."""
    try:
        document = dag_cbor.decode(data)
    except StorageError as error:
        raise Malformed(f"the record's data: {error}") from None
    if not isinstance(document, dict):
        raise Malformed("the record's data is no map")
    for key in ("Value", "Validity"):
        if type(document.get(key)) is not bytes:
            raise Malformed(f"the record's {key} is missing or no bytes")
    for key in ("Sequence", "TTL", "ValidityType"):
        if type(document.get(key)) is not int or not 0 <= document[key] <= _MAX_UINT64:
            raise Malformed(f"the record's {key} is missing or no number of 64 bits")
    if document["ValidityType"] != _EOL:
        raise Malformed(f"the record's ValidityType {document['ValidityType']} is unknown")
    return document


def _compare_legacy(fields: dict[str, Any], document: dict[str, Any]) -> None:
    for key, legacy in (_LEGACY | _LEGACY_NUMBERS).items():
        missing: bytes | int = b"" if legacy in _TEXTS.values() else 0
        if fields.get(legacy, missing) != document[key]:
            raise Forged(f"the record says one {legacy} signed and another unsigned")


def _expiry(validity: bytes) -> int:
    try:
        return parse_validity(validity.decode("ascii"))
    except UnicodeDecodeError:
        raise Malformed("the record's Validity is not ASCII") from None


def _read_fields(raw: bytes) -> dict[str, Any]:
    """The protobuf's fields. Unknown ones are passed over; a known one that stands twice is refused."""
    fields: dict[str, Any] = {}
    at = 0
    while at < len(raw):
        tag, at = read_varint(raw, at)
        number, wire = tag >> 3, tag & 7
        value, at = _read_value(raw, at, wire)
        name = (_NUMBERS if wire == 0 else _TEXTS).get(number) if wire in (0, 2) else None
        if name is None:
            if number in _NUMBERS or number in _TEXTS or number == 0:
                raise Malformed(f"the record's field {number} has the wire type {wire}")
            continue
        if name in fields:
            raise Malformed(f"the record's {name} stands twice")
        fields[name] = value
    return fields


def _read_value(raw: bytes, at: int, wire: int) -> tuple[int | bytes, int]:
    if wire == 0:
        return read_varint(raw, at)
    if wire == 2:
        length, at = read_varint(raw, at)
    elif wire in (1, 5):
        length = 8 if wire == 1 else 4
    else:
        raise Malformed(f"the record has a field of the wire type {wire}")
    if length > len(raw) - at:
        raise Malformed(f"a field of {length} bytes is cut short")
    return raw[at : at + length], at + length
