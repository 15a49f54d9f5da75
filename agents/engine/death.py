"""Why a worker ended, in words that say what to do; and how long to wait before the next one."""

import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

MAX_BACKOFF_S: Final = 8.0
FIRST_BACKOFF_S: Final = 0.5

_COUNTERS: Final = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))
_REMEDY: Final = (
    "use a smaller model, a shorter context, or fewer requests at once; covey engine status shows its memory"
)


def n_oom_kills() -> int:
    """How many processes the system has killed for want of memory, as far as it tells: here and in our own group."""
    n_kills = 0
    for path in _COUNTERS:
        with suppress(OSError, ValueError, IndexError):
            rows = (line.split() for line in path.read_text().splitlines())
            n_kills += sum(int(row[1]) for row in rows if row and row[0] == "oom_kill")
    return n_kills


def cause(code: int | None, complaint: str | None, last_words: str, *, is_oom: bool) -> str:
    """How it ended. `code` is the process's; `complaint` is why this side ended it; `is_oom`: memory ran out since."""
    if complaint:
        said = complaint
    elif code == -signal.SIGKILL:
        why = "the system had run out of memory" if is_oom else "the system may have run out of memory"
        said = f"it was killed by SIGKILL; {why}: {_REMEDY}"
    elif code is not None and code < 0:
        said = f"it was killed by {signal.Signals(-code).name}"
    else:
        said = f"it exited with code {code}"
    words = f"; its last words: {last_words}" if last_words else ""
    return f"the engine died: {said}{words}"


class Backoff:
    """How long to wait before the next start. A worker that did its work, whatever ended it then, costs no wait."""

    def __init__(self) -> None:
        self._n_useless = 0
        self.not_before_s = 0.0

    def ended(self, now_s: float, *, was_useful: bool, was_ready: bool) -> None:
        """A worker ended. One that died at its start costs a wait at once, one that was ready from the second on."""
        if was_useful:
            self._n_useless = 0
            return
        self._n_useless += 1
        n_waits = self._n_useless - 1 if was_ready else self._n_useless
        if n_waits:
            self.not_before_s = now_s + min(FIRST_BACKOFF_S * 2.0 ** (n_waits - 1), MAX_BACKOFF_S)
