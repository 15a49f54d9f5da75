"""Chunks that end where a cyclic polynomial hash of the last 32 bytes has 17 zero bits, as Kubo's `buzhash`.

A byte has a fixed number of 32 bits; a window's hash is the XOR of its bytes' numbers, each rotated left by its
distance from the window's end. Minimum, maximum, mask and numbers are Kubo's, and cannot be chosen: the CID depends on
them.

Source: boxo/chunker/buzhash.go; R. Uzgalis (1995), "buzhash".
"""

from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from storage.errors import InvalidOption
from storage.unixfs.chunkers import Chunker
from storage.unixfs.cutting import Bytes, Hashes, cut_by_content, first_hit, widen, words

USAGE: Final = "buzhash"
MIN_BYTES: Final = 128 << 10
MAX_BYTES: Final = 512 << 10
WINDOW_BYTES: Final = 32
MASK: Final = (1 << 17) - 1

_NUMBERS: Final = bytes.fromhex(
    "6236e7d510279b0b72818182dc5265142fd41e3d777ef8c883ee52852c8f36372f049c1a57df97919207151f9b54481874eef658"
    "2028ca600271d91a27ae587eecf9fa5f236e71cdf43a8a2e0bb133809e57912c89a26cdb9fcf3d71a86da6f19c49f376346aecc7"
    "f094a9eeea99e9cbb01713c6088acffb2960a0fb344a626c7ff22a466d7a1aa56a71491641d454ca8325b8300b65f563447fecca"
    "f9d0ea5ec1d9d3d4cb5ec57455aae90286edc0e70d3a9e33e70dc1e1e3c5f6399b43140ac6490ac55e4030fb8e976dd5a87468ea"
    "f830ef6fcc1ed5a5611f4e78ddd11905f2613904566c67b9905a5ccc7b37b3a44b53898a6b8fd29daad81575511be4143cfac1e7"
    "8029a179d40efeda07380e02dc9beffd2d04908299bc7831ff5002a821ce764601cd049b0f43994fc3c6c5a5bbda5f500ec15ec7"
    "9adb19b60c1e80b9b9b52968ae1624192542b40591a42e9d6be0f6686ed7a6b9bc2777b4e162ce564266aad560fdb70466f832a5"
    "9595f6cafee83ced55228d9912bf0e28668964590789afda0282baa82367a343591491b02ff1a4b1410739b69b7055a02e0eb229"
    "24fc82523327d3dfb07826691c62e0697f503101f50593aed9eb275de00eb6785917ccde97b9660add06202ded229e22a9c735bf"
    "d6316fe66fc72e4c0206dfa2d6b15c5a69d87b4909c9774513445d6135a975aa859aa9b965380013d1fb6391c29255fd784a3b91"
    "b9e74c2663ce4d40c07cbe9ee6e4529e0fb3632f9438d9c9682f94a8f8fd4611257ec1ed475ce3d660ee2db12afab0022b9e4878"
    "86b340de1482fdcafe41b3bfd4a412b0e09db98cc1af5d537e55e25fd3346b38b7a12cbd9c6827ba71f78bee8c3a0f52150491b0"
    "f26de912233e3a4ed309ebbaa0a9e0ffca2b5921eeb9893c33829e889870cc2a23c4b9d0eba32ea3bdac4d223bc8c44c1e8d0397"
    "f9327735783b009f0eb837422621dc71ed017d035c760aa15a69814b96e3047fa93c9cde615c86f5b4322aa54225534d0d2e2de3"
    "ccfccc4b0bac2a57f0a06d04bc78d737f2d1f766f5a7953cbcdfda855213b7d5bce8a328d38f5f18db094244fe571253317fa7ee"
    "4a324f433ffc39d951b3fa8e7a4bee9f78bbc6829f5c035002fe286c245ab686ed6bf7d70ac4988a3fe010fac65fe369a45749cb"
    "2b84e537de9ff36320540f9aaa8c9b345bc476b31d574bd7929100ad4721de4d27df1b0558b18546b7e76764df904e5897af57a1"
    "bd4dc433a6256dfdf63998f3f1e05833e20acf26f57fd9d690300b4d89df429068d01cbccf893ee3cc42a046778e181b67265c76"
    "e981a4c482991da1708f7294e6e2ae62fc44187095e1b0b60445f8255a93b47f5e9cf4be84da71e79d9582b09bf835ef591f61e2"
    "433259855d2de32e8d8fbf0f95b30f3807ad5b6e4e934edf3cd4990e9053e2595c41857d"
)


def of(parameters: Sequence[str]) -> Chunker:
    """Kubo's buzhash. Raises: InvalidOption."""
    if parameters:
        raise InvalidOption("the chunker buzhash has no parameters")
    return cut_by_content(find, MAX_BYTES)


def find(data: Bytes) -> int:
    """Where the chunk at the beginning of `data` ends."""
    return first_hit(data, MIN_BYTES, len(data), WINDOW_BYTES, _is_hit) if len(data) > MIN_BYTES else len(data)


def numbers() -> npt.NDArray[np.uint32]:
    """The number of each byte."""
    return np.frombuffer(_NUMBERS, ">u4").astype(np.uint32)


def _is_hit(data: Bytes) -> npt.NDArray[np.bool_]:
    hits: npt.NDArray[np.bool_] = (
        widen(_pairs().take(words(data), mode="clip"), WINDOW_BYTES, _join) & np.uint32(MASK) == 0
    )
    return hits


def _join(earlier: Hashes, width: int, later: Hashes) -> Hashes:
    return _rotate(earlier, width) ^ later


def _rotate(hashes: Hashes, n_bits: int) -> Hashes:
    rotated: Hashes = hashes << np.uint32(n_bits)
    rotated |= hashes >> np.uint32(32 - n_bits)
    return rotated


@cache
def _pairs() -> npt.NDArray[np.uint32]:
    one = numbers()
    return (_rotate(one, 1)[:, None] ^ one[None, :]).reshape(-1)
