"""Who answered what, with which model, signed: an entry of history that stands for one answer.

A record is an entry of kind `answer` whose scope is the text of its question's CID and whose recipient, where there is
one, is the peer that asked. The question is a DAG-CBOR block of its own, the answer a raw one; it links to both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from protocols import envelope
from protocols.ask.wire import Count, Label, Options, Turn
from protocols.content import read_content
from protocols.entry import Entry, make_entry, open_entry
from protocols.errors import Forged, Malformed, TooBig
from storage.blockstore import Block
from storage.cid import DAG_CBOR, RAW, Cid
from storage.codecs import dag_cbor
from storage.errors import TooLarge
from storage.keys import Identity, PeerId

KIND = "answer"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is signed. `base` is the model's fingerprint, `adapter` the manifest of the adapter, or None."""

    format: Literal[1] = 1
    question: Cid
    answer: Cid
    model: Label
    base: Cid
    adapter: Cid | None
    options: Options
    reason: Literal["stop", "length"]
    n_prompt_tokens: Count
    n_tokens: Count
    created_unix_s: Annotated[int, Meta(ge=0, le=envelope.MAX_UNIX_S)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedAnswer:
    """A record whose signature was checked."""

    entry: Entry
    record: Record


def question_block(
    turns: Sequence[Turn], base: Cid, adapter: Cid | None, options: Options, text: str | None = None
) -> Block:
    """A question in its one form; its CID is what caches and records know it by. `text` is gone on from, not a chat."""
    value = {
        "format": 1,
        "turns": [{"role": turn.role, "content": turn.content} for turn in turns],
        "text": text,
        "base": base,
        "adapter": adapter,
        "options": _plain(options),
    }
    data = dag_cbor.encode(value)
    return Block(Cid.of(data, DAG_CBOR), data)


def answer_block(text: str) -> Block:
    """An answer's text."""
    data = text.encode()
    return Block(Cid.of(data, RAW), data)


def sign_record(identity: Identity, record: Record, sequence: int, asker: PeerId | None) -> Entry:
    """Sign what was answered. Raises: Local, Oversize."""
    content = {field: getattr(record, field) for field in Record.__struct_fields__}
    content |= {"options": _plain(record.options)}
    return make_entry(identity, KIND, str(record.question), sequence, [], content, asker)


def open_record(block: bytes, body: bytes) -> SignedAnswer:
    """Check a record's two blocks and read it. Raises: TooBig, Malformed, Forged."""
    entry = open_entry(block, body)
    if entry.kind != KIND:
        raise Malformed(f"an entry of kind {entry.kind!r} is no record of an answer")
    record = read_content(entry.content, Record, "the record of an answer", every_field=False)
    if entry.scope != str(record.question):
        raise Malformed("a record's scope is not its question")
    return SignedAnswer(entry=entry, record=record)


def check_answer(signed: SignedAnswer, answerer: PeerId, asker: PeerId, question: Sequence[Turn], answer: str) -> None:
    """Is it the record of just this answer, by that peer, to this one? Raises: Forged."""
    record = signed.record
    if signed.entry.author != answerer or signed.entry.recipient != asker:
        raise Forged("the record of the answer was signed by another peer, or for another one")
    if question_block(question, record.base, record.adapter, record.options).cid != record.question:
        raise Forged("the record is of another question")
    if answer_block(answer).cid != record.answer:
        raise Forged("the record is of another answer than was given")


def read_question(data: bytes) -> tuple[tuple[Turn, ...], str | None]:
    """The chat, or the text, of a question's block. Raises: Malformed, TooBig."""
    try:
        value = dag_cbor.decode(data)
        turns = msgspec.convert(value["turns"], tuple[Turn, ...])
        return turns, msgspec.convert(value["text"], str | None)
    except TooLarge as error:
        raise TooBig(str(error)) from None
    except (ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise Malformed(f"not the block of a question: {error}") from None


def _plain(options: Options) -> dict[str, Any]:
    """As a DAG-CBOR value, which has no negative zero."""
    plain: dict[str, Any] = msgspec.to_builtins(options)
    return {name: value + 0.0 if isinstance(value, float) else value for name, value in plain.items()} | {
        "stop": list(options.stop)
    }
