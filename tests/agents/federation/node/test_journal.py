"""What stands in a journal survives whatever cuts it short, and nothing else is read out of it."""

import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agents.federation.events.book import Book
from agents.federation.node.journal import Journal
from protocols.entry import Entry, make_entry
from protocols.rounds import Join, Leave, content_of, scope_of
from storage.errors import StoreFull, UnknownVersion
from tests.agents.federation.village import identity, make_plan


@pytest.fixture
def entries() -> list[Entry]:
    """A plan, and what two members said under it."""
    _, plan = make_plan(2)
    scope = scope_of(Book(plan).experiment)
    said = [
        make_entry(identity(who), event.kind, scope, sequence, [], content_of(event))
        for sequence, event in enumerate((Join(), Leave(), Join()))
        for who in range(2)
    ]
    return [plan, *said]


def written(path: Path, entries: list[Entry]) -> bytes:
    journal = Journal.create(path, entries[0])
    journal.append(entries[1:])
    journal.close()
    return path.read_bytes()


def test_what_was_written_is_there_in_its_order(tmp_path: Path, entries: list[Entry]) -> None:
    written(tmp_path / "deep" / "journal", entries)
    journal, found = Journal.open(tmp_path / "deep" / "journal")
    journal.close()
    assert [entry.cid for entry in found] == [entry.cid for entry in entries]


def test_every_prefix_of_the_file_loads_as_the_records_that_are_whole_in_it_and_can_be_gone_on_with(
    tmp_path: Path, entries: list[Entry]
) -> None:
    whole = written(tmp_path / "whole", entries)
    ends = [8 + sum(8 + len(one.block) + len(one.body_block) for one in entries[:n]) for n in range(len(entries) + 1)]
    path = tmp_path / "cut"
    for length in range(8, len(whole) + 1, 3):
        path.write_bytes(whole[:length])
        journal, found = Journal.open(path)
        n_whole = max(n for n, end in enumerate(ends) if end <= length)
        assert [one.cid for one in found] == [one.cid for one in entries[:n_whole]]
        journal.append(entries[n_whole:])
        journal.close()
        assert path.read_bytes() == whole


def test_a_record_that_the_disk_changed_is_passed_over_and_those_behind_it_stay(
    tmp_path: Path, entries: list[Entry]
) -> None:
    path = tmp_path / "journal"
    data = bytearray(written(path, entries))
    data[8 + 8 + len(entries[0].block) + len(entries[0].body_block) + 20] ^= 1
    path.write_bytes(data)
    journal, found = Journal.open(path)
    journal.close()
    assert [entry.cid for entry in found] == [entry.cid for entry in [entries[0], *entries[2:]]]
    assert path.read_bytes() == data


def test_a_journal_of_another_version_is_refused_and_left_alone(tmp_path: Path, entries: list[Entry]) -> None:
    path = tmp_path / "journal"
    data = bytearray(written(path, entries))
    data[7] = 2
    path.write_bytes(data)
    with pytest.raises(UnknownVersion):
        Journal.open(path)
    assert path.read_bytes() == data


def test_a_journal_whose_creation_was_cut_short_holds_nothing(tmp_path: Path, entries: list[Entry]) -> None:
    path = tmp_path / "journal"
    whole = written(path, entries[:1])
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        journal, found = Journal.open(path)
        journal.close()
        assert found == []


@pytest.mark.parametrize("tail", [b"\xff" * 8, b"\xff" * 600, b"\0", b"\x10\0\0\0\x10\0\0\0"])
def test_garbage_behind_the_last_record_is_cut_off(tmp_path: Path, entries: list[Entry], tail: bytes) -> None:
    path = tmp_path / "journal"
    whole = written(path, entries)
    path.write_bytes(whole + tail)
    journal, found = Journal.open(path)
    journal.close()
    assert len(found) == len(entries) and path.read_bytes() == whole
    assert path.with_suffix(".cut").read_bytes() == tail


def test_what_stands_behind_a_damaged_length_is_put_aside_whole(tmp_path: Path, entries: list[Entry]) -> None:
    path = tmp_path / "journal"
    whole = written(path, entries)
    at = 8 + 8 + len(entries[0].block) + len(entries[0].body_block)
    cut = b""
    for damaged in (b"\xff", b"\x01"):  # a length over the limit, one beyond the file's end
        path.write_bytes(whole[:at] + damaged + whole[at + 1 :])
        journal, found = Journal.open(path)
        journal.append(entries[1:])
        journal.close()
        cut += damaged + whole[at + 1 :]
        assert [one.cid for one in found] == [entries[0].cid] and path.read_bytes() == whole
        assert path.with_suffix(".cut").read_bytes() == cut, "what was acknowledged is not thrown away"


def test_a_journal_that_cannot_be_begun_leaves_no_file(tmp_path: Path, entries: list[Entry]) -> None:
    class Full(Journal):
        def append(self, entries: Iterable[Entry]) -> None:
            raise StoreFull("no room")

    before = sorted(os.listdir("/dev/fd"))
    with pytest.raises(StoreFull):
        Full.create(tmp_path / "journal", entries[0])
    assert sorted(os.listdir("/dev/fd")) == before
    Journal.create(tmp_path / "journal", entries[0]).close()


def test_journals_are_found_by_the_entries_that_they_are_named_by(tmp_path: Path, entries: list[Entry]) -> None:
    cid = entries[0].body_cid
    other = entries[1].body_cid
    assert list(Journal.load(tmp_path / "nowhere")) == []
    whole = written(tmp_path / str(cid), entries)
    (tmp_path / f"{cid}.json").write_text("{}")
    (tmp_path / "backup").write_bytes(whole)
    (tmp_path / str(other)).write_bytes(whole)
    (tmp_path / str(entries[2].body_cid)).write_bytes(b"another version")
    (tmp_path / str(entries[3].body_cid)).mkdir()
    ((found, journal, read),) = Journal.load(tmp_path)
    journal.close()
    assert (found, [one.cid for one in read]) == (cid, [one.cid for one in entries])
    assert (tmp_path / f"{other}.damaged").read_bytes() == whole and not (tmp_path / str(other)).exists()


def test_a_journal_that_is_there_is_not_begun_again(tmp_path: Path, entries: list[Entry]) -> None:
    written(tmp_path / "journal", entries)
    with pytest.raises(FileExistsError):
        Journal.create(tmp_path / "journal", entries[0])


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_for_which_there_is_no_room_leaves_no_tail_and_is_gone_on_with_later(
    tmp_path: Path, entries: list[Entry]
) -> None:
    path = tmp_path / "journal"
    before = written(path, entries[:2])
    journal, _ = Journal.open(path)
    with room_for(len(before) + 50), pytest.raises(StoreFull):
        journal.append(entries[2:])
    assert path.read_bytes() == before
    journal.append(entries[2:])
    journal.close()
    assert path.read_bytes() == written(tmp_path / "whole", entries)


def test_a_torn_tail_that_cannot_be_put_aside_for_now_loses_no_history(tmp_path: Path, entries: list[Entry]) -> None:
    path = tmp_path / str(entries[0].body_cid)
    whole = written(path, entries)
    path.write_bytes(whole + bytes(100))
    with room_for(50), pytest.raises(StoreFull):
        list(Journal.load(tmp_path))
    [(_, journal, found)] = Journal.load(tmp_path)
    journal.close()
    assert [one.cid for one in found] == [one.cid for one in entries] and path.read_bytes() == whole


def test_what_is_written_behind_its_end_goes_into_no_other_file(tmp_path: Path, entries: list[Entry]) -> None:
    """The system gives the number of a file that was closed to the next one that is opened."""
    journal = Journal.create(tmp_path / "journal", entries[0])
    journal.close()
    with (tmp_path / "other").open("w+b", buffering=0) as other:
        other.write(bytes(4096))
        with pytest.raises(OSError, match="Bad file descriptor"):
            journal.append(entries[1:])
        assert (tmp_path / "other").read_bytes() == bytes(4096)
