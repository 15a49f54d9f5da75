"""Fetch a model's files from the Hugging Face hub: `python -m agents.engine.worker.hub ORG/NAME FOLDER PATTERN...`.

A process of its own, so that the worker never goes online. It ends when its standard input does: with the worker.
"""

import os
import sys
import threading


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would be held as the process ends
        pass
    os._exit(1)


def main() -> None:
    """Fetch, and exit with 0 when all is there; else the last line on stderr says why not."""
    from huggingface_hub import snapshot_download

    threading.Thread(target=_end_with_parent, daemon=True).start()
    source, folder, *patterns = sys.argv[1:]
    try:
        snapshot_download(source, local_dir=folder, allow_patterns=patterns)
    except Exception as error:  # noqa: BLE001 - the end of this process, whose caller wants one line
        said = " ".join(str(error).split())[:200]
        sys.exit(f"{type(error).__name__}: {said}" if said else type(error).__name__)


if __name__ == "__main__":
    main()
