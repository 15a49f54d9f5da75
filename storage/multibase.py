"""Bytes as text in every base that IPFS uses: one letter that names the base, then the digits.

Source: the multibase table (multiformats/multibase), RFC 4648. One text for each value: digits of the other case,
padding that is not asked for or not whole, and bits left over that are not zero are refused.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Final, NamedTuple

MAX_TEXT: Final = 2048  # base2 spends eight digits on a byte, and the bases of no power of two take quadratic time

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_FLICKR: Final = "123456789abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"  # those of `int`, as far as base 36
_BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"
_BASE32Z: Final = "ybndrfg8ejkmcpqxot1uwisza345h769"


class Base(NamedTuple):
    """One base. `encode` and `decode` are for what follows the prefix; `decode` raises ValueError."""

    prefix: str
    name: str
    encode: Callable[[bytes], str]
    decode: Callable[[str], bytes]


def encode(data: bytes, name: str) -> str:
    """`data` in the base of that name, behind its prefix. Raises: ValueError for a name that is not in the table."""
    base = NAMES.get(name)
    if base is None:
        raise ValueError(f"unknown multibase {name!r}; known are {', '.join(sorted(NAMES))}")
    return base.prefix + base.encode(data)


def decode(text: str) -> bytes:
    """The bytes of a text in the base that its first letter names. Raises: ValueError."""
    base = PREFIXES.get(text[:1])
    if base is None:
        raise ValueError(f"unknown multibase {text[:1]!r}")
    if len(text) > MAX_TEXT:
        raise ValueError(f"a text of {len(text)} digits; the limit is {MAX_TEXT}")
    return base.decode(text[1:])


def base58_encode(data: bytes) -> str:
    """Bitcoin's base58, as CIDv0 and peer ids use it."""
    return _number_encode(data, _BASE58)


def base58_decode(text: str) -> bytes:
    """The inverse of `base58_encode`. Raises: ValueError."""
    return _number_decode(text, _BASE58)


def _number_encode(data: bytes, alphabet: str) -> str:
    """The bytes as one number; each zero byte at the front is a zero digit."""
    zeros = len(data) - len(data.lstrip(b"\0"))
    number, base, out = int.from_bytes(data), len(alphabet), []
    while number:
        number, digit = divmod(number, base)
        out.append(alphabet[digit])
    return alphabet[0] * zeros + "".join(reversed(out))


def _number_decode(text: str, alphabet: str) -> bytes:
    zeros = len(text) - len(text.lstrip(alphabet[0]))
    number, base = 0, len(alphabet)
    for char in text:
        digit = alphabet.find(char)
        if digit < 0:
            raise ValueError(f"{char!r} is not in the alphabet")
        number = number * base + digit
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8)


def _numeric(prefix: str, name: str, alphabet: str) -> Base:
    return Base(prefix, name, lambda data: _number_encode(data, alphabet), lambda text: _number_decode(text, alphabet))


def _bitwise(prefix: str, name: str, alphabet: str, *, is_padded: bool = False) -> Base:
    """A base of 2, 8, 16 or 32: `n_bits` a digit, the last one filled up with zeros, padded to whole bytes if at all.

    The digits are handed to `int`, which reads these bases in linear time; the table turns away what else it takes.
    """
    n_bits = (len(alphabet) - 1).bit_length()
    group = next(n for n in range(1, 9) if n * n_bits % 8 == 0)  # so many digits are whole bytes
    own, plain = alphabet.encode(), _DIGITS[: len(alphabet)].encode()
    read = bytearray(b"!" * 256)
    for mine, theirs in zip(own, plain, strict=True):
        read[mine] = theirs

    write = bytes.maketrans(_BASE32.upper().encode(), own) if n_bits == 5 else b""

    def encode_bits(data: bytes) -> str:
        if write:
            text = base64.b32encode(data).translate(write).decode()
            return text if is_padded else text.rstrip("=")
        n_digits = -(-8 * len(data) // n_bits)
        number = int.from_bytes(data) << n_bits * n_digits - 8 * len(data)
        mask = (1 << n_bits) - 1
        return "".join(alphabet[number >> shift & mask] for shift in range(n_bits * (n_digits - 1), -1, -n_bits))

    def decode_bits(text: str) -> bytes:
        if is_padded:
            text = _unpadded(text, group)
        if not text:
            return b""
        try:
            number = int(text.encode("ascii").translate(read), len(alphabet))
        except ValueError:
            raise ValueError(f"a digit is not one of {name}") from None
        n_bytes, n_over = divmod(n_bits * len(text), 8)
        if n_over >= n_bits or number & (1 << n_over) - 1:
            raise ValueError(f"the digits of {name} do not end with a byte")
        return (number >> n_over).to_bytes(n_bytes)

    return Base(prefix, name, encode_bits, decode_bits)


def _unpadded(text: str, group: int) -> str:
    digits = text.rstrip("=")
    if len(text) - len(digits) != -len(digits) % group:
        raise ValueError("the padding is not whole")
    return digits


def _base64(prefix: str, name: str, others: bytes, *, is_padded: bool = False) -> Base:
    def encode_64(data: bytes) -> str:
        text = base64.b64encode(data, others).decode()
        return text if is_padded else text.rstrip("=")

    def decode_64(text: str) -> bytes:
        padded = text if is_padded else text + "=" * (-len(text) % 4)
        try:
            data = base64.b64decode(padded, others, validate=True)
        except binascii.Error as error:
            raise ValueError(f"not {name}: {error}") from None
        if encode_64(data) != text:  # digits of the other alphabet, bits left over, padding
            raise ValueError(f"the text is not in the one form that {name} has")
        return data

    return Base(prefix, name, encode_64, decode_64)


_TABLE: Final = (
    _bitwise("0", "base2", "01"),
    _bitwise("7", "base8", "01234567"),
    _numeric("9", "base10", "0123456789"),
    _bitwise("f", "base16", _DIGITS[:16]),
    _bitwise("F", "base16upper", _DIGITS[:16].upper()),
    _bitwise("b", "base32", _BASE32),
    _bitwise("B", "base32upper", _BASE32.upper()),
    _bitwise("c", "base32pad", _BASE32, is_padded=True),
    _bitwise("C", "base32padupper", _BASE32.upper(), is_padded=True),
    _bitwise("v", "base32hex", _DIGITS[:32]),
    _bitwise("V", "base32hexupper", _DIGITS[:32].upper()),
    _bitwise("t", "base32hexpad", _DIGITS[:32], is_padded=True),
    _bitwise("T", "base32hexpadupper", _DIGITS[:32].upper(), is_padded=True),
    _bitwise("h", "base32z", _BASE32Z),
    _numeric("k", "base36", _DIGITS),
    _numeric("K", "base36upper", _DIGITS.upper()),
    _numeric("z", "base58btc", _BASE58),
    _numeric("Z", "base58flickr", _FLICKR),
    _base64("m", "base64", b"+/"),
    _base64("M", "base64pad", b"+/", is_padded=True),
    _base64("u", "base64url", b"-_"),
    _base64("U", "base64urlpad", b"-_", is_padded=True),
)
PREFIXES: Final = {base.prefix: base for base in _TABLE}
NAMES: Final = {base.name: base for base in _TABLE}
