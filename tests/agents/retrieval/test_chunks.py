from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.retrieval.chunks import chunk


def test_a_short_text_is_one_chunk_without_blank_ends():
    (only,) = chunk("\n\nNoah built\nan ark.\n\n")
    assert (only.first_line, only.last_line, only.text) == (3, 4, "Noah built\nan ark.")


def test_a_chunk_ends_at_a_paragraph_where_it_can():
    text = "a" * 30 + "\n" + "b" * 30 + "\n\n" + "c" * 30 + "\n" + "d" * 30
    first, second = chunk(text, chunk_chars=100, overlap_chars=0)
    assert first.text.endswith("b" * 30) and (first.first_line, first.last_line) == (1, 2)
    assert second.text.startswith("c") and (second.first_line, second.last_line) == (4, 5)


def test_the_next_chunk_begins_with_the_end_of_the_one_before():
    text = "\n".join(f"line {n:03d}" for n in range(100))
    chunks = chunk(text, chunk_chars=100, overlap_chars=20)
    for one, other in pairwise(chunks):
        assert other.first_line == one.last_line - 1
        assert other.text.startswith("\n".join(one.text.split("\n")[-2:]))


def test_a_line_longer_than_a_chunk_is_cut_and_keeps_its_number():
    chunks = chunk("x\n" + "y" * 250, chunk_chars=100, overlap_chars=10)
    assert [(c.first_line, c.last_line) for c in chunks][-1] == (2, 2)
    assert "".join(c.text for c in chunks).count("y") == 250


@pytest.mark.parametrize("text", ["", "\n", "  \n\t\n  "])
def test_blank_text_has_no_chunks(text):
    assert chunk(text) == []


LINES = st.text(st.sampled_from("ab \t\n\n.é漢"), max_size=400)


@given(text=LINES, chunk_chars=st.integers(1, 60), data=st.data())
def test_every_line_is_in_a_chunk_and_every_chunk_is_where_it_says(text, chunk_chars, data):
    overlap_chars = data.draw(st.integers(0, chunk_chars - 1))
    chunks = chunk(text, chunk_chars=chunk_chars, overlap_chars=overlap_chars)
    lines = [line.rstrip() for line in text.split("\n")]
    covered = set()
    for one in chunks:
        assert 0 < len(one.text) <= chunk_chars
        assert one.text.strip()
        whole = "\n".join(lines[one.first_line - 1 : one.last_line])
        assert one.text in whole
        covered |= set(range(one.first_line, one.last_line + 1))
    assert {n for n, line in enumerate(lines, 1) if line} <= covered
    assert [c.first_line for c in chunks] == sorted(c.first_line for c in chunks)
    # nothing is lost inside long lines either
    for n, line in enumerate(lines, 1):
        held = "".join(c.text for c in chunks if c.first_line <= n <= c.last_line)
        for char in set(line) - {" ", "\t"}:
            assert held.count(char) >= line.count(char)
