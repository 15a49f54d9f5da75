"""Cut a text into overlapping chunks of whole lines, at paragraphs where it can."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import msgspec

CHUNK_CHARS: Final = 800
OVERLAP_CHARS: Final = 150


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a text: the lines `first_line` to `last_line`, counted from 1; of a very long line, a part."""

    first_line: int
    last_line: int
    text: str


def chunk(text: str, *, chunk_chars: int = CHUNK_CHARS, overlap_chars: int = OVERLAP_CHARS) -> list[Chunk]:
    """Cut `text` into chunks of at most `chunk_chars`.

    Each line that is not blank is in a chunk. A chunk ends at the last blank line of its second half, if there is
    one, and the next begins with up to `overlap_chars` of whole lines from its end: a statement cut in two is whole
    in one of them. A line longer than a chunk is cut in pieces.
    """
    assert 0 <= overlap_chars < chunk_chars
    pieces = list(_pieces(text, chunk_chars))
    chunks: list[Chunk] = []
    start = 0
    while start < len(pieces):
        end = _end(pieces, start, chunk_chars)
        made = _join(pieces[start:end])
        if made:
            chunks.append(made)
        start = end if end == len(pieces) else _overlap_start(pieces, start, end, overlap_chars)
    return chunks


def _pieces(text: str, limit: int) -> Iterator[tuple[int, str]]:
    """The lines with their numbers; a line longer than `limit` comes in pieces with one number."""
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.rstrip()
        for at in range(0, max(1, len(stripped)), limit):
            yield number, stripped[at : at + limit]


def _end(pieces: list[tuple[int, str]], start: int, limit: int) -> int:
    """Where the chunk that begins at `start` ends: full, and if possible behind a blank line."""
    size = 0
    end = start
    while end < len(pieces) and (end == start or size + 1 + len(pieces[end][1]) <= limit):
        size += len(pieces[end][1]) + (end > start)
        end += 1
    if end == len(pieces):
        return end
    first = max(start + 1, start + (end - start) // 2)
    for at in range(end - 1, first - 1, -1):
        if not pieces[at][1]:
            return at + 1
    return end


def _overlap_start(pieces: list[tuple[int, str]], start: int, end: int, overlap: int) -> int:
    """Where the next chunk begins: before `end` by at most `overlap` characters, and always behind `start`."""
    size = 0
    at = end
    while at - 1 > start and size + 1 + len(pieces[at - 1][1]) <= overlap:
        at -= 1
        size += 1 + len(pieces[at][1])
    return at


def _join(pieces: list[tuple[int, str]]) -> Chunk | None:
    """The chunk of these pieces, without blank lines at its ends; None if all are blank."""
    filled = [at for at, (_, line) in enumerate(pieces) if line.strip()]
    if not filled:
        return None
    pieces = pieces[filled[0] : filled[-1] + 1]
    parts = [pieces[0][1]]
    for (before, _), (number, line) in pairwise(pieces):
        parts.append(("" if number == before else "\n") + line)
    return Chunk(first_line=pieces[0][0], last_line=pieces[-1][0], text="".join(parts))
