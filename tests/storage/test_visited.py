"""A set of visited CIDs: the same as one in memory, however much of it is on the disk."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import visited
from storage.cid import DAG_PB, Cid
from storage.errors import StorageError, StoreFull
from storage.visited import Visited

CIDS = [Cid.of(bytes([n]), codec) for n in range(20) for codec in (0x55, DAG_PB)]


def fill(ours: Visited, cids: list[Cid]) -> None:
    for cid in cids:
        ours.add(cid)


@given(steps=st.lists(st.tuples(st.sampled_from(["add", "add", "add", "has", "clear"]), st.sampled_from(CIDS))))
def test_it_holds_what_a_set_holds(steps: list[tuple[str, Cid]]) -> None:
    truth: set[Cid] = set()
    with pytest.MonkeyPatch.context() as patch, Visited() as ours:
        patch.setattr(visited, "MAX_HELD", 3)
        for step, cid in steps:
            if step == "clear":
                ours.clear()
                truth.clear()
            elif step == "add":
                ours.add(cid)
                truth.add(cid)
            assert (cid in ours, len(ours)) == (cid in truth, len(truth))
        assert all((cid in ours) == (cid in truth) for cid in CIDS)


def test_no_more_than_its_limit_is_in_memory_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visited, "MAX_HELD", 8)
    with Visited(tmp_path) as ours:
        for cid in CIDS:
            ours.add(cid)
            assert len(ours._held) < 8
        assert len(ours) == len(CIDS)
        assert not os.listdir(tmp_path)
    assert not os.listdir(tmp_path)


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visited, "MAX_HELD", 8)
    with Visited(tmp_path) as ours:
        for cid in CIDS[:8]:
            ours.add(cid)
        moved: Any = ours._moved
        moved.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StoreFull, match="no room to note which blocks were visited"):
            fill(ours, [Cid.of(b"more %d" % n) for n in range(2000)])
    with Visited(tmp_path / "none") as ours, pytest.raises(StoreFull):
        fill(ours, CIDS)


def test_what_no_database_can_be_made_of_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visited, "MAX_HELD", 1)
    monkeypatch.setattr(visited, "CACHE_KIB", "no number; nonsense")
    with Visited(tmp_path) as ours, pytest.raises(StorageError):
        fill(ours, CIDS)
    assert not os.listdir(tmp_path)
