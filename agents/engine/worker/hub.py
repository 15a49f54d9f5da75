"""Fetch a model's files from the Hugging Face hub: `python -m agents.engine.worker.hub ORG/NAME FOLDER PATTERN...`.

A process of its own, so that the worker never goes online. It ends when its standard input does: with the worker.
"""

import os
import sys
import threading


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Fetch, and exit with 0 when all is there."""
    from huggingface_hub import snapshot_download

    threading.Thread(target=_end_with_parent, daemon=True).start()
    source, folder, *patterns = sys.argv[1:]
    snapshot_download(source, local_dir=folder, allow_patterns=patterns)


if __name__ == "__main__":
    main()
