"""Names of codes that a CID may hold, for people. Those that are only named here are neither read nor checked.

Source: the multicodec table (multiformats/multicodec).
"""

from typing import Final

from storage.cid import HASHES, IDENTITY
from storage.codecs import CODECS

_CODECS: Final = {
    0x51: "cbor",
    0x72: "libp2p-key",
    0x78: "git-raw",
    0x85: "dag-jose",
    0x0200: "json",
    0x0202: "car",
    **{code: codec.name for code, codec in CODECS.items()},
}
_HASHES: Final = {
    IDENTITY: "identity",
    0x11: "sha1",
    0x14: "sha3-512",
    0x16: "sha3-256",
    0x1B: "keccak-256",
    0x56: "dbl-sha2-256",
    **{code: known.name for code, known in HASHES.items()},
}


def codec_name(code: int) -> str:
    """The name of a codec, or its code as 0x..."""
    return _CODECS.get(code, f"0x{code:x}")


def hash_name(code: int) -> str:
    """The name of a hash function, or its code as 0x..."""
    return _HASHES.get(code, f"0x{code:x}")
