"""Write chunks.json: where Kubo's own chunkers cut generated files.

    python tests/vectors/make_chunks.py CHUNKS

CHUNKS is a program that reads a file on stdin and prints the lengths of its chunks as a JSON list; its argument is the
chunker's name. To make one, build a few lines of Go around `FromString` of github.com/ipfs/boxo/chunker (the vectors
here: commit 8df89a787fac, with github.com/whyrusleeping/chunker at fe64bd25879f). Long lists are kept as their number
and the SHA-256 of their text.
"""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

MAX_LISTED = 24
CHUNKERS = (
    "size-100000",
    "buzhash",
    "rabin",
    "rabin-100",
    "rabin-32768",
    "rabin-300000",
    "rabin-16-1024-4096",
    "rabin-65536-131072-1000000",
    "rabin-min:87381-avg:262144-max:393216",
)
FILES: dict[str, list[list[int]]] = {
    "empty": [],
    "one byte": [[1, 1, 1]],
    "128 KiB": [[1, 131072, 1]],
    "128 KiB and one byte": [[2, 131073, 1]],
    "random": [[3, 3_000_000, 1]],
    "zeros": [[0, 1_500_000, 1]],
    "a kilobyte again and again": [[4, 1000, 2000]],
    "random, zeros, a few bytes repeated": [[5, 700_000, 1], [0, 600_000, 1], [6, 3, 250_000]],
}


def content(recipe: list[list[int]]) -> bytes:
    """Parts [seed, number of bytes, times]; zeros where the seed is 0."""
    return b"".join(
        (random.Random(seed).randbytes(n_bytes) if seed else bytes(n_bytes)) * times for seed, n_bytes, times in recipe
    )


def shown(lengths: list[int]) -> object:
    """As it stands in the vectors."""
    if len(lengths) <= MAX_LISTED:
        return lengths
    return {"n": len(lengths), "sha256": hashlib.sha256(json.dumps(lengths).encode()).hexdigest()}


def main(program: str) -> None:
    vectors = []
    for name in CHUNKERS:
        for label, recipe in FILES.items():
            done = subprocess.run([program, name], input=content(recipe), capture_output=True, check=True)
            vectors.append(
                {"chunker": name, "case": label, "recipe": recipe, "lengths": shown(json.loads(done.stdout))}
            )
    text = ",\n ".join(json.dumps(vector) for vector in vectors)
    (Path(__file__).parent / "chunks.json").write_text(f"[{text}]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
