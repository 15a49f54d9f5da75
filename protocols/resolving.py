"""Names of hosts, looked up by the system: in few threads of their own, with lines for sorts of names that do not mix.

A lookup that is given up goes on in its thread until the system gives up, and peers tell of any number of names that
nobody answers for. Other work in threads does not wait behind those, nor do names that the user told.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import trio

MAX_LOOKUPS: Final = 8  # at a time, of one line

T = TypeVar("T")

# Of one run of trio: a thread that is still at it when the run ends gives its place back to nobody.
_lines: Final = trio.lowlevel.RunVar[defaultdict[str, trio.CapacityLimiter] | None]("lines", default=None)


async def look_up_in(line: str, job: Callable[[], T]) -> T:
    """Have a thread look a name up, after those that came to the same line before. Raises: what `job` does."""
    lines = _lines.get()
    if lines is None:
        lines = defaultdict(partial(trio.CapacityLimiter, MAX_LOOKUPS))
        _lines.set(lines)
    return await trio.to_thread.run_sync(job, abandon_on_cancel=True, limiter=lines[line])
