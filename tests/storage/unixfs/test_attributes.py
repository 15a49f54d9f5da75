"""Modes and times: kept when that is asked for, restored as far as they are harmless."""

import os
import stat as stat_bits
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.blockstore import MadeBlock
from storage.cid import DAG_PB, Cid
from storage.codecs.dag_pb import PbLink, PbNode
from storage.codecs.dag_pb import encode as encode_pb
from storage.errors import InvalidName, NotFound, TargetExists
from storage.memory import MemoryBlockstore
from storage.unixfs import (
    UNIXFS_V0_2015,
    UNIXFS_V1_2025,
    Keep,
    Profile,
    add_path,
    cid_of_path,
    export,
    read_file,
    stat,
)
from storage.unixfs.data import Kind, Mtime, UnixFsData, encode
from storage.unixfs.exporter import MAX_MTIME_S

KEEP = Keep(mode=True, mtime=True)
SMALL = Profile("small", 1, "size-10", True, 3, False)
SECONDS, NANOSECONDS = 1_234_567_890, 987_654_321
THEN_NS = SECONDS * 10**9 + NANOSECONDS


def put(store: MemoryBlockstore, message: UnixFsData, links: dict[str, Cid] | None = None) -> Cid:
    pb_links = tuple(PbLink(cid, name) for name, cid in (links or {}).items())
    block = MadeBlock.of(encode_pb(PbNode(encode(message), pb_links)), DAG_PB)
    store.put_many([block])
    return block.cid


def dress(path: Path, mode: int | None, at_ns: int = THEN_NS) -> Path:
    if mode is not None:
        path.chmod(mode)
    os.utime(path, ns=(at_ns, at_ns), follow_symlinks=False)
    return path


def mode_of(path: Path) -> int:
    return stat_bits.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files, a symlink, a folder that may not be written to and an empty one, each with a mode and a time."""
    root = tmp_path / "tree"
    (root / "closed").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "closed" / "secret").write_bytes(b"x" * 25)
    (root / "run").write_bytes(b"#!")
    (root / "link").symlink_to("run")
    dress(root / "closed" / "secret", 0o400)
    dress(root / "closed", 0o500)
    dress(root / "empty", 0o711)
    dress(root / "run", 0o755)
    dress(root / "link", None)
    return dress(root, 0o550)


@pytest.mark.parametrize("profile", [SMALL, SMALL.but(layout="trickle"), UNIXFS_V0_2015, UNIXFS_V1_2025])
def test_modes_and_times_come_back(tree: Path, tmp_path: Path, profile: Profile) -> None:
    store = MemoryBlockstore()
    root = add_path(store, tree, profile, keep=KEEP)
    export(store, root, tmp_path / "out")
    for path in (tree, *tree.rglob("*")):
        copy = tmp_path / "out" / path.relative_to(tree)
        assert (mode_of(copy), copy.lstat().st_mtime_ns) == (mode_of(path), THEN_NS), path
    assert cid_of_path(tmp_path / "out", profile, keep=KEEP) == root


def test_nothing_is_kept_unasked_and_each_alone_if_asked(tree: Path) -> None:
    plain, mode, mtime, both = (
        cid_of_path(tree, SMALL, keep=keep) for keep in (Keep(), Keep(mode=True), Keep(mtime=True), KEEP)
    )
    assert len({plain, mode, mtime, both}) == 4
    store = MemoryBlockstore()
    for keep in (Keep(), Keep(mode=True), Keep(mtime=True)):
        about = stat(store, add_path(store, tree / "closed" / "secret", SMALL, keep=keep))
        assert about.mode == (0o400 if keep.mode else None)
        assert about.mtime == (Mtime(SECONDS, NANOSECONDS) if keep.mtime else None)
    for path in (tree, *tree.rglob("*")):
        dress(path, None, 0)
    assert cid_of_path(tree, SMALL) == plain


def test_a_mode_that_readers_assume_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"x")
    (tmp_path / "d" / "f").chmod(0o644)
    (tmp_path / "d").chmod(0o755)
    assert cid_of_path(tmp_path / "d", keep=Keep(mode=True)) == cid_of_path(tmp_path / "d")


def test_a_whole_second_is_written_without_nanoseconds(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    store = MemoryBlockstore()
    for at_ns, mtime in ((5 * 10**9, Mtime(5)), (-1, Mtime(-1, 999_999_999)), (0, Mtime(0))):
        dress(tmp_path / "f", None, at_ns)
        assert stat(store, add_path(store, tmp_path / "f", keep=Keep(mtime=True))).mtime == mtime


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 120), st.sampled_from(["balanced", "trickle"]), st.booleans(), st.integers(2, 4))
def test_attributes_change_no_byte_of_a_file(n_bytes: int, layout: str, raw_leaves: bool, width: int) -> None:
    import tempfile

    profile = Profile("p", 1, "size-10", raw_leaves, width, False, layout)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "f"
        path.write_bytes(bytes(range(n_bytes)))
        dress(path, 0o600)
        store = MemoryBlockstore()
        root = add_path(store, path, profile, keep=KEEP)
        assert b"".join(read_file(store, root)) == path.read_bytes()
        about = stat(store, root)
        assert about == (Kind.FILE, n_bytes, None, 0o600, Mtime(SECONDS, NANOSECONDS))
        # Every block but the root is one of the file without attributes.
        plain = MemoryBlockstore()
        add_path(plain, path, profile)
        assert set(store.cids()) - set(plain.cids()) == {Cid.of(store.get(root))}


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1777, 0o7777, 0xFFFFFFFF])
def test_no_special_bit_comes_out_of_content(tmp_path: Path, mode: int) -> None:
    store = MemoryBlockstore()
    file = put(store, UnixFsData(Kind.FILE, b"#!", 2, mode=mode))
    inner = put(store, UnixFsData(Kind.DIRECTORY, mode=mode), {"f": file})
    export(store, put(store, UnixFsData(Kind.DIRECTORY, mode=mode), {"d": inner}), tmp_path / "out")
    for path in ("", "d", "d/f"):
        assert mode_of(tmp_path / "out" / path) == mode & 0o777


def test_a_special_bit_is_kept_in_the_content_as_others_keep_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "f").chmod(0o4711)
    store = MemoryBlockstore()
    assert stat(store, add_path(store, tmp_path / "f", keep=Keep(mode=True))).mode == 0o4711


@pytest.mark.parametrize("seconds", [MAX_MTIME_S + 1, -MAX_MTIME_S - 1, (1 << 63) - 1, -(1 << 63)])
def test_a_time_that_no_file_can_have_is_left_out(tmp_path: Path, seconds: int) -> None:
    store = MemoryBlockstore()
    about = Mtime(seconds, 5)
    file = put(store, UnixFsData(Kind.FILE, b"x", 1, mtime=about))
    link = put(store, UnixFsData(Kind.SYMLINK, b"f", mtime=about))
    export(store, put(store, UnixFsData(Kind.DIRECTORY, mtime=about), {"f": file, "l": link}), tmp_path / "out")
    for name in ("", "f", "l"):
        assert (tmp_path / "out" / name).lstat().st_mtime > SECONDS


def test_times_at_the_border_are_restored(tmp_path: Path) -> None:
    store = MemoryBlockstore()
    for name, seconds in (("late", MAX_MTIME_S), ("early", -1)):
        export(store, put(store, UnixFsData(Kind.FILE, b"x", 1, mtime=Mtime(seconds))), tmp_path / name)
        assert (tmp_path / name).stat().st_mtime == seconds


def test_a_symlinks_time_is_its_own_and_not_that_of_what_it_names(tmp_path: Path) -> None:
    store = MemoryBlockstore()
    file = put(store, UnixFsData(Kind.FILE, b"x", 1, mtime=Mtime(SECONDS)))
    link = put(store, UnixFsData(Kind.SYMLINK, b"f", mode=0o7777, mtime=Mtime(5)))
    export(store, put(store, UnixFsData(Kind.DIRECTORY), {"f": file, "l": link}), tmp_path / "out")
    assert (tmp_path / "out" / "l").lstat().st_mtime == 5
    assert (tmp_path / "out" / "f").stat().st_mtime == SECONDS
    assert mode_of(tmp_path / "out" / "f") == 0o644


def test_folders_that_content_closes_are_removed_when_the_export_fails(tmp_path: Path) -> None:
    """The folders are closed when all is written; what fails behind that must leave nothing either."""
    store = MemoryBlockstore()
    closed = put(store, UnixFsData(Kind.DIRECTORY, mode=0), {"f": put(store, UnixFsData(Kind.FILE, b"x", 1, mode=0))})
    root = put(store, UnixFsData(Kind.DIRECTORY, mode=0), {"d": closed})
    target = tmp_path / "out"

    def take_the_name(n_bytes: int) -> None:
        if n_bytes:
            target.mkdir()
            (target / "in the way").touch()

    with pytest.raises(TargetExists):
        export(store, root, target, take_the_name)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in target.iterdir()] == ["in the way"]


def test_an_evil_symlink_with_a_time_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    outside = dress(tmp_path / "outside", None) if (tmp_path / "outside").touch() is None else tmp_path
    store = MemoryBlockstore()
    link = put(store, UnixFsData(Kind.SYMLINK, b"../outside", mtime=Mtime(5)))
    with pytest.raises(InvalidName):
        export(store, put(store, UnixFsData(Kind.DIRECTORY), {"l": link}), tmp_path / "out")
    assert outside.stat().st_mtime_ns == THEN_NS


def test_a_missing_block_below_a_closed_folder_leaves_nothing(tmp_path: Path) -> None:
    store = MemoryBlockstore()
    closed = put(store, UnixFsData(Kind.DIRECTORY, mode=0o000), {"f": Cid.of(b"never stored")})
    with pytest.raises(NotFound):
        export(store, put(store, UnixFsData(Kind.DIRECTORY), {"d": closed}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
