"""Private flocks: a key that every member has, under which all bytes of a connection travel from the first.

Source: libp2p/specs, pnet/Private-Networks-PSK-V1; Bernstein, "Extending the Salsa20 nonce" (2011); the key file is
Kubo's `swarm.key`. It keeps strangers out before any handshake, and proves nothing: that remains noise's work.
"""

import base64
import binascii
import hashlib
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from protocols.errors import BadFlockKey
from storage.durable import create_file

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
MAX_FILE_BYTES: Final = 1024
HEADER: Final = "/key/swarm/psk/1.0.0/"

_SIGMA: Final = struct.unpack("<4I", b"expand 32-byte k")
_WORD: Final = 0xFFFFFFFF
_COLUMNS: Final = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
_ROWS: Final = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))


@dataclass(frozen=True)
class FlockKey:
    """The key of a private flock. Whoever has it can connect to every member."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise BadFlockKey(f"a flock's key has {KEY_BYTES} bytes, not {len(self.key)}")

    @classmethod
    def generate(cls) -> Self:
        """A new key from the system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a key file: header, encoding, key, each on its line. Raises: BadFlockKey."""
        header, _, rest = raw[: MAX_FILE_BYTES + 1].partition(b"\n")
        encoding, _, key = rest.partition(b"\n")
        if len(raw) > MAX_FILE_BYTES or header.strip() != HEADER.encode():
            raise BadFlockKey(f"that is no key of a flock: it does not begin with {HEADER}")
        try:
            match encoding.strip():
                case b"/base16/":
                    return cls(bytes.fromhex(key.strip().decode("ascii")))
                case b"/base64/":
                    return cls(base64.b64decode(key.strip(), validate=True))
                case b"/bin/":
                    return cls(key)
        except (binascii.Error, ValueError) as error:
            raise BadFlockKey(f"that key of a flock cannot be read: {error}") from None
        raise BadFlockKey("that key of a flock is in none of the encodings /base16/, /base64/ and /bin/")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved key. Raises: BadFlockKey when it is damaged or readable by others."""
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise BadFlockKey(f"{path} may be read by others (mode {mode:o}): run chmod 600 on it")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        try:
            return cls.parse(raw)
        except BadFlockKey as error:
            raise BadFlockKey(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Write the key file, durably, readable by its owner alone. Raises: FileExistsError: none is overwritten."""
        create_file(path, f"{HEADER}\n/base16/\n{self.key.hex()}\n".encode())

    @property
    def fingerprint(self) -> str:
        """What members can compare aloud; it tells nothing of the key."""
        return hashlib.sha256(b"covey/flock-key/1" + self.key).hexdigest()[:16]

    def cipher(self, nonce: bytes) -> Any:
        """XSalsa20 for one direction of a connection: its `encrypt` goes on where it stopped, and undoes itself."""
        from Crypto.Cipher import Salsa20  # a few ms and an extension module: members of private flocks pay them

        return Salsa20.new(key=hsalsa20(self.key, nonce[:16]), nonce=nonce[16:])


def hsalsa20(key: bytes, nonce: bytes) -> bytes:
    """The key that Salsa20 takes for 16 bytes of a longer nonce (section 2 of Bernstein's paper)."""
    k, n = struct.unpack("<8I", key), struct.unpack("<4I", nonce)
    x = [_SIGMA[0], *k[:4], _SIGMA[1], *n, _SIGMA[2], *k[4:], _SIGMA[3]]
    for _ in range(10):
        for quarter in _COLUMNS + _ROWS:
            _quarter_round(x, *quarter)
    return struct.pack("<8I", *(x[at] for at in (0, 5, 10, 15, 6, 7, 8, 9)))


def _quarter_round(x: list[int], a: int, b: int, c: int, d: int) -> None:
    for to, first, second, bits in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
        total = (x[first] + x[second]) & _WORD
        x[to] ^= ((total << bits) & _WORD) | (total >> (32 - bits))
