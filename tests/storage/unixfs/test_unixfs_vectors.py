"""The CIDs that Kubo and Helia's importer gave to the same trees. See tests/vectors/make_unixfs.py."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from storage.cid import Cid
from storage.codecs import dag_pb
from storage.memory import MemoryBlockstore
from storage.unixfs import Keep, Profile, add_path, cid_of_path, export, profile_of
from storage.unixfs.data import Kind, decode

FOLDER = Path(__file__).parents[2] / "vectors"
VECTORS = json.loads((FOLDER / "unixfs.json").read_text())
MAKE = runpy.run_path(str(FOLDER / "make_unixfs.py"))
MATERIALISE = MAKE["materialise"]
LARGE_BYTES = 100 << 20  # the files of 1 GiB were compared when the vectors were made


def is_small(vector: dict[str, Any]) -> bool:
    return bool(vector["recipe"].get("file", 0) < LARGE_BYTES)


def settings(how: str) -> tuple[Profile, Keep]:
    """What the vectors call by this name."""
    options = dict(MAKE["SETTINGS"][how])
    is_kept = options.pop("keep", False)
    return profile_of(options.pop("profile")).but(**options), Keep(is_kept, is_kept)


@pytest.mark.parametrize("vector", [*filter(is_small, VECTORS)], ids=lambda vector: vector["case"])
def test_the_cid_is_the_one_that_others_give(vector: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "content"
    MATERIALISE(vector["recipe"], path)
    for how, cid in vector["cids"].items():
        profile, keep = settings(how)
        assert (how, str(cid_of_path(path, profile, keep=keep))) == (how, cid)


def is_shard(store: MemoryBlockstore, cid: Cid) -> bool:
    return decode(dag_pb.decode(store.get(cid)).data).kind is Kind.HAMT_SHARD


# Long names make shards of few files: each costs an fsync when it is written out.
RECIPES = {
    **{vector["case"]: vector["recipe"] for vector in VECTORS},
    "a thousand long names and a folder": {"many": 1000, "names": "é" * 118 + "{:05d}", "tree": {"d": {"tree": {}}}},
}


@pytest.mark.parametrize("profile", ["unixfs-v0-2015", "unixfs-v1-2025"])
@pytest.mark.parametrize("case", ["symlinks", "a thousand long names and a folder", "names to be sorted by bytes"])
def test_what_was_imported_is_exported_the_same(case: str, profile: str, tmp_path: Path) -> None:
    MATERIALISE(RECIPES[case], tmp_path / "before")
    store = MemoryBlockstore()
    root = add_path(store, tmp_path / "before", profile_of(profile))
    assert is_shard(store, root) == ("many" in RECIPES[case])
    export(store, root, tmp_path / "after")
    assert add_path(store, tmp_path / "after", profile_of(profile)) == root
