"""How tests wait for what comes to a store that another process writes: only its disk tells at any time."""

import time
from pathlib import Path


def until_holds(home: Path, n_bytes: int, timeout_s: float = 60) -> None:
    """Wait until the packs of a store hold so much: a command that asks may start for longer than a fetch takes."""
    until_s = time.monotonic() + timeout_s
    while sum(pack.stat().st_size for pack in (home / "packs").glob("*.pack")) < n_bytes:
        assert time.monotonic() < until_s, f"nothing came to {home.name}"
        time.sleep(0.01)
