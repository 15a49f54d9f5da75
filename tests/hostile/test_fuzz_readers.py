"""A few thousand damaged inputs to each reader of foreign bytes; `python -m tests.campaigns.fuzz` tries a million."""

import resource
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns import fuzz
from tests.campaigns.fuzz import State, attack, campaign, run
from tests.campaigns.fuzz_reader import Reader
from tests.campaigns.fuzz_readers import READERS

N_INPUTS = 2000


@pytest.mark.parametrize("reader", READERS, ids=[reader.name for reader in READERS])
def test_damaged_inputs_are_read_or_refused_with_the_readers_own_errors(reader: Reader) -> None:
    for valid in reader.corpus:
        reader.read(valid)
    counts = attack(reader, N_INPUTS, seed=1)
    assert counts["refused"] + counts["accepted"] == N_INPUTS


def test_another_error_than_the_readers_own_is_reported_with_its_input() -> None:
    def read(data: bytes) -> object:
        raise IndexError(len(data))

    with pytest.raises(AssertionError, match="IndexError"):
        attack(Reader("broken", read, (), (b"abc",)), 1, seed=1)


def test_a_reader_is_attacked_in_a_process_of_its_own() -> None:
    assert run("cid", 100, seed=1)["inputs"] == 100


def test_a_reader_that_keeps_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytearray] = []
    monkeypatch.setattr(fuzz, "MAX_GROWTH_BYTES", 8 << 20)
    monkeypatch.setattr(fuzz, "MAX_INPUT_S", 60)
    # What is held already may lie unused: more than was ever resident has to grow it.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    hoarding = Reader("hoarding", lambda data: kept.append(bytearray(b"x") * (most + (64 << 20))), (), (b"abc",))
    with pytest.raises(AssertionError, match="grew by"):
        attack(hoarding, 1, seed=1)


def test_a_campaign_goes_on_behind_the_shards_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []

    def fake(name: str, n_inputs: int, seed: int, shard: int = 0) -> dict[str, Any]:
        ran.append((name, shard))
        if ran == [("cid", 0), ("cid", 1)]:
            raise RuntimeError("cid: it died")
        counts = {"inputs": n_inputs, "refused": 1, "accepted": n_inputs - 1, "seconds": 1.0}
        return {"reader": name, "seed": seed, "shard": shard, "peak_bytes": shard, "grown_bytes": 0} | counts

    monkeypatch.setattr(fuzz, "run", fake)
    state = tmp_path / "state"
    args = (["cid"], fuzz.SHARD_INPUTS * 2 + 5, 1, 1)
    assert "failed" in next(iter(campaign(*args, State(state))))
    [row] = campaign(*args, State(state))
    assert sorted(ran) == [("cid", 0), ("cid", 1), ("cid", 1), ("cid", 2)]
    assert (row["inputs"], row["refused"], row["peak_bytes"]) == (fuzz.SHARD_INPUTS * 2 + 5, 3, 2)
