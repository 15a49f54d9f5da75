"""Content that wants to write outside its folder, in every way that a tree can say it."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.blockstore import MadeBlock
from storage.cid import DAG_PB, Cid
from storage.codecs.dag_pb import PbLink, PbNode, name_bytes
from storage.codecs.dag_pb import encode as encode_pb
from storage.errors import InvalidName, StorageError
from storage.memory import MemoryBlockstore
from storage.unixfs import UNIXFS_V1_2025, export, hamt
from storage.unixfs.data import Kind, Mtime, UnixFsData, encode

NAMES = st.sampled_from(
    ["a", "b", "d", "link", "", ".", "..", "../canary", "/", "a/b", "a\0", "d/../..", "\udcff", " "]
)
TARGETS = st.sampled_from(
    [b"a", b"d", b"..", b".", b"../canary", b"d/..", b"link", b"link/..", b"/", b"a/b", b"../..", b"d/../../canary",
     b"./..", b"", b"\0", b"../out", b"../../out/a", b"b/../canary", b"d//..", b"..//canary"]
)  # fmt: skip
MODES = st.none() | st.integers(0, 0o7777)


def put(store: MemoryBlockstore, message: UnixFsData, links: list[PbLink] | None = None) -> Cid:
    block = MadeBlock.of(encode_pb(PbNode(encode(message), tuple(links or ()))), DAG_PB)
    store.put_many([block])
    return block.cid


def sharded(store: MemoryBlockstore, links: list[PbLink]) -> Cid:
    building = hamt.build(links, UNIXFS_V1_2025)
    blocks = []
    while True:
        try:
            blocks.append(next(building))
        except StopIteration as end:
            store.put_many(blocks)
            return Cid(bytes(end.value.cid))


class Evil:
    """Trees that Hypothesis draws: as data, put into a store when they are exported."""

    file = st.tuples(st.just("file"), st.binary(max_size=20), MODES)
    symlink = st.tuples(st.just("symlink"), TARGETS, MODES)
    tree = st.recursive(
        file | symlink,
        lambda below: st.tuples(
            st.sampled_from(["folder", "shards"]), st.lists(st.tuples(NAMES, below), max_size=5), MODES
        ),
        max_leaves=12,
    )

    @classmethod
    def put(cls, store: MemoryBlockstore, tree: tuple[str, object, int | None]) -> Cid:
        kind, what, mode = tree
        if kind == "file":
            assert isinstance(what, bytes)
            return put(store, UnixFsData(Kind.FILE, what, len(what), mode=mode, mtime=Mtime(5)))
        if kind == "symlink":
            assert isinstance(what, bytes)
            return put(store, UnixFsData(Kind.SYMLINK, what, mode=mode, mtime=Mtime(5)))
        assert isinstance(what, list)
        links = [PbLink(cls.put(store, below), name) for name, below in what]
        if kind == "shards":
            unique = {link.name: link for link in links}
            return sharded(store, list(unique.values()))
        return put(store, UnixFsData(Kind.DIRECTORY, mode=mode), sorted(links, key=lambda link: name_bytes(link.name)))


@settings(max_examples=300, deadline=None)
@given(Evil.tree)
def test_nothing_outside_is_touched_and_nothing_inside_leads_there(tree: tuple[str, object, int | None]) -> None:
    store = MemoryBlockstore()
    root = Evil.put(store, tree)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name).resolve()
        (base / "canary").write_text("sings")
        (base / "inside").mkdir()
        os.utime(base / "canary", ns=(7, 7))
        out = base / "inside" / "out"
        try:
            export(store, root, out)
        except StorageError:
            assert list((base / "inside").iterdir()) == []
        else:
            for folder, folders, files in os.walk(out):
                for path in (Path(folder, below) for below in (*folders, *files)):
                    if path.is_symlink():
                        assert not path.readlink().is_absolute()
                        assert _leads(path).is_relative_to(out)
                    else:
                        assert path.lstat().st_mode & 0o7000 == 0
        assert sorted(path.name for path in base.iterdir()) == ["canary", "inside"]
        assert ((base / "canary").read_text(), (base / "canary").stat().st_mtime_ns) == ("sings", 7)


def _leads(link: Path) -> Path:
    """Where a symlink leads; one that leads to itself stays where it is."""
    return Path(os.path.realpath(link))


@pytest.mark.parametrize("name", [".", "..", "a/b", "/etc", "a\0b", "../x"])
def test_a_name_that_is_not_safe_is_refused_in_shards_too(tmp_path: Path, name: str) -> None:
    store = MemoryBlockstore()
    file = put(store, UnixFsData(Kind.FILE, b"x", 1))
    with pytest.raises(InvalidName):
        export(store, sharded(store, [PbLink(file, "ok"), PbLink(file, name)]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_path_too_long_for_the_system_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    store = MemoryBlockstore()
    root = put(store, UnixFsData(Kind.DIRECTORY))
    for _ in range(40):
        root = put(store, UnixFsData(Kind.DIRECTORY), [PbLink(root, "n" * 250)])
    with pytest.raises(OSError, match="too long"):
        export(store, root, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
