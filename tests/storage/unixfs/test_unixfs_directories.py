"""Directories in and out: shards, paths, and trees that want to write where they must not."""

import os
from pathlib import Path

import pytest

from storage.blockstore import MadeBlock
from storage.cid import DAG_CBOR, DAG_PB, Cid
from storage.codecs import dag_cbor, dag_pb
from storage.codecs.dag_pb import PbLink, PbNode
from storage.errors import (
    InvalidBlock,
    InvalidName,
    NoSuchName,
    NotAFile,
    NotAFolder,
    NotFound,
    NotUnixfs,
    SpecialFile,
    StorageError,
    TargetExists,
    TooLarge,
)
from storage.memory import MemoryBlockstore
from storage.unixfs import PROFILES, Profile, add_bytes, add_path, export, list_dir, read_file, resolve, stat
from storage.unixfs import exporter as exporter_module
from storage.unixfs import importer as importer_module
from storage.unixfs.data import Kind, UnixFsData, encode
from storage.unixfs.hamt import MURMUR3_X64_64, build


def put(store: MemoryBlockstore, message: UnixFsData, links: list[PbLink]) -> Cid:
    block = MadeBlock.of(dag_pb.encode(PbNode(encode(message), tuple(links))), DAG_PB)
    store.put_many([block])
    return block.cid


def folder(store: MemoryBlockstore, entries: dict[str, Cid]) -> Cid:
    links = sorted(
        (PbLink(cid, name, 0) for name, cid in entries.items()), key=lambda link: dag_pb.name_bytes(link.name)
    )
    return put(store, UnixFsData(Kind.DIRECTORY), links)


def shard(store: MemoryBlockstore, links: list[PbLink], fanout: int = 256, hash_type: int = MURMUR3_X64_64) -> Cid:
    return put(store, UnixFsData(Kind.HAMT_SHARD, b"\xff", hash_type=hash_type, fanout=fanout), links)


def symlink(store: MemoryBlockstore, target: bytes) -> Cid:
    return put(store, UnixFsData(Kind.SYMLINK, target), [])


@pytest.fixture
def memory() -> MemoryBlockstore:
    return MemoryBlockstore()


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_a_sharded_directory_lists_and_finds_every_name(memory: MemoryBlockstore, profile: Profile) -> None:
    leaf = add_bytes(memory, b"x", profile)
    links = [PbLink(leaf, f"name {number}", 1) for number in range(3000)]
    blocks = build(links, profile)
    made = []
    while True:
        try:
            made.append(next(blocks))
        except StopIteration as stop:
            root = stop.value.cid
            break
    memory.put_many(made)
    assert stat(memory, root).is_directory
    assert {entry.name for entry in list_dir(memory, root)} == {link.name for link in links}
    assert all(resolve(memory, root, f"name {number}") == leaf for number in range(0, 3000, 100))
    for absent in ("name 3000", "", "00", "FF"):
        with pytest.raises(NotFound):
            resolve(memory, root, f"{absent}/x")


def test_paths_are_resolved_through_folders(memory: MemoryBlockstore) -> None:
    leaf = add_bytes(memory, b"x")
    root = folder(memory, {"a": folder(memory, {"b": leaf})})
    assert resolve(memory, root, "/a/b/") == leaf
    assert resolve(memory, root, "") == root
    for path in ("b", "a/c", "a/b/c", "a//b", "a/../a", "."):
        with pytest.raises(NotFound):
            resolve(memory, root, path)


def test_of_two_entries_with_one_name_the_first_counts(memory: MemoryBlockstore, tmp_path: Path) -> None:
    first, second = add_bytes(memory, b"1"), add_bytes(memory, b"2")
    root = put(memory, UnixFsData(Kind.DIRECTORY), [PbLink(first, "a"), PbLink(second, "a")])
    assert [entry.cid for entry in list_dir(memory, root)] == [first]
    assert resolve(memory, root, "a") == first
    export(memory, root, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"1"


def test_shards_that_lie_are_refused(memory: MemoryBlockstore) -> None:
    leaf = add_bytes(memory, b"x")
    empty = shard(memory, [])
    endless = empty
    for _ in range(12):
        endless = shard(memory, [PbLink(endless, f"{index:02X}") for index in range(256)])
    liars = [
        shard(memory, [PbLink(leaf, "00a")]),  # not where its hash says
        shard(memory, [PbLink(leaf, "0")]),
        shard(memory, [PbLink(leaf, "zz")]),
        shard(memory, [PbLink(leaf, None)]),
        shard(memory, [PbLink(leaf, "+1x")]),
        shard(memory, [PbLink(empty, "00")]),
        shard(memory, [], fanout=3),
        shard(memory, [], fanout=2048),
        shard(memory, [], fanout=4),
        shard(memory, [], hash_type=0x12),
        endless,
    ]
    for root in liars:
        with pytest.raises(StorageError):
            list(list_dir(memory, root))


def test_what_is_no_directory_has_no_list(memory: MemoryBlockstore) -> None:
    for cid in (add_bytes(memory, b"raw"), symlink(memory, b"x"), put(memory, UnixFsData(Kind.FILE, b"x", 1), [])):
        with pytest.raises(InvalidBlock):
            list(list_dir(memory, cid))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b", "../x", "n" * 256])
def test_a_name_that_is_not_safe_is_refused_and_nothing_is_left(
    memory: MemoryBlockstore, tmp_path: Path, name: str
) -> None:
    root = folder(memory, {"ok": add_bytes(memory, b"x"), name: add_bytes(memory, b"y")})
    with pytest.raises(InvalidName):
        export(memory, root, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "target", [b"", b"/etc/passwd", b"..", b"../x", b"a/..", b"a/../../..", b"./../..", b"\0", b"d/../../x", b"//x"]
)
def test_a_symlink_that_may_lead_outside_is_refused(memory: MemoryBlockstore, tmp_path: Path, target: bytes) -> None:
    root = folder(memory, {"link": symlink(memory, target)})
    with pytest.raises(InvalidName):
        export(memory, root, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_symlink_alone_is_refused_when_it_steps_up(memory: MemoryBlockstore, tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        export(memory, symlink(memory, b"../x"), tmp_path / "out")


def test_symlinks_that_stay_inside_are_written(memory: MemoryBlockstore, tmp_path: Path) -> None:
    leaf = add_bytes(memory, b"x")
    inner = folder(
        memory, {"up": symlink(memory, b"../a"), "self": symlink(memory, b"."), "out": symlink(memory, b"..")}
    )
    root = folder(memory, {"a": leaf, "d": inner, "l": symlink(memory, b"d/up")})
    export(memory, root, tmp_path / "out")
    assert (tmp_path / "out" / "l").read_bytes() == b"x"
    assert os.readlink(tmp_path / "out" / "d" / "out") == ".."


def test_a_symlink_is_never_written_through(memory: MemoryBlockstore, tmp_path: Path) -> None:
    evil = folder(memory, {"file": add_bytes(memory, b"evil")})
    links = [PbLink(symlink(memory, b"d"), "s"), PbLink(evil, "s")]
    root = put(memory, UnixFsData(Kind.DIRECTORY), [PbLink(folder(memory, {}), "d"), *links])
    export(memory, root, tmp_path / "out")
    assert list((tmp_path / "out" / "d").iterdir()) == []


def test_nothing_is_overwritten(memory: MemoryBlockstore, tmp_path: Path) -> None:
    leaf = add_bytes(memory, b"new")
    (tmp_path / "file").write_text("old")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(TargetExists):
            export(memory, leaf, tmp_path / name)
    assert (tmp_path / "file").read_text() == "old"


def test_an_export_that_fails_leaves_nothing(memory: MemoryBlockstore, tmp_path: Path) -> None:
    root = folder(memory, {"a": add_bytes(memory, b"x"), "b": Cid.of(b"never stored")})
    with pytest.raises(NotFound):
        export(memory, root, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tree_without_end_is_refused(
    memory: MemoryBlockstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter_module, "MAX_EXPORT_ENTRIES", 200)
    root = folder(memory, {})
    for _ in range(40):
        root = folder(memory, {"a": root, "b": root})
    with pytest.raises(TooLarge):
        export(memory, root, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_tells_of_each_folder_and_piece(memory: MemoryBlockstore, tmp_path: Path) -> None:
    told: list[int] = []
    export(memory, folder(memory, {"a": add_bytes(memory, b"12345")}), tmp_path / "out", told.append)
    assert told == [0, 5]


def test_what_is_neither_file_nor_folder_is_not_added(memory: MemoryBlockstore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecialFile, match="pipe is a pipe, not a file, folder or symlink"):
        add_path(memory, tmp_path)


def test_folders_are_added_to_a_limited_depth(
    memory: MemoryBlockstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer_module, "MAX_FOLDER_DEPTH", 3)
    (tmp_path / "1" / "2").mkdir(parents=True)
    add_path(memory, tmp_path)
    (tmp_path / "1" / "2" / "3").mkdir()
    with pytest.raises(TooLarge):
        add_path(memory, tmp_path)


def test_names_that_are_not_utf8_keep_their_bytes(memory: MemoryBlockstore, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / os.fsdecode(b"\xff\xfe")).write_bytes(b"x")
    root = add_path(memory, source)
    export(memory, root, tmp_path / "out")
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"\xff\xfe"]


def test_an_export_can_be_ended_at_every_folder_and_leaves_nothing(tmp_path):
    store = MemoryBlockstore()
    for name in ("a", "b", "c"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    cid = add_path(store, tmp_path / "tree")
    told = []

    def stop_at_third(n_bytes):
        told.append(n_bytes)
        if len(told) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        export(store, cid, tmp_path / "out", stop_at_third)
    assert told == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_what_is_read_as_another_kind_than_it_is_says_which_kind_it_is(memory: MemoryBlockstore) -> None:
    file, link = add_bytes(memory, b"12345"), put(memory, UnixFsData(Kind.SYMLINK, b"a"), [])
    root = folder(memory, {"a": file, "l": link})
    for read in (lambda cid: list(read_file(memory, cid)), lambda cid: list(list_dir(memory, cid))):
        with pytest.raises(NotUnixfs, match="a block of dag-cbor, not a file or folder"):
            read(_dag(memory))
        with pytest.raises(InvalidBlock, match="is a symlink to 'a', not a"):
            read(link)
    with pytest.raises(NotAFile, match="is a folder, not a file"):
        list(read_file(memory, root))
    with pytest.raises(NotAFolder, match="is a file, not a folder"):
        list(list_dir(memory, file))
    with pytest.raises(NotUnixfs, match="a block of dag-pb, not a file or folder: not UnixFS"):
        stat(memory, _bare_node(memory))


def test_a_path_that_leads_nowhere_says_where_it_ends(memory: MemoryBlockstore) -> None:
    file, link = add_bytes(memory, b"12345"), put(memory, UnixFsData(Kind.SYMLINK, b"a"), [])
    root = folder(memory, {"a": file, "l": link})
    with pytest.raises(NoSuchName, match=f"there is no 'x' in the folder {root}"):
        resolve(memory, root, "x")
    with pytest.raises(NoSuchName, match=f"there is no 'x' in {file}: that is a file"):
        resolve(memory, root, "a/x")
    with pytest.raises(NoSuchName, match=f"there is no 'x' in {link}: that is a symlink"):
        resolve(memory, root, "l/x")


def test_a_folder_inside_of_a_file_is_a_block_that_is_wrong(memory: MemoryBlockstore) -> None:
    inner = folder(memory, {})
    root = put(memory, UnixFsData(Kind.FILE, block_sizes=(5,)), [PbLink(inner, "", 5)])
    with pytest.raises(InvalidBlock, match="in the place of a part") as found:
        list(read_file(memory, root))
    assert type(found.value) is InvalidBlock


def _dag(memory: MemoryBlockstore) -> Cid:
    block = MadeBlock.of(dag_cbor.encode({"a": 1}), DAG_CBOR)
    memory.put_many([block])
    return block.cid


def _bare_node(memory: MemoryBlockstore) -> Cid:
    block = MadeBlock.of(dag_pb.encode(PbNode(None, ())), DAG_PB)
    memory.put_many([block])
    return block.cid
