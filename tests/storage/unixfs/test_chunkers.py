"""Where files are cut: by the byte as a slow loop says, as Kubo's own chunkers cut, however the stream is read."""

import io
import json
import random
import runpy
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InvalidOption
from storage.unixfs import COVEY_WEIGHTS, PROFILES, chunkers, cutting
from storage.unixfs.chunkers import KINDS, buzhash, chunker, fastcdc, rabin

FOLDER = Path(__file__).parents[2] / "vectors"
VECTORS = json.loads((FOLDER / "chunks.json").read_text())
MAKE = runpy.run_path(str(FOLDER / "make_chunks.py"))

IsEnd = Callable[[bytes, int], bool]
"""Does a chunk that holds these bytes, so many of them, end here?"""


def naive(data: bytes, min_bytes: int, max_bytes: int, is_end: IsEnd) -> list[int]:
    """Byte by byte."""
    lengths, begin = [], 0
    while begin < len(data):
        n = min(min_bytes, len(data) - begin)
        while n < min(max_bytes, len(data) - begin) and not is_end(data[begin : begin + n], n):
            n += 1
        lengths.append(n)
        begin += n
    return lengths


def rabin_ends(chunk: bytes, avg_bytes: int) -> bool:
    value = int.from_bytes(chunk[-16:])
    while value.bit_length() > 53:
        value ^= 0x3DF305DFB2A805 << (value.bit_length() - 54)
    return value % (1 << avg_bytes.bit_length() - 1) == 0


def buzhash_ends(chunk: bytes) -> bool:
    state, numbers = 0, buzhash.numbers()
    for byte in chunk[-32:]:
        state = (state << 1 | state >> 31) & 0xFFFFFFFF ^ int(numbers[byte])
    return state & 0x1FFFF == 0


def gear_ends(chunk: bytes, n: int, avg_bytes: int) -> bool:
    state, numbers = 0, fastcdc.numbers()
    for byte in chunk[-32:]:
        state = (state << 1) + int(numbers[byte]) & 0xFFFFFFFF
    n_bits = 32 - (avg_bytes.bit_length() - 1)
    return state < 1 << (n_bits - 2 if n < avg_bytes else n_bits + 2)


def lengths(name: str, data: bytes) -> list[int]:
    return [len(chunk) for chunk in chunker(name)(io.BytesIO(data))]


class Drip(io.RawIOBase):
    """Gives so many bytes at a time, in turn."""

    def __init__(self, data: bytes, steps: list[int]) -> None:
        self._data = io.BytesIO(data)
        self._steps = iter(chain(steps, iter(lambda: 1 << 16, 0)))

    def read(self, n_bytes: int = -1) -> bytes:
        return self._data.read(min(n_bytes, next(self._steps)))


# Bytes of few values make long runs and hashes that come again; the random ones, hashes of every kind.
CONTENTS = st.builds(
    lambda seed, n, values: bytes(random.Random(seed).choices(values, k=n)),
    st.integers(0, 1 << 30),
    st.integers(0, 6000),
    st.sampled_from([bytes(range(256)), b"\0\1", b"\0", b"ab\xff"]),
)


@settings(max_examples=40, deadline=None)
@given(CONTENTS, st.integers(16, 200), st.integers(1, 400), st.integers(1, 900))
def test_rabin_cuts_where_a_loop_over_the_bytes_does(data: bytes, least: int, more: int, most: int) -> None:
    avg = least + more
    expected = naive(data, least, avg + most, lambda chunk, n: rabin_ends(chunk, avg))
    assert lengths(f"rabin-{least}-{avg}-{avg + most}", data) == expected


@settings(max_examples=40, deadline=None)
@given(CONTENTS, st.integers(32, 200), st.integers(1, 400), st.integers(1, 900))
def test_fastcdc_cuts_where_a_loop_over_the_bytes_does(data: bytes, least: int, more: int, most: int) -> None:
    avg = least + more
    expected = naive(data, least, avg + most, lambda chunk, n: gear_ends(chunk, n, avg))
    assert lengths(f"fastcdc-{least}-{avg}-{avg + most}", data) == expected


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 5000))
def test_buzhash_cuts_where_a_loop_over_the_bytes_does(seed: int, more: int) -> None:
    data = random.Random(seed).randbytes((128 << 10) + more)
    expected = naive(data, 128 << 10, 512 << 10, lambda chunk, n: buzhash_ends(chunk))
    assert lengths("buzhash", data) == expected


def test_every_window_of_every_hash_is_the_one_of_a_loop() -> None:
    """Not only those that end a chunk: a wrong bit could hide for long in hashes that are asked for seventeen zeros."""
    data = random.Random(1).randbytes(400)
    view = np.frombuffer(data, np.uint8)
    for module, naive_hash in (
        (buzhash, lambda state, number: (state << 1 | state >> 31) & 0xFFFFFFFF ^ number),
        (fastcdc, lambda state, number: (state << 1) + number & 0xFFFFFFFF),
    ):
        found = cutting.widen(module._pairs().take(cutting.words(view)), 32, module._join)  # type: ignore[attr-defined]
        assert len(found) == (len(data) - 30) // 2
        for at, value in enumerate(found):
            state = 0
            for byte in data[2 * at : 2 * at + 32]:
                state = naive_hash(state, int(module.numbers()[byte]))  # type: ignore[attr-defined,no-untyped-call]
            assert state == value


@pytest.mark.parametrize("n_bits", [3, 16, 17])
def test_a_fingerprint_is_looked_at_to_its_last_bit(n_bits: int) -> None:
    data = random.Random(2).randbytes(1 << 20)
    (at,) = rabin._is_hit(np.frombuffer(data, np.uint8), n_bits).nonzero()
    assert len(at) == pytest.approx((1 << 19) / (1 << n_bits), rel=1)
    assert all(rabin_ends(data[2 * start : 2 * start + 16], 1 << n_bits) for start in at[:500])
    whole = rabin.fingerprints(np.frombuffer(data, np.uint8), np.arange(500))
    for start, value in enumerate(whole):
        remainder = int.from_bytes(data[start : start + 16])
        while remainder.bit_length() > 53:
            remainder ^= 0x3DF305DFB2A805 << (remainder.bit_length() - 54)
        assert remainder == value


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['chunker']}: {vector['case']}")
def test_kubos_chunkers_cut_in_the_same_places(vector: dict[str, Any]) -> None:
    found = lengths(vector["chunker"], MAKE["content"](vector["recipe"]))
    assert MAKE["shown"](found) == vector["lengths"]


NAMES = ("size-1000", "rabin-64-256-1024", "fastcdc-64-256-1024", "buzhash")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(CONTENTS, st.lists(st.integers(1, 3000), max_size=30))
def test_the_chunks_do_not_depend_on_how_the_stream_is_read(name: str, data: bytes, steps: list[int]) -> None:
    found = list(chunker(name)(Drip(data, steps)))
    assert b"".join(found) == data
    assert [len(chunk) for chunk in found] == lengths(name, data)


@pytest.mark.parametrize("name", ["rabin", "buzhash", "fastcdc-32768-131072-524288"])
def test_cuts_are_the_same_across_the_borders_of_buffers_and_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(3).randbytes(3 << 20)
    expected = lengths(name, data)
    monkeypatch.setattr(cutting, "READ_BYTES", 1)
    monkeypatch.setattr(cutting, "PIECE_BYTES", 1001)
    assert lengths(name, data) == expected


def test_a_stream_without_end_is_cut_in_constant_memory() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def read(self, n_bytes: int = -1) -> bytes:
            self.asked += n_bytes
            return bytes(n_bytes)

    for name, max_bytes in (("rabin", 393216), ("buzhash", 512 << 10), ("fastcdc-64-256-1024", 1024)):
        stream = Endless()
        next(chunker(name)(stream))
        assert stream.asked <= max_bytes + cutting.READ_BYTES


@pytest.mark.parametrize("name", ["buzhash", "rabin", "fastcdc-32768-131072-524288"])
def test_an_insertion_changes_the_chunks_around_it_and_no_others(name: str) -> None:
    data = random.Random(4).randbytes(8 << 20)
    edited = data[:2_000_000] + b"a few bytes more" + data[2_000_000:]
    old, new = (set(chunker(name)(io.BytesIO(content))) for content in (data, edited))
    assert len(new - old) <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_how_it_is_used_and_refuses_what_is_not(kind: str) -> None:
    assert chunkers._usage(kind).startswith(kind)
    for name in (f"{kind}-x", f"{kind}-", f"{kind}-1-2-3-4-5", f"{kind}-99999999999", f"{kind}--1", f"{kind}-٣"):
        with pytest.raises(InvalidOption):
            chunker(name)


@pytest.mark.parametrize(
    "name",
    [
        "rabin-40",  # a third of it is less than the window
        "rabin-15-100-200",
        "rabin-100-100-200",
        "rabin-100-200-200",
        "rabin-100-200-1048577",
        "rabin-100-200",
        "rabin-max:100-avg:200-min:300",
        "fastcdc",
        "fastcdc-31-100-200",
        "fastcdc-100-50-200",
        "fastcdc-64-100-2000000",
        "size-1048577",
    ],
)
def test_sizes_that_no_chunker_can_keep_are_refused(name: str) -> None:
    with pytest.raises(InvalidOption):
        chunker(name)


def test_an_unknown_chunker_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidOption, match=r"buzhash, fastcdc-MIN-AVG-MAX, rabin, .* size-BYTES"):
        chunker("casync")


@pytest.mark.parametrize("name", [profile.chunker for profile in PROFILES.values()])
def test_the_chunker_of_every_profile_is_one(name: str) -> None:
    assert list(chunker(name)(io.BytesIO(b"x"))) == [b"x"]


def test_chunks_for_weights_are_neither_tiny_nor_too_large_for_a_block() -> None:
    found = lengths(COVEY_WEIGHTS.chunker, random.Random(6).randbytes(16 << 20))
    assert min(found[:-1]) >= 32768 and max(found) <= 524288
    assert 100_000 < sum(found) / len(found) < 200_000
