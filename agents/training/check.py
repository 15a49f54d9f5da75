"""Look through training data before anything is trained: what is in it, what is wrong, and in which lines. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Final

import msgspec

from agents.errors import BadData
from agents.training.records import Continuation, Problem, Record, detect, odd_characters, parse, texts_of
from agents.training.settings import Form
from agents.training.split import key_of, split

MAX_LISTED: Final = 20
MAX_STRATA: Final = 20
CHARS_A_TOKEN: Final = 4
"""Of English, by and large: for what is said of lengths where there is no tokenizer at hand."""


class Listed(msgspec.Struct, frozen=True):
    """A line with something to say about it."""

    line: int
    text: str


class Lengths(msgspec.Struct, frozen=True):
    """Of the examples, in characters."""

    least: int
    median: int
    p95: int
    greatest: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a file of training data. Lists are cut short; the counts are not.

    `n_long` examples are over the context, as far as characters tell. `strata`: examples of each group.
    """

    form: Form
    n_bytes: int
    n_examples: int
    n_bad: int
    n_duplicates: int
    n_odd: int
    n_long: int
    n_train: int
    n_held_out: int
    lengths: Lengths | None
    strata: dict[str, int]
    bad: tuple[Listed, ...]
    duplicates: tuple[Listed, ...]
    odd: tuple[Listed, ...]
    long: tuple[Listed, ...]


def read(name: str, data: bytes, form: Form | None, stratify: str) -> tuple[Form, list[Record], list[Problem]]:
    """The data in the form that is named, or in its own. Raises: BadData where it has none."""
    found, is_json = detect(name, data)
    if form is None:
        form = found
    elif form != found and (form != "text" or is_json):
        if form != "text":
            raise BadData(f"{name} looks like {found}, not like {form}")
        is_json = False
    if stratify and not is_json:
        raise BadData("a plain text has no fields to be divided by; give a JSON record a line")
    records, problems = parse(data, form, is_json=is_json, stratify=stratify)
    return form, records, problems


def refuse_bad(name: str, records: Sequence[Record], problems: Sequence[Problem]) -> None:
    """Raises: BadData, naming the file and the first lines that are wrong."""
    if problems:
        first = "; ".join(f"line {problem.line}: {problem.text}" for problem in problems[:3])
        more = f"; and {len(problems) - 3} more lines. See all: covey train --check FILE" if len(problems) > 3 else ""
        raise BadData(f"{name}: {first}{more}")
    if not records:
        raise BadData(f"{name} holds nothing to learn from")


def check(
    name: str,
    data: bytes,
    *,
    form: Form | None = None,
    stratify: str = "",
    held_out_frac: float = 0.1,
    seed: int = 0,
    context_tokens: int = 0,
) -> Report:
    """Look through the data. Raises: BadData where no line tells what it is."""
    form, records, problems = read(name, data, form, stratify)
    keys = [key_of(record.body) for record in records]
    lengths = [sum(map(len, texts_of(record.body))) for record in records]
    is_cut = all(isinstance(record.body, Continuation) and not record.body.prompt for record in records)
    limit = 0 if is_cut else context_tokens * CHARS_A_TOKEN  # documents go on in the next block
    strata = [record.stratum for record in records]
    n_held_out = len(split(keys, held_out_frac, seed, strata).held_out) if len(set(keys)) > 1 else 0
    counts = Counter(stratum for stratum in strata if stratum is not None)
    bad = [Listed(problem.line, problem.text) for problem in problems]
    twice = _duplicates(records, keys)
    odd = _listed(records, odd_characters)
    long = [
        Listed(record.line, f"{n_chars} characters, about {n_chars // CHARS_A_TOKEN} tokens")
        for record, n_chars in zip(records, lengths, strict=True)
        if limit and n_chars > limit
    ]
    return Report(
        form=form,
        n_bytes=len(data),
        n_examples=len(records),
        n_bad=len(bad),
        n_duplicates=len(twice),
        n_odd=len(odd),
        n_long=len(long),
        n_train=len(records) - n_held_out,
        n_held_out=n_held_out,
        lengths=_lengths(lengths),
        strata=dict(counts.most_common(MAX_STRATA)),
        bad=tuple(bad[:MAX_LISTED]),
        duplicates=tuple(twice[:MAX_LISTED]),
        odd=tuple(odd[:MAX_LISTED]),
        long=tuple(long[:MAX_LISTED]),
    )


def _duplicates(records: Sequence[Record], keys: Sequence[bytes]) -> list[Listed]:
    first: dict[bytes, int] = {}
    found = []
    for record, key in zip(records, keys, strict=True):
        if key in first:
            found.append(Listed(record.line, f"repeats line {first[key]}"))
        else:
            first[key] = record.line
    return found


def _listed(records: Iterable[Record], judge: Callable[[Record], str]) -> list[Listed]:
    return [Listed(record.line, text) for record in records if (text := judge(record))]


def _lengths(lengths: Sequence[int]) -> Lengths | None:
    if not lengths:
        return None
    ordered = sorted(lengths)
    return Lengths(ordered[0], int(median(ordered)), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1])
