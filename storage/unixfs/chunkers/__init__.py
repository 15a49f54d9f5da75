"""Where a file is cut into chunks: one file for each kind of chunker, found by scanning.

A chunker is a module in this folder, called as its kind, with a function `of(parameters)` (what stands behind the kind
and a hyphen, split at hyphens) and a constant `USAGE`. They are imported when they are asked for: most need numpy.
"""

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Final, Protocol

from storage.blockstore import MAX_BLOCK_MADE_BYTES
from storage.errors import InvalidOption


class Stream(Protocol):
    """What files, pipes and BytesIO have in common."""

    def read(self, n_bytes: int, /) -> bytes:
        """Up to `n_bytes`; none at the end."""


Chunker = Callable[[Stream], Iterator[bytes]]

KINDS: Final = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def chunker(name: str) -> Chunker:
    """The chunker that `ipfs add --chunker=NAME` means, such as size-262144, or one of ours. Raises: InvalidOption."""
    kind, *parameters = name.split("-")
    if kind not in KINDS:
        raise InvalidOption(f"unknown chunker {name!r}: choose one of {', '.join(map(_usage, KINDS))}")
    made: Chunker = import_module(f"{__name__}.{kind}").of(parameters)
    return made


def _usage(kind: str) -> str:
    return str(import_module(f"{__name__}.{kind}").USAGE)


def sizes(parameters: Sequence[str], usage: str) -> list[int]:
    """The parameters as sizes in bytes. Raises: InvalidOption."""
    if not all(text.isascii() and text.isdecimal() and len(text) < 10 for text in parameters):
        raise InvalidOption(f"the sizes of a chunker are whole numbers of bytes: {usage}")
    return [int(text) for text in parameters]


def check_sizes(least: int, min_bytes: int, avg_bytes: int, max_bytes: int, usage: str) -> None:
    """Sizes that a chunker can keep to. Raises: InvalidOption."""
    if not least <= min_bytes < avg_bytes < max_bytes <= MAX_BLOCK_MADE_BYTES:
        raise InvalidOption(
            f"chunks of {min_bytes}, {avg_bytes} and {max_bytes} bytes: the sizes must rise, "
            f"from {least} to {MAX_BLOCK_MADE_BYTES} ({usage})"
        )
