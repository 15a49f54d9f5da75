"""Content identifiers: a small value class over the binary form. Text is made and read only at the edges.

Source: the CID specification (multiformats/cid), multihash, multibase and the multicodec table.
"""

import base64
import hashlib
from collections.abc import Callable
from typing import Final, Self

from blake3 import blake3

from storage.errors import InvalidCid

RAW: Final = 0x55
DAG_PB: Final = 0x70
DAG_CBOR: Final = 0x71

IDENTITY: Final = 0x00
SHA2_256: Final = 0x12
SHA2_512: Final = 0x13
BLAKE3: Final = 0x1E
BLAKE2B_256: Final = 0xB220

MAX_DIGEST_BYTES: Final = 128
MAX_CID_BYTES: Final = 4 * 9 + MAX_DIGEST_BYTES
MAX_CID_TEXT: Final = 2 * MAX_CID_BYTES + 1

# The allow-list: hash code -> (function, digest length in bytes). A CID with another hash is a name that may stand in
# foreign content as a link, but no bytes ever match it: it cannot be stored, fetched or served.
HASHES: Final[dict[int, tuple[Callable[[bytes], bytes], int]]] = {
    SHA2_256: (lambda data: hashlib.sha256(data).digest(), 32),
    SHA2_512: (lambda data: hashlib.sha512(data).digest(), 64),
    BLAKE3: (lambda data: blake3(data).digest(), 32),
    BLAKE2B_256: (lambda data: hashlib.blake2b(data, digest_size=32).digest(), 32),
}

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE36: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


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


def _base_encode(data: bytes, alphabet: str) -> str:
    zeros = len(data) - len(data.lstrip(b"\0"))
    number, base, out = int.from_bytes(data), len(alphabet), []
    while number:
        number, digit = divmod(number, base)
        out.append(alphabet[digit])
    return alphabet[0] * zeros + "".join(reversed(out))


def _base_decode(text: str, alphabet: str) -> bytes:
    zeros = len(text) - len(text.lstrip(alphabet[0]))
    number, base = 0, len(alphabet)
    for char in text:
        digit = alphabet.find(char)
        if digit < 0:
            raise ValueError(f"{char!r} is not in the alphabet")
        number = number * base + digit
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8)


def base58_encode(data: bytes) -> str:
    """Bitcoin's base58, as CIDv0 and peer ids use it."""
    return _base_encode(data, _BASE58)


def base58_decode(text: str) -> bytes:
    """The inverse of `base58_encode`. Raises: ValueError."""
    return _base_decode(text, _BASE58)


def _base32_encode(data: bytes) -> str:
    return base64.b32encode(data).decode().lower().rstrip("=")


def _base32_decode(text: str) -> bytes:
    return base64.b32decode(text.upper() + "=" * (-len(text) % 8))


def _base64url_decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


# Multibase prefix -> decoder of what follows it.
_MULTIBASES: Final[dict[str, Callable[[str], bytes]]] = {
    "b": _base32_decode,
    "B": _base32_decode,
    "z": base58_decode,
    "k": lambda text: _base_decode(text, _BASE36),
    "K": lambda text: _base_decode(text.lower(), _BASE36),
    "f": bytes.fromhex,
    "F": bytes.fromhex,
    "u": _base64url_decode,
    "m": lambda text: base64.b64decode(text + "=" * (-len(text) % 4), validate=True),
}


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
        function, length = HASHES[hash_code]
        return cls(b"\x01" + varint_encode(codec) + varint_encode(hash_code) + varint_encode(length) + function(data))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a CID's text form. Raises: InvalidCid."""
        if not 2 <= len(text) <= MAX_CID_TEXT:
            raise InvalidCid(f"{text[:20]!r} is not a CID: its length is {len(text)}")
        try:
            if len(text) == 46 and text.startswith("Qm"):
                return cls(base58_decode(text))
            decode = _MULTIBASES.get(text[0])
            if decode is None:
                raise ValueError(f"unknown multibase {text[0]!r}")
            raw = decode(text[1:])
        except (ValueError, OverflowError) as error:
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

    def __str__(self) -> str:
        return base58_encode(self) if self.version == 0 else "b" + _base32_encode(self)

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
