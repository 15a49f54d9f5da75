"""Which passages fit some words best: BM25 over paragraphs, made anew for each question. Small folders are no work."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

K1: Final = 1.2
B: Final = 0.75
MAX_PASSAGE_CHARS: Final = 1200

_WORD: Final = re.compile(r"[^\W_]+")


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


def words_of(text: str) -> list[str]:
    """Its words, small."""
    return [word.casefold() for word in _WORD.findall(text)]


def best(question: str, passages: Iterable[Passage], n_most: int) -> list[tuple[float, Passage]]:
    """The passages that fit, the best first, with their scores; of equals the one that stands first."""
    counted = [(passage, Counter(words_of(passage.text))) for passage in passages]
    if not counted:
        return []
    lengths = [sum(count.values()) for _, count in counted]
    usual = sum(lengths) / len(counted) or 1.0
    wanted = set(words_of(question))
    n_with = Counter(word for _, count in counted for word in wanted & count.keys())
    weight = {word: math.log(1 + (len(counted) - n + 0.5) / (n + 0.5)) for word, n in n_with.items()}
    scored = []
    for place, ((passage, count), length) in enumerate(zip(counted, lengths, strict=True)):
        score = 0.0
        for word in sorted(wanted & count.keys()):
            often = count[word]
            score += weight[word] * often * (K1 + 1) / (often + K1 * (1 - B + B * length / usual))
        if score > 0:
            scored.append((-score, place, passage))
    return [(-negative, passage) for negative, _, passage in sorted(scored)[:n_most]]
