"""How many files and sockets this process may have open."""

import resource
from contextlib import suppress
from typing import Final

ENOUGH_FILES: Final = 8192


def allow_files() -> None:
    """Have as many as are of use, where the system lets a process say so: some give it 256 unless it asks.

    The connections that a node takes, those that only begin to shake hands included, are more than that; then neither
    blocks nor databases could be opened.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if most == resource.RLIM_INFINITY else min(ENOUGH_FILES, most)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        with suppress(OSError, ValueError):  # then with what there is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
