"""What this process uses, and one that it has started."""

import os
import resource
import sys


def rss_bytes() -> int:
    """Resident memory now; where the system does not tell, the most so far."""
    now_bytes = rss_bytes_of(os.getpid())
    if now_bytes is not None:
        return now_bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes_of(pid: int) -> int | None:
    """Resident memory of another process now; None where the system does not tell, or it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None
