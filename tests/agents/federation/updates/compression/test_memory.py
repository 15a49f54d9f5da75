"""What a codec leaves out waits on the disk and comes in the end; a round that is done again submits the same bytes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.federation.updates.compression.memory import Memory
from agents.federation.updates.compression.registry import codec_of
from agents.federation.updates.tensors import Layout

LAYOUT = Layout.of({"weight": (40, 10)})
TOP = {"codec": "top_k", "part": 0.1}


def update(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=LAYOUT.n_params).astype(np.float32)


@pytest.mark.parametrize("settings_", [TOP, {"codec": "int8"}, {"codec": "powersgd"}], ids=lambda one: one["codec"])
def test_what_is_left_out_is_added_to_the_next_update(tmp_path: Path, settings_: dict[str, object]) -> None:
    codec, memory = codec_of(settings_), Memory(tmp_path / "memories")
    sent = np.zeros(LAYOUT.n_params, np.float64)
    meant = np.zeros(LAYOUT.n_params, np.float64)
    for number in range(1, 6):
        sent += codec.decode(memory.encode(number, codec, update(number), LAYOUT), LAYOUT)
        meant += update(number)
    left = memory.before(6, LAYOUT.n_params)
    assert left.any() and np.allclose(sent + left, meant, atol=1e-5)


def test_a_round_that_is_done_again_gives_the_same_bytes_after_a_restart_too(tmp_path: Path) -> None:
    codec, folder = codec_of(TOP), tmp_path / "memories"
    Memory(folder).encode(1, codec, update(1), LAYOUT)
    first = Memory(folder).encode(2, codec, update(2), LAYOUT)
    assert Memory(folder).encode(2, codec, update(2), LAYOUT) == first
    assert first != codec.encode(update(2), LAYOUT)


def test_two_rounds_are_kept_and_a_round_that_was_left_out_changes_nothing(tmp_path: Path) -> None:
    codec, memory = codec_of(TOP), Memory(tmp_path)
    for number in (1, 2, 5):
        memory.encode(number, codec, update(number), LAYOUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002.memory", "00000005.memory"]
    assert (memory.before(5, LAYOUT.n_params) == memory.before(3, LAYOUT.n_params)).all()


@pytest.mark.parametrize("data", [b"", b"1234", b"\xff" * 1600])
def test_a_damaged_memory_is_forgotten_and_nothing_else(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "00000001.memory").write_bytes(data)
    assert not Memory(tmp_path).before(2, LAYOUT.n_params).any()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_repeating_any_round_before_the_next_one_changes_no_byte(
    tmp_path_factory: pytest.TempPathFactory, n_repeats: list[int]
) -> None:
    codec = codec_of(TOP)
    once, often = (Memory(tmp_path_factory.mktemp("memory")) for _ in range(2))
    for number, n in enumerate(n_repeats, start=1):
        data = once.encode(number, codec, update(number), LAYOUT)
        assert all(often.encode(number, codec, update(number), LAYOUT) == data for _ in range(n + 1))
