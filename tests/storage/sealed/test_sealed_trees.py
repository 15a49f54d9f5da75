"""What is sealed comes out again as it was: files, folders, ranges, in constant memory."""

import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import BrokenSeal, InvalidName, NotAFile, NotFound, StorageError, TargetExists, TooLarge
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from storage.sealed import export_range, export_sealed, open_sealed, reseal, seal_path, table, with_recipients
from storage.sealed import sealer as sealing
from storage.sealed.sealer import padded_bytes
from storage.sealed.stream import CHUNK_BYTES
from storage.sealed.table import Entry
from tests.storage.losing import lose

ALICE = Identity(b"a" * 32)


def listed(folder):
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None,
        )
        for path in sorted(folder.rglob("*"))
    }


def test_a_folder_comes_out_as_it_went_in(bench, tree, tmp_path):
    folder = tree()
    opened = bench.opened(bench.seal(folder).cid)
    progress = []
    export_sealed(opened, "", tmp_path / "out", progress.append)
    assert listed(tmp_path / "out") == listed(folder)
    assert sum(progress) == sum(entry.n_bytes for entry in opened.entries())
    assert (tmp_path / "out").stat().st_mode == folder.stat().st_mode


def test_a_part_of_a_folder_comes_out_alone(bench, tree, tmp_path):
    opened = bench.opened(bench.seal(tree()).cid)
    export_sealed(opened, "sub/deep", tmp_path / "deep")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["nothing"]
    export_sealed(opened, "sub/run", tmp_path / "run")
    assert (tmp_path / "run").read_bytes() == b"#!/bin/sh\n" and (tmp_path / "run").stat().st_mode & 0o777 == 0o755
    with pytest.raises(InvalidName):
        export_sealed(opened, "sub", tmp_path / "sub")  # its symlink leads out of this part
    assert not (tmp_path / "sub").exists() and not list(tmp_path.glob(".sub*"))


def test_nothing_is_overwritten_and_nothing_half_written(bench, tmp_path):
    made = bench.seal(os.urandom(3 * CHUNK_BYTES))
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(TargetExists):
        export_sealed(bench.opened(made.cid), "", tmp_path / "there")
    broken = bench.with_chunks(made, [*bench.chunks(made)[:1], bytes(100), *bench.chunks(made)[2:]])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StorageError):
        export_sealed(broken, "", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there").read_bytes() == b"mine"


def test_a_range_is_written_to_a_file(bench, tmp_path):
    content = os.urandom(3 * CHUNK_BYTES + 5)
    opened = bench.opened(bench.seal(content).cid)
    export_range(opened, opened.find(), tmp_path / "out", CHUNK_BYTES - 1, CHUNK_BYTES + 2)
    assert (tmp_path / "out").read_bytes() == content[CHUNK_BYTES - 1 :][: CHUNK_BYTES + 2]


CONTENT = bytes(range(251)) * 900  # 3.4 chunks
STORE = MemoryBlockstore()


@pytest.fixture(scope="module")
def sealed_content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranges")
    (folder / "first").write_bytes(b"x" * 1000)
    (folder / "second").write_bytes(CONTENT)
    return open_sealed(STORE, seal_path(STORE, folder, [ALICE.peer_id]).cid, ALICE)


@settings(max_examples=200)
@given(offset=st.integers(0, len(CONTENT) + 10), length=st.none() | st.integers(0, len(CONTENT) + 10))
def test_a_range_equals_the_slice(sealed_content, offset, length):
    entry = sealed_content.find("second")
    end = None if length is None else offset + length
    assert b"".join(sealed_content.read(entry, offset, length)) == CONTENT[offset:end]


def test_a_range_reads_the_blocks_that_hold_it_and_no_others(bench):
    content = os.urandom(4 << 20)
    opened = bench.opened(bench.seal(content).cid)
    read = []
    get = bench.store.get
    bench.store.get = lambda cid: read.append(cid) or get(cid)
    assert b"".join(opened.read(Entry("file", (), 0, len(content)), 2_000_000, 10)) == content[2_000_000:2_000_010]
    leaves = {cid for cid in read if cid != opened.root.content.data}
    assert len(leaves) == 1


def test_a_missing_block_is_named_as_such(bench):
    made = bench.seal(os.urandom(3 << 20))
    opened = bench.opened(made.cid)
    leaves = [cid for cid in bench.store.cids() if (bench.store.size(cid) or 0) > 100_000]
    lose(bench.store, leaves)
    with pytest.raises(NotFound):
        list(opened.plaintext())


@pytest.mark.parametrize("n_bytes", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 983_279, 983_281])
@pytest.mark.parametrize("is_padded", [True, False])
def test_files_of_every_length_come_back(bench, n_bytes, is_padded):
    content = os.urandom(n_bytes)
    assert bench.read(bench.seal(content, is_padded=is_padded).cid) == content


@given(st.integers(1, 1 << 45))
def test_padding_adds_little_and_leaves_few_lengths(n_bytes):
    padded = padded_bytes(n_bytes)
    assert n_bytes <= padded <= n_bytes * 1.12 + 1
    assert padded_bytes(padded) == padded


def test_padding_hides_the_difference_of_a_few_bytes(bench):
    lengths = {bench.seal(bytes(n)).root.content.n_bytes for n in range(100_000, 100_040)}
    assert len(lengths) == 1
    exact = {bench.seal(bytes(n), is_padded=False).root.content.n_bytes for n in range(100_000, 100_040)}
    assert len(exact) == 40


def test_nothing_of_names_or_contents_stands_in_the_blocks(bench, tree):
    bench.seal(tree())
    everything = b"".join(bench.store.get(cid) for cid in bench.store.cids())
    # Long words only: three letters stand by chance in one of sixty ciphertexts of this length.
    assert not any(word in everything for word in (b"nothing", b"not utf-8", b"#!/bin/sh", b"sorted between"))


def test_the_same_file_is_never_the_same_ciphertext(bench):
    one, other = bench.seal(b"same"), bench.seal(b"same")
    assert one.root.content.data != other.root.content.data
    assert one.root.content.prefix != other.root.content.prefix


def test_a_new_root_stands_over_the_same_ciphertext(bench):
    made = bench.seal(b"secret", bench.alice.peer_id)
    with pytest.raises(StorageError):
        bench.read(made.cid, bench.bob)
    added = with_recipients(bench.store, bench.opened(made.cid), [bench.alice.peer_id, bench.bob.peer_id])
    assert added.root.content == made.root.content
    assert bench.read(added.cid, bench.bob) == b"secret" == bench.read(added.cid)
    revoked = with_recipients(bench.store, bench.opened(added.cid), [bench.alice.peer_id])
    with pytest.raises(StorageError):
        bench.read(revoked.cid, bench.bob)
    assert bench.read(added.cid, bench.bob) == b"secret"  # what revocation cannot protect


def test_a_rekeyed_root_has_another_key_and_ciphertext(bench):
    told = []
    made = bench.seal(b"secret", bench.alice.peer_id, bench.bob.peer_id)
    again = reseal(bench.store, bench.opened(made.cid), [bench.alice.peer_id], on_progress=told.append)
    assert bench.read(again.cid) == b"secret"
    assert again.key != made.key and again.root.content.data != made.root.content.data
    assert sum(told) == bench.opened(made.cid).n_bytes
    assert repr(again) == f"Made({again.cid})"


class Endless:
    """A store that forgets what it is given."""

    def __init__(self):
        self.n_bytes = 0

    def put_many(self, blocks, floor=None):
        for block in blocks:
            self.n_bytes += len(block.data)
        return 1


@pytest.mark.parametrize("n_mib", [8, 64])
def test_sealing_needs_the_same_memory_for_any_length(tmp_path, n_mib):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(n_mib << 20)
    store = Endless()
    tracemalloc.start()
    seal_path(store, tmp_path / "large", [ALICE.peer_id])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.n_bytes > n_mib << 20
    assert peak < 8 << 20


def test_reading_needs_little_memory(bench):
    made = bench.seal(bytes(32 << 20))
    tracemalloc.start()
    n_bytes = sum(len(piece) for piece in bench.opened(made.cid).plaintext())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_bytes >= 32 << 20 and peak < 8 << 20


def test_what_cannot_be_written_out_again_is_not_sealed(bench, tmp_path):
    folder = tmp_path / "with a symlink"
    folder.mkdir()
    (folder / "out").symlink_to("/etc/passwd")
    with pytest.raises(InvalidName, match="nothing is sealed: 'out'"):
        bench.seal(folder)
    (folder / "out").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(StorageError, match="is a pipe, not a file"):
        bench.seal(folder)


def test_too_much_is_refused(bench, tree, monkeypatch):
    folder = tree()
    monkeypatch.setattr(table, "MAX_DEPTH", 1)
    with pytest.raises(TooLarge, match="folders deep"):
        bench.seal(folder)
    monkeypatch.setattr(table, "MAX_DEPTH", 9)
    monkeypatch.setattr(table, "MAX_ENTRIES", 4)
    with pytest.raises(TooLarge, match="more than 4 files"):
        bench.seal(folder)
    monkeypatch.setattr(table, "MAX_ENTRY_BYTES", 10)
    with pytest.raises(TooLarge, match="limit is 10"):
        bench.seal(folder)


def test_what_is_not_there_is_said_so(bench, tree):
    opened = bench.opened(bench.seal(tree()).cid)
    with pytest.raises(NotFound, match="there is no 'sub/none'"):
        opened.find("sub/none")
    with pytest.raises(NotAFile, match="is a folder"):
        opened.read(opened.find("sub"))
    with pytest.raises(NotAFile, match=r"^the sealed content is a folder, not a file"):
        opened.read(opened.find(""))
    assert list(opened.plaintext(1 << 40)) == []


# --- tables that lie


def table_of(*entries: Entry, end: int = 100) -> list[Entry]:
    data = b"".join(table.encode(entry) for entry in entries)
    whole = list(table.decode([data], end))
    assert list(table.decode([data[at : at + 1] for at in range(len(data))], end)) == whole
    for cut in range(1, len(data)):
        try:
            list(table.decode([data[:cut]], end))
        except BrokenSeal:
            continue
        assert data[:cut] in [b"".join(map(table.encode, whole[:n])) for n in range(len(whole))]
    return whole


TOP = Entry("folder", (), 0o755)
GOOD = (TOP, Entry("file", (b"a",), 0o644, 7), Entry("folder", (b"b",), 0o700), Entry("file", (b"b", b"c"), 0, 93))


def test_a_table_is_read_in_any_pieces():
    assert [entry.start for entry in table_of(*GOOD)] == [0, 0, 7, 7]


@pytest.mark.parametrize(
    "entries",
    [
        (),
        (Entry("file", (b"a",), 0, 1),),
        (TOP, TOP),
        (TOP, GOOD[1], GOOD[1]),
        (TOP, GOOD[2], GOOD[1]),
        (TOP, Entry("file", (b"x", b"y"), 0, 1)),
        (Entry("file", (), 0, 1), Entry("file", (b"y",), 0, 1)),
        (TOP, Entry("file", (b"a",), 0, 1), Entry("file", (b"a", b"b"), 0, 1)),
        (TOP, Entry("file", (b"a",), 0, 101)),
        (TOP, Entry("file", (b"..",), 0, 1)),
        (TOP, Entry("file", (b"a/b",), 0, 1)),
        (TOP, Entry("file", (b"",), 0, 1)),
        (TOP, Entry("file", (b"n" * 256,), 0, 1)),
        (TOP, Entry("file", (b"a",), 0, -1)),
    ],
)
def test_a_table_that_lies_is_refused(entries):
    with pytest.raises(BrokenSeal):
        table_of(*entries)


@pytest.mark.parametrize(
    "value",
    [
        7,
        {"kind": "device", "path": [], "mode": 0},
        {"kind": "folder", "path": [], "mode": 0o1777},
        {"kind": "folder", "path": [], "mode": 0, "n_bytes": 1},
        {"kind": "file", "path": [], "mode": 0},
        {"kind": "symlink", "path": []},
        {"kind": "symlink", "path": [], "target": b"/etc/passwd"},
        {"kind": "folder", "path": [], "mode": 0, "owner": "root"},
        {"kind": "folder", "path": [b"d"] * 201, "mode": 0},
    ],
)
def test_an_entry_that_is_none_is_refused(value):
    from storage.codecs import dag_cbor

    data = dag_cbor.encode(value)
    with pytest.raises(BrokenSeal):
        list(table.decode([len(data).to_bytes(4) + data], 100))


def test_a_table_has_bounds(monkeypatch):
    with pytest.raises(BrokenSeal, match="an entry of 4294967295 bytes"):
        list(table.decode([b"\xff" * 8], 100))
    monkeypatch.setattr(table, "MAX_ENTRIES", 2)
    with pytest.raises(TooLarge, match="more than 2 files"):
        table_of(*GOOD)


def test_a_stream_has_bounds(monkeypatch):
    from storage.sealed import stream

    monkeypatch.setattr(stream, "MAX_CHUNKS", 2)
    assert len(list(stream.seal_chunks(bytes(32), bytes(19), [bytes(2 * CHUNK_BYTES)]))) == 2
    with pytest.raises(TooLarge):
        list(stream.seal_chunks(bytes(32), bytes(19), [bytes(2 * CHUNK_BYTES + 1)]))
    assert sealing.CHUNKS_A_LEAF * stream.SEALED_CHUNK_BYTES <= 1 << 20
