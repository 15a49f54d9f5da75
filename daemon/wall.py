"""The wall clock, and the only place that reads it: for signed messages and logs, never for measuring."""

import time


def unix_s() -> float:
    """Seconds since 1970-01-01 UTC, as the machine's clock says."""
    return time.time()


def utc_text(at_unix_s: float) -> str:
    """A moment as RFC 3339 text with milliseconds, UTC."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_unix_s))
    return f"{whole}.{int(at_unix_s * 1000) % 1000:03d}Z"
