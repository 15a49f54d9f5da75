"""A few thousand damaged inputs to each reader of foreign bytes; `python -m tests.campaigns.fuzz` tries a million."""

import pytest

from tests.campaigns.fuzz import attack, run
from tests.campaigns.fuzz_readers import READERS, Reader

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
