"""From records to tokens: for each token, whether it is learned or only read."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from agents.engine.messages import Turn
from agents.engine.worker.generation.prompt import render
from agents.engine.worker.models import LoadedModel
from agents.errors import BadData
from agents.training.records import Continuation, Dialogue, Preference, Record
from agents.training.split import key_of

IGNORED: Final = -100
"""The label of a token that is read and not learned."""
MAX_TOKENS: Final = 1 << 28
PIECE_CHARS: Final = 1 << 20
MIN_BLOCK_TOKENS: Final = 2  # of one token nothing can be learned: there is none that follows


class Tokens(NamedTuple):
    """Token ids, and for each the label to learn: itself, or `IGNORED`."""

    ids: "array[int]"
    labels: "array[int]"

    @property
    def n_learned(self) -> int:
        """How many tokens are learned; the first has none before it that could tell it."""
        return len(self.labels) - self.labels.count(IGNORED) - (bool(self.labels) and self.labels[0] != IGNORED)


class Example(NamedTuple):
    """What one row, or a part of a packed one, is made of. `worse`: of a preference, the answer to be unlearned."""

    tokens: Tokens
    key: bytes
    stratum: str | None = None
    worse: Tokens | None = None

    @property
    def n_tokens(self) -> int:
        """How many tokens it takes to read it."""
        return len(self.tokens.ids) + (len(self.worse.ids) if self.worse else 0)


class Made(NamedTuple):
    """The examples, and what became of those that did not fit."""

    examples: list[Example]
    n_cut: int
    n_dropped: int


def make_examples(loaded: LoadedModel, records: Sequence[Record], n_context: int) -> Made:
    """Tokenize. What is longer than `n_context` is cut there, a document goes on in the next example.

    Raises: BadData where nothing is left, or too much.
    """
    examples: list[Example] = []
    n_cut = n_dropped = n_tokens = 0
    for record in records:
        whole = False
        for example, is_cut in _of(loaded, record, n_context):
            whole = True
            n_cut += is_cut
            n_tokens += example.n_tokens
            if n_tokens > MAX_TOKENS:
                raise BadData(f"the data is over {MAX_TOKENS} tokens: train on a part of it")
            examples.append(example)
        n_dropped += not whole
    if not examples:
        raise BadData(f"no example has an answer within {n_context} tokens: raise --context-tokens")
    return Made(examples, n_cut, n_dropped)


def _of(loaded: LoadedModel, record: Record, n_context: int) -> Iterator[tuple[Example, bool]]:
    body = record.body
    match body:
        case Dialogue():
            yield from _one(_dialogue(loaded, body.turns), record, n_context)
        case Continuation(prompt=""):
            yield from _document(loaded, record, body.answer, n_context)
        case Continuation():
            yield from _one(_continuation(loaded, body.prompt, body.answer), record, n_context)
        case Preference():
            both = [_answered(loaded, body.prompt, answer) for answer in (body.chosen, body.rejected)]
            better, worse = (_cut(tokens, n_context) for tokens in both)
            if better.n_learned and worse.n_learned:
                is_cut = any(len(tokens.ids) > n_context for tokens in both)
                yield Example(better, key_of(body), record.stratum, worse), is_cut


def _one(tokens: Tokens, record: Record, n_context: int) -> Iterator[tuple[Example, bool]]:
    cut = _cut(tokens, n_context)
    if cut.n_learned:
        yield Example(cut, key_of(record.body), record.stratum), len(tokens.ids) > n_context


def _cut(tokens: Tokens, n: int) -> Tokens:
    return Tokens(tokens.ids[:n], tokens.labels[:n])


def _document(loaded: LoadedModel, record: Record, text: str, n_context: int) -> Iterator[tuple[Example, bool]]:
    """The document in blocks; each is known by its tokens, so that what is said twice is on one side of the split."""
    ids = array("i")
    for piece in _pieces(text):
        ids.extend(loaded.encode(piece))
    ids.extend(_end(loaded))
    for at in range(0, len(ids), n_context):
        block = ids[at : at + n_context]
        if len(block) >= MIN_BLOCK_TOKENS:
            yield Example(Tokens(block, block), hashlib.sha256(block.tobytes()).digest(), record.stratum), False


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of about a million characters, cut after a line where there is one."""
    at = 0
    while at < len(text):
        end = text.rfind("\n", at, at + PIECE_CHARS) + 1 if len(text) - at > PIECE_CHARS else len(text)
        end = end if end > at else at + PIECE_CHARS
        yield text[at:end]
        at = end


def _answered(loaded: LoadedModel, prompt: str | tuple[Turn, ...], answer: str) -> Tokens:
    """A prompt with one of its answers; the answer is learned."""
    if isinstance(prompt, str):
        return _continuation(loaded, prompt, answer)
    tokens = _dialogue(loaded, (*prompt, Turn("assistant", answer)), only_last=True)
    if not tokens.n_learned:
        raise BadData("the model's chat template does not show the answer after its prompt: give prompts as text")
    return tokens


def _continuation(loaded: LoadedModel, prompt: str, answer: str) -> Tokens:
    asked = array("i", loaded.encode(prompt))
    answered = array("i", loaded.encode(answer)) + _end(loaded)
    return Tokens(asked + answered, array("i", [IGNORED]) * len(asked) + answered)


def _end(loaded: LoadedModel) -> "array[int]":
    end = loaded.tokenizer.eos_token_id
    return array("i", [] if end is None else [end])


def _dialogue(loaded: LoadedModel, turns: Sequence[Turn], *, only_last: bool = False) -> Tokens:
    """The chat as the model reads it; the words of the assistant, and what ends them, are learned."""
    text = render(loaded, turns, is_open=False)
    spans = [
        span
        for n, turn in enumerate(turns)
        if turn.role == "assistant" and not (only_last and n < len(turns) - 1)
        if (span := _span(loaded, turns, n, text)) is not None
    ]
    found = loaded.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = array("i", found["input_ids"])
    labels = array("i", [IGNORED]) * len(ids)
    at = 0
    for place, (begin, _) in enumerate(found["offset_mapping"]):
        while at < len(spans) and begin >= spans[at][1]:
            at += 1
        if at < len(spans) and begin >= spans[at][0]:
            labels[place] = ids[place]
    return Tokens(ids, labels)


def _span(loaded: LoadedModel, turns: Sequence[Turn], n: int, text: str) -> tuple[int, int] | None:
    """Where the answer of turn `n` stands in the chat; None where the template writes earlier turns otherwise later."""
    asked = render(loaded, turns[:n], is_open=True)
    answered = render(loaded, turns[: n + 1], is_open=False)
    if text.startswith(answered) and answered.startswith(asked):
        return len(asked), len(answered)
    return None
