"""What stands in a journal survives whatever cuts it short, and nothing else is read out of it."""

import os
from pathlib import Path

import pytest

from agents.federation.book import Book
from agents.federation.journal import Journal, read
from protocols.entry import Entry, make_entry
from protocols.rounds import Join, Leave, content_of, scope_of
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
    ends = [sum(8 + len(one.block) + len(one.body_block) for one in entries[:n]) for n in range(len(entries) + 1)]
    path = tmp_path / "cut"
    for length in range(0, len(whole) + 1, 3):
        path.write_bytes(whole[:length])
        journal, found = Journal.open(path)
        n_whole = max(n for n, end in enumerate(ends) if end <= length)
        assert [one.cid for one in found] == [one.cid for one in entries[:n_whole]]
        journal.append(entries[n_whole:])
        journal.close()
        assert path.read_bytes() == whole


def test_a_record_that_its_author_did_not_sign_ends_the_reading(tmp_path: Path, entries: list[Entry]) -> None:
    data = bytearray(written(tmp_path / "journal", entries))
    at = 8 + len(entries[0].block) + len(entries[0].body_block)
    data[at + 20] ^= 1
    assert [entry.cid for entry in read(bytes(data))] == [entries[0].cid]


@pytest.mark.parametrize("tail", [b"\xff" * 8, b"\xff" * 600, bytes(8), b"\0", os.urandom(0) + b"\x10\0\0\0\x10\0\0\0"])
def test_garbage_behind_the_last_record_is_cut_off(tmp_path: Path, entries: list[Entry], tail: bytes) -> None:
    path = tmp_path / "journal"
    whole = written(path, entries)
    path.write_bytes(whole + tail)
    journal, found = Journal.open(path)
    journal.close()
    assert len(found) == len(entries) and path.read_bytes() == whole


def test_a_journal_that_is_there_is_not_begun_again(tmp_path: Path, entries: list[Entry]) -> None:
    written(tmp_path / "journal", entries)
    with pytest.raises(FileExistsError):
        Journal.create(tmp_path / "journal", entries[0])
