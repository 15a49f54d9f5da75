"""Training data: read plain text or chat JSONL, refuse what is wrong with its line number, cut it into examples."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agents.engine.messages import Turn
from agents.errors import BadData

MAX_DATA_BYTES: Final = 256 << 20
MAX_LINE_CHARS: Final = 1 << 20
IGNORED: Final = -100
"""The label of a token that is read and not learned."""


class Example(NamedTuple):
    """Token ids, and for each the label to learn: itself, or `IGNORED`."""

    ids: list[int]
    labels: list[int]


class Split(NamedTuple):
    """Examples to learn from, and those held out to measure on."""

    train: list[Example]
    held_out: list[Example]


class Chat(msgspec.Struct, frozen=True):
    """One line of a chat JSONL; other keys of the line are its own business."""

    messages: tuple[Turn, ...]


def read_data(path: Path) -> bytes:
    """The file, within its bounds. Raises: BadData."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DATA_BYTES + 1)
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_DATA_BYTES:
        raise BadData(f"{path} is over {MAX_DATA_BYTES} bytes: train on a part of it")
    if not data.strip():
        raise BadData(f"{path} is empty")
    return data


def is_chat(path: Path, data: bytes) -> bool:
    """Is this chat JSONL rather than plain text?"""
    return path.suffix == ".jsonl" or (data.lstrip()[:1] == b"{" and b'"messages"' in data.partition(b"\n")[0])


def parse_text(data: bytes) -> str:
    """The text in `data`. Raises: BadData, with the line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadData(f"line {line}: byte 0x{data[error.start]:02x} is not UTF-8. Save the file as UTF-8.") from None
    nul = text.find("\0")
    if nul >= 0:
        raise BadData(f"line {text.count(chr(10), 0, nul) + 1}: a NUL character. This is not a text file.")
    return text.replace("\r\n", "\n")


def parse_chats(data: bytes) -> list[tuple[Turn, ...]]:
    """The chats in `data`, one a line; blank lines are skipped. Raises: BadData, with the line."""
    chats = []
    for number, line in enumerate(parse_text(data).split("\n"), start=1):
        if line.strip():
            chats.append(_chat(number, line))
    return chats


def _chat(number: int, line: str) -> tuple[Turn, ...]:
    if len(line) > MAX_LINE_CHARS:
        raise BadData(f"line {number}: {len(line)} characters; the limit is {MAX_LINE_CHARS}")
    try:
        turns = msgspec.convert(json.loads(line), Chat).messages
    except json.JSONDecodeError as error:
        raise BadData(f"line {number}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise BadData(
            f'line {number}: {error}. A line is {{"messages": [{{"role": "user", "content": "..."}}, ...]}}.'
        ) from None
    if not any(turn.role == "assistant" and turn.content.strip() for turn in turns):
        raise BadData(f"line {number}: no answer of the assistant to learn from")
    return turns


def text_examples(ids: Sequence[int], n_context: int) -> list[Example]:
    """Cut a text's tokens into blocks of `n_context`; the rest at the end is left out."""
    blocks = [list(ids[at : at + n_context]) for at in range(0, len(ids) - n_context + 1, n_context)]
    return [Example(block, block) for block in blocks]


def chat_example(
    turns: Sequence[Turn], tokens_of: Callable[[Sequence[Turn], bool], list[int]], n_context: int
) -> Example | None:
    """The chat as one example that teaches the assistant's words alone; None where none of them fits.

    `tokens_of(turns, is_open)`: the chat up to there as tokens, with or without the opening of the next answer.
    """
    ids: list[int] = []
    labels: list[int] = []
    for n, turn in enumerate(turns):
        if turn.role == "assistant":
            asked = tokens_of(turns[:n], True)
            answered = tokens_of(turns[: n + 1], False)
            labels += [IGNORED] * (len(asked) - len(labels))
            labels += answered[len(labels) :]
            ids = answered
    ids, labels = ids[:n_context], labels[:n_context]
    return Example(ids, labels) if any(label != IGNORED for label in labels) else None


def split(examples: Sequence[Example], held_out_frac: float) -> Split:
    """Hold out every n-th example, so that all of the data is represented. Raises: BadData when there are too few."""
    if len(examples) < 2:
        raise BadData(
            f"the data makes {len(examples)} examples, at least 2 are needed: give more, or lower --context-tokens"
        )
    every = max(2, round(1 / held_out_frac))
    held_out = list(examples[every - 1 :: every]) or [examples[-1]]
    kept = [example for at, example in enumerate(examples) if at % every != every - 1]
    return Split(kept if len(kept) < len(examples) else list(examples[:-1]), held_out)
