"""What a row in the table of readers is."""

from collections.abc import Callable
from typing import NamedTuple


class Reader(NamedTuple):
    """One row of the table. `errors` are all that `read` may raise; `corpus` are valid inputs, to be damaged."""

    name: str
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    corpus: tuple[bytes, ...]
