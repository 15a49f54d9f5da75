"""Content identifiers: a small value class over the binary form. Text is made and read only at the edges.

Source: the CID specification (multiformats/cid), multihash, multibase and the multicodec table.
"""

import hashlib
from collections.abc import Callable
from typing import Final, NamedTuple, Self

from blake3 import blake3

from storage import multibase
from storage.errors import InvalidCid

RAW: Final = 0x55
DAG_PB: Final = 0x70
DAG_CBOR: Final = 0x71

IDENTITY: Final = 0x00
SHA2_256: Final = 0x12
SHA2_512: Final = 0x13
BLAKE3: Final = 0x1E
_BLAKE2B: Final = 0xB200  # and the length of the digest in bytes
BLAKE2B_256: Final = _BLAKE2B + 32

MAX_DIGEST_BYTES: Final = 128
MAX_CID_BYTES: Final = 4 * 9 + MAX_DIGEST_BYTES
MAX_CID_TEXT: Final = 8 * MAX_CID_BYTES + 1  # base2


class Hash(NamedTuple):
    """A hash function: what it does, the length of its digest in bytes, its name in the multicodec table."""

    function: Callable[[bytes], bytes]
    n_bytes: int
    name: str


def _blake2b(n_bytes: int) -> Hash:
    return Hash(lambda data: hashlib.blake2b(data, digest_size=n_bytes).digest(), n_bytes, f"blake2b-{8 * n_bytes}")


# The allow-list, by hash code. A CID with another hash is a name that may stand in foreign content as a link, but no
# bytes ever match it: it cannot be stored, fetched or served. blake2b has a code for each length; those of under 160
# bits are too short to trust.
HASHES: Final[dict[int, Hash]] = {
    SHA2_256: Hash(lambda data: hashlib.sha256(data).digest(), 32, "sha2-256"),
    SHA2_512: Hash(lambda data: hashlib.sha512(data).digest(), 64, "sha2-512"),
    BLAKE3: Hash(lambda data: blake3(data).digest(), 32, "blake3"),
    **{_BLAKE2B + n_bytes: _blake2b(n_bytes) for n_bytes in range(20, 65)},
}


def varint_encode(value: int) -> bytes:
    """`value` as an unsigned varint (LEB128)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint_decode(data: bytes, at: int = 0) -> tuple[int, int]:
    """Read an unsigned varint of at most 9 bytes in minimal form; return it and the offset behind it.

    Raises: ValueError when it is cut short, too long or not minimal.
    """
    value = shift = 0
    for index in range(at, min(at + 9, len(data))):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and index > at:
                raise ValueError("varint is not minimal")
            return value, index + 1
        shift += 7
    raise ValueError("varint is cut short or longer than 9 bytes")


def bytes_decode(data: bytes, at: int) -> tuple[bytes, int]:
    """Read bytes that stand behind their length, a varint; return them and the offset behind them.

    Raises: ValueError as `varint_decode`, and when they are cut short.
    """
    length, at = varint_decode(data, at)
    if length > len(data) - at:
        raise ValueError(f"a field of {length} bytes is cut short")
    return data[at : at + length], at + length


class Cid(bytes):
    """A CID in binary form: CIDv0 is the bare sha2-256 multihash, CIDv1 is version, codec, multihash.

    `Cid(raw)` checks the bytes; `Cid.parse(text)` reads any multibase; `str(cid)` is what `ipfs` prints.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        """Raises: InvalidCid."""
        # Nearly every CID is CIDv1 + one-byte codec + sha2-256: spare it the parser.
        usual = len(raw) == 36 and raw[0] == 1 and raw[1] in (RAW, DAG_PB, DAG_CBOR) and raw[2:4] == b"\x12\x20"
        if not usual:
            _check(raw)
        return super().__new__(cls, raw)

    @classmethod
    def of(cls, data: bytes, codec: int = RAW, hash_code: int = SHA2_256) -> Self:
        """The CIDv1 of a block's bytes."""
        function, length, _ = HASHES[hash_code]
        return cls(b"\x01" + varint_encode(codec) + varint_encode(hash_code) + varint_encode(length) + function(data))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a CID's text form. Raises: InvalidCid."""
        if not 2 <= len(text) <= MAX_CID_TEXT:
            raise InvalidCid(f"{text[:20]!r} is not a CID: its length is {len(text)}")
        try:
            if len(text) == 46 and text.startswith("Qm"):
                return cls(multibase.base58_decode(text))
            raw = multibase.decode(text)
        except ValueError as error:
            raise InvalidCid(f"{text[:70]!r} is not a CID: {error}") from None
        if raw[:1] == b"\x12":
            raise InvalidCid("a CIDv0 has no multibase prefix")
        return cls(raw)

    @property
    def version(self) -> int:
        """0 or 1."""
        return 0 if self[0] == SHA2_256 else 1

    @property
    def codec(self) -> int:
        """The multicodec of the block; dag-pb for CIDv0."""
        return DAG_PB if self[0] == SHA2_256 else varint_decode(self, 1)[0]

    @property
    def multihash(self) -> bytes:
        """Hash code, length and digest: the key of a block in a store."""
        if self[0] == SHA2_256:
            return bytes(self)
        return self[2:] if self[1] < 0x80 else self[varint_decode(self, 1)[1] :]  # nearly every codec has one byte

    @property
    def hash_code(self) -> int:
        """The multicodec of the hash function."""
        hashed = self.multihash
        return hashed[0] if hashed[0] < 0x80 else varint_decode(hashed)[0]

    @property
    def digest(self) -> bytes:
        """The hash itself, or the data of an identity CID."""
        hashed = self.multihash
        return hashed[varint_decode(hashed, varint_decode(hashed)[1])[1] :]

    @property
    def inline(self) -> bytes | None:
        """The data itself when this is an identity CID; such blocks are never stored, asked for or provided."""
        return self.digest if self.hash_code == IDENTITY else None

    def matches(self, data: bytes) -> bool:
        """Is `data` the block that this CID names? Never, when its hash function is not on the allow-list."""
        hashed = self.multihash
        code, at = varint_decode(hashed)
        digest = hashed[varint_decode(hashed, at)[1] :]
        if code == IDENTITY:
            return data == digest
        return code in HASHES and HASHES[code][0](data) == digest

    def as_v1(self) -> "Cid":
        """The same block as CIDv1."""
        return Cid(b"\x01\x70" + self) if self.version == 0 else self

    def as_v0(self) -> "Cid":
        """The same block as CIDv0. Raises: InvalidCid where there is none (not dag-pb with sha2-256)."""
        if self.version == 1 and (self.codec != DAG_PB or self.hash_code != SHA2_256):
            raise InvalidCid(f"{self} has no version 0: only dag-pb with sha2-256 has one")
        return Cid(self.multihash)

    def encode(self, base: str) -> str:
        """The text form in the multibase of that name. Raises: InvalidCid (unknown; a CIDv0 has base58btc alone)."""
        if self.version == 0:
            if base != "base58btc":
                raise InvalidCid(f"a CIDv0 has no text in {base}, only in base58btc. Make it a CIDv1 first")
            return multibase.base58_encode(self)
        try:
            return multibase.encode(self, base)
        except ValueError as error:
            raise InvalidCid(str(error)) from None

    def __str__(self) -> str:
        return self.encode("base58btc" if self[0] == SHA2_256 else "base32")

    def __repr__(self) -> str:
        return f"Cid({self})"


def _check(raw: bytes) -> None:
    if len(raw) > MAX_CID_BYTES:
        raise InvalidCid(f"a CID of {len(raw)} bytes; the limit is {MAX_CID_BYTES}")
    if raw[:1] == b"\x12":
        if len(raw) != 34 or raw[1] != 32:
            raise InvalidCid("a CIDv0 is 34 bytes: sha2-256 and its digest")
        return
    try:
        version, at = varint_decode(raw)
        if version != 1:
            raise InvalidCid(f"CID version {version} is unknown")
        _, at = varint_decode(raw, at)
        code, at = varint_decode(raw, at)
        length, at = varint_decode(raw, at)
    except ValueError as error:
        if isinstance(error, InvalidCid):
            raise
        raise InvalidCid(f"not a CID: {error}") from None
    if length != len(raw) - at:
        raise InvalidCid(f"the digest has {len(raw) - at} bytes and says {length}")
    if length > MAX_DIGEST_BYTES:
        raise InvalidCid(f"a digest of {length} bytes; the limit is {MAX_DIGEST_BYTES}")
    if code in HASHES and HASHES[code][1] != length:
        raise InvalidCid(f"hash function 0x{code:x} has {HASHES[code][1]} bytes, not {length}")
