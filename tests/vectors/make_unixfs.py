"""Write unixfs.json: the CIDs that Kubo (unixfs-v0-2015) and Helia's importer (unixfs-v1-2025) give to the same trees.

    python tests/vectors/make_unixfs.py KUBO_PYTHON KUBO_DRIVER NODE NODE_MODULES

KUBO_DRIVER takes JSON lines {op: add, path, only_hash}; NODE_MODULES holds ipfs-unixfs-importer. A case is a recipe, so
that the vectors stay small: `materialise` makes the tree from it, here and in the tests.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

TILE_BYTES = 1_000_003  # a prime, so that no two chunks of a file are the same

NODE_SCRIPT = """
import fs from 'node:fs'
import path from 'node:path'
import readline from 'node:readline'
import { pathToFileURL } from 'node:url'
const load = name => import(pathToFileURL(path.join(process.argv[2], name, 'dist/src/index.js')))
const { importer } = await load('ipfs-unixfs-importer')
async function * entries (at, name) {
  const about = fs.lstatSync(at)
  if (about.isSymbolicLink()) yield { path: name, link: fs.readlinkSync(at) }
  else if (about.isFile()) yield { path: name, content: fs.createReadStream(at) }
  else {
    yield { path: name }
    for (const child of fs.readdirSync(at)) yield * entries(path.join(at, child), name + '/' + child)
  }
}
for await (const line of readline.createInterface({ input: process.stdin })) {
  let root
  const blocks = { put: async (cid) => cid }
  for await (const entry of importer(entries(line, 'root'), blocks, { profile: 'unixfs-v1-2025' })) root = entry
  console.log(root.cid.toString())
}
"""


def content(n_bytes: int, seed: int) -> bytes:
    """The same bytes for the same seed, anywhere."""
    tile = random.Random(seed).randbytes(TILE_BYTES)
    return (tile * (n_bytes // TILE_BYTES + 1))[:n_bytes]


def materialise(recipe: dict, path: Path) -> None:
    """Make what a recipe says at `path`."""
    if "file" in recipe:
        path.write_bytes(content(recipe["file"], recipe.get("seed", 0)))
    elif "symlink" in recipe:
        path.symlink_to(recipe["symlink"])
    else:
        path.mkdir()
        for index in range(recipe.get("many", 0)):
            (path / recipe["names"].format(index)).write_bytes(str(index).encode())
        for name, below in recipe.get("tree", {}).items():
            materialise(below, path / name)


def cases() -> dict[str, dict]:
    """Every recipe, by name."""
    found: dict[str, dict] = {}
    for chunk in (256 << 10, 1 << 20):
        for n_bytes in (chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk + 17):
            found[f"file of {n_bytes} bytes"] = {"file": n_bytes}
    for n_bytes in (0, 1, 100, 174 * (256 << 10), 174 * (256 << 10) + 1, 1024 << 20, (1024 << 20) + 1):
        found[f"file of {n_bytes} bytes"] = {"file": n_bytes, "seed": 1}
    deep: dict = {"file": 5}
    for level in range(20):
        deep = {"tree": {f"level {level}": deep, "side": {"file": level}}}
    leaf = {"file": 1000, "seed": 2}
    found |= {
        "empty folder": {"tree": {}},
        "folder with one file": {"tree": {"a": leaf}},
        "folder with an empty folder and an empty file": {"tree": {"d": {"tree": {}}, "f": {"file": 0}}},
        "same file twice": {"tree": {"a": leaf, "b": leaf}},
        "names to be sorted by bytes": {
            "tree": dict.fromkeys(("B", "a", "é", "z", "日本", "~", "a b", "%41", "😀", "Z.txt", "ﬀ"), leaf)
        },
        "20 levels deep": deep,
        "folder with large and small files": {
            "tree": {
                "big": {"file": 3_000_000},
                "d": {"tree": {"small": leaf, "e": {"tree": {"x": {"file": 300_000}}}}},
            }
        },
        "symlinks": {"tree": {"a": leaf, "to a": {"symlink": "a"}, "d": {"tree": {"up": {"symlink": "../a"}}}}},
        "below the threshold": {"many": 2000, "names": "file-{:06d}"},
        "shards": {"many": 10_000, "names": "file-{:06d}"},
        "shards with long names": {"many": 1500, "names": "a-rather-long-name-" * 10 + "{:d}"},
        "shards below a folder": {"tree": {"many": {"many": 7000, "names": "n{:x}"}, "one": leaf}},
        "shards with folders in them": {"many": 6000, "names": "é{:05d}", "tree": {"d": {"tree": {"x": leaf}}}},
    }
    # Around both thresholds: 256 KiB of names and CIDs (34 bytes), or of block (44 bytes and the name a link).
    for n_files in (5957, 5958, 4854, 4855):
        found[f"threshold {n_files}"] = {"many": n_files, "names": "{:010d}"}
    return found


def _lines(process: subprocess.Popen, line: str) -> str:
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def main(kubo_python: str, kubo_driver: str, node: str, node_modules: str) -> None:
    """Ask both, and write what they say beside this file."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "importer.mjs").write_text(NODE_SCRIPT)
        kubo = subprocess.Popen(
            [os.path.abspath(kubo_python), str(Path(kubo_driver).resolve()), str(folder / "repo"), "0"],
            **pipes,
            cwd=folder,
            env={**os.environ, "KUBO_ROUTING": "none"},
        )
        assert json.loads(kubo.stdout.readline())["ev"] == "ready"
        helia = subprocess.Popen([node, str(folder / "importer.mjs"), node_modules], **pipes)
        vectors = []
        for label, recipe in cases().items():
            path = folder / "content"
            materialise(recipe, path)
            added = json.loads(_lines(kubo, json.dumps({"op": "add", "path": str(path), "only_hash": True})))
            cids = {"unixfs-v0-2015": added.get("v"), "unixfs-v1-2025": _lines(helia, str(path))}
            vectors.append({"case": label, "recipe": recipe, "cids": cids})
            print(label, cids, file=sys.stderr)
            subprocess.run(["rm", "-r", str(path)], check=True)
        for process in (kubo, helia):
            process.kill()
            process.wait()
    text = json.dumps(vectors, indent=1, ensure_ascii=False)
    (Path(__file__).parent / "unixfs.json").write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
