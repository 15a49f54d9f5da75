"""Content that wants to write outside its folder, in every way that a tree can say it."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage.blockstore import MadeBlock
from storage.cid import DAG_PB, Cid
from storage.codecs.dag_pb import PbLink, PbNode, name_bytes
from storage.codecs.dag_pb import encode as encode_pb
from storage.errors import InvalidName, StorageError
from storage.memory import MemoryBlockstore
from storage.unixfs import UNIXFS_V1_2025, export, hamt
from storage.unixfs.data import Kind, Mtime, UnixFsData, encode

SAFE_NAMES = ["a", "b", "d", "link", " ", "é"]
EVIL_NAMES = ["", ".", "..", "../canary", "/", "a/b", "a\0", "d/../..", "\udcff"]
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


Tree = tuple[str, object, int | None]


class Evil:
    """Trees that Hypothesis draws: as data, put into a store when they are exported."""

    file = st.tuples(st.just("file"), st.binary(max_size=20), MODES)
    symlink = st.tuples(st.just("symlink"), TARGETS, MODES)

    @classmethod
    def trees(cls, names: list[str]) -> st.SearchStrategy[Tree]:
        def folder(below: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
            entries = st.lists(st.tuples(st.sampled_from(names), below), min_size=1, max_size=4)
            return st.tuples(st.sampled_from(["folder", "shards"]), entries, MODES)

        return folder(st.recursive(cls.file | cls.symlink, folder, max_leaves=8))

    @classmethod
    def put(cls, store: MemoryBlockstore, tree: Tree) -> Cid:
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
@example(("folder", [("link", ("symlink", b"..", None))], None))
@example(("folder", [("d", ("shards", [("link", ("symlink", b"../..", None))], None))], None))
@example(("folder", [("a", ("symlink", b"d", None)), ("b", ("symlink", b"a/../..", None))], None))
@given(Evil.trees(SAFE_NAMES) | Evil.trees(SAFE_NAMES + EVIL_NAMES))
def test_nothing_outside_is_touched_and_nothing_inside_leads_there(tree: Tree) -> None:
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
                        assert Path(os.path.realpath(path)).is_relative_to(out)
                    else:
                        assert path.lstat().st_mode & 0o7000 == 0
        assert sorted(path.name for path in base.iterdir()) == ["canary", "inside"]
        assert ((base / "canary").read_text(), (base / "canary").stat().st_mtime_ns) == ("sings", 7)


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
