"""What is written beside a target: whole or not at all, the living are left alone, and the dead leave nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from storage.blockstore import MadeBlock
from storage.cid import DAG_PB
from storage.codecs import dag_pb
from storage.codecs.dag_pb import PbLink, PbNode
from storage.errors import DiskFull, TargetExists
from storage.memory import MemoryBlockstore
from storage.staging import beside, discard_leftovers
from storage.unixfs import add_bytes, add_path, export
from storage.unixfs.data import Kind, UnixFsData, encode
from storage.unixfs.exporter import stated_bytes

WRITES_AND_WAITS = """
import sys
from pathlib import Path
from storage.staging import beside
with beside(Path(sys.argv[1])) as base:
    base.mkdir()
    (base / "half").write_bytes(b"half of it")
    (base / "closed").mkdir(0)
    print("there", flush=True)
    sys.stdin.read()
"""
HUGE = 1 << 60


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_while_writing(target: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITES_AND_WAITS, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGKILL)


def test_what_a_killed_process_left_is_gone_after_the_next_to_the_same_target(tmp_path: Path) -> None:
    killed_while_writing(tmp_path / "model")
    killed_while_writing(tmp_path / "other")
    assert len(names(tmp_path)) == 2
    store = MemoryBlockstore()
    export(store, add_bytes(store, b"whole"), tmp_path / "model")
    left, written = names(tmp_path)
    assert left.startswith(".other.covey-") and written == "model"  # another's target is another's business
    assert (tmp_path / "model").read_bytes() == b"whole"


def test_what_somebody_is_writing_stays_and_who_is_first_has_the_name(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def race() -> None:
        with beside(target) as first:
            first.write_bytes(b"first")
            assert discard_leftovers(target) == 0
            with beside(target) as second:
                second.write_bytes(b"second")
            assert first.read_bytes() == b"first"

    with pytest.raises(TargetExists):
        race()
    assert names(tmp_path) == ["model"] and target.read_bytes() == b"second"


def test_what_only_looks_like_a_leftover_stays(tmp_path: Path) -> None:
    (tmp_path / ".model.covey-notes").mkdir()
    (tmp_path / ".model.covey-notes" / "mine").write_text("mine")
    (tmp_path / ".model.covey-file").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".model.covey-link").symlink_to("elsewhere")
    (tmp_path / ".model.backup").mkdir()
    before = names(tmp_path)
    assert discard_leftovers(tmp_path / "model") == 0
    assert names(tmp_path) == before


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    with beside(tmp_path / ("\U0001f600" * 63)) as base:
        base.write_bytes(b"x")
    assert names(tmp_path) == ["\U0001f600" * 63]


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = MemoryBlockstore()
    part = add_bytes(store, b"part")
    file = MadeBlock.of(
        dag_pb.encode(PbNode(encode(UnixFsData(Kind.FILE, block_sizes=(HUGE,))), (PbLink(part, "", HUGE),))), DAG_PB
    )
    folder = MadeBlock.of(
        dag_pb.encode(PbNode(encode(UnixFsData(Kind.DIRECTORY)), (PbLink(part, "a", HUGE), PbLink(part, "b", 1)))),
        DAG_PB,
    )
    store.put_many([file, folder])
    for root, n_bytes in ((file.cid, HUGE), (folder.cid, HUGE + 1)):
        with pytest.raises(DiskFull, match=f"bytes free, and {n_bytes:,} are to be written"):
            export(store, root, tmp_path / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("n_files", [3, 9000])
def test_the_stated_size_is_that_of_the_files_and_little_more(tmp_path: Path, n_files: int) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    for number in range(n_files):
        os.link(_file_of(tmp_path, number % 100), source / "below" / f"{number:0>40}")
    store = MemoryBlockstore()
    n_bytes, stated = n_files * 1000, stated_bytes(store, add_path(store, source))
    assert n_bytes <= stated < n_bytes + n_files * 200 + 1000
    assert stated_bytes(store, add_bytes(store, bytes(3 << 20))) == 3 << 20


def _file_of(folder: Path, number: int) -> Path:
    path = folder / f"file {number}"
    if not path.exists():
        path.write_bytes(bytes([number]) * 1000)
    return path
