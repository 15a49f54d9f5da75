"""Which passages fit some words best: an index of words over paragraphs, made anew in memory for each question."""

from collections.abc import Iterable
from contextlib import closing
from typing import Final, NamedTuple

from agents.retrieval.words import Words

MAX_PASSAGE_CHARS: Final = 1200


class Passage(NamedTuple):
    """Some lines of something."""

    where: str
    line: int
    text: str


def passages_of(where: str, text: str) -> list[Passage]:
    """The paragraphs of a text, short ones with the next, long ones cut."""
    found: list[Passage] = []
    lines: list[str] = []
    first = n_chars = 0

    def close() -> None:
        nonlocal n_chars
        if joined := "\n".join(lines).strip():
            found.append(Passage(where, first, joined))
        lines.clear()
        n_chars = 0

    for number, line in enumerate(text.splitlines(), 1):
        for piece in [line[at : at + MAX_PASSAGE_CHARS] for at in range(0, len(line), MAX_PASSAGE_CHARS)] or [""]:
            is_blank = not piece.strip()
            if (is_blank and n_chars > MAX_PASSAGE_CHARS // 4) or n_chars + len(piece) > MAX_PASSAGE_CHARS:
                close()
            if not lines:
                if is_blank:
                    continue
                first = number
            lines.append(piece)
            n_chars += len(piece) + 1
    close()
    return found


def best(question: str, passages: Iterable[Passage], n_most: int) -> list[tuple[float, Passage]]:
    """The passages that fit, the best first, with their scores; of equals the one that stands first."""
    known = {f"{place:012}": passage for place, passage in enumerate(passages)}
    with closing(Words.open()) as words:
        words.put({name: passage.text for name, passage in known.items()})
        return [(score, known[name]) for score, name in words.search(question, n_most)]
