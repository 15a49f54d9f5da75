"""Signed records of answers on this node: make them, keep them, read them, and compare them with a second answer."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from agents.adapters.ports import Ports
from protocols.ask.record import (
    KIND,
    Record,
    SignedAnswer,
    answer_block,
    open_record,
    question_block,
    read_question,
    sign_record,
)
from protocols.ask.wire import Options, Turn
from protocols.entry import external_aad, read_entry
from storage.blockstore import Block
from storage.cid import Cid
from storage.errors import NotFound
from storage.keys import PeerId
from storage.pins import PinKind, PinState

PIN: Final = "answer"
_COUNTER: Final = external_aad(KIND, "all")  # one for all: a counter for each question would be a row for each


class Said(NamedTuple):
    """An answer as it was given: what a record says of it beside its texts."""

    model: str
    base: Cid
    adapter: Cid | None
    options: Options
    reason: str
    n_prompt_tokens: int
    n_tokens: int


class Kept(NamedTuple):
    """A record with the texts that it is about; None where that block is not here."""

    signed: SignedAnswer
    turns: tuple[Turn, ...] | None
    answer: str | None


def store_record(
    ports: Ports, said: Said, turns: Sequence[Turn], answer: str, asker: PeerId | None, *, is_kept: bool
) -> SignedAnswer:
    """Sign the record of an answer and store it with its texts.

    Without `is_kept` it goes when room is needed: what a peer asks for takes no room for good.
    Raises: TooBig, StorageError.
    """
    question = question_block(turns, said.base, said.adapter, said.options)
    text = answer_block(answer)
    record = Record(
        question=question.cid,
        answer=text.cid,
        model=said.model[:128],
        base=said.base,
        adapter=said.adapter,
        options=said.options,
        reason="length" if said.reason == "length" else "stop",
        n_prompt_tokens=said.n_prompt_tokens,
        n_tokens=said.n_tokens,
        created_unix_s=int(ports.unix_s()),
    )
    entry = sign_record(ports.identity, record, ports.catalog.sequences.next(_COUNTER, ports.unix_s()), asker)
    signed = SignedAnswer(entry=entry, record=record)
    if is_kept:
        keep_record(ports, signed, turns, answer)
    else:
        ports.store.put_many([question, text, *entry.blocks])
    return signed


def keep_record(ports: Ports, signed: SignedAnswer, turns: Sequence[Turn], answer: str) -> None:
    """Store a record with its texts, and hold them. Raises: StorageError."""
    record = signed.record
    question = question_block(turns, record.base, record.adapter, record.options)
    blocks: list[Block] = [question, answer_block(answer), *signed.entry.blocks]
    with ports.store.lease():
        ports.store.put_many(blocks)
        for block in blocks:
            ports.pins.add(block.cid, f"{PIN}-{signed.entry.cid}", PinKind.DIRECT, PinState.COMPLETE)


def read_record(ports: Ports, cid: Cid) -> Kept:
    """The record whose entry block `cid` names, its signature checked. Raises: NotFound, Malformed, Forged, TooBig."""
    block = ports.store.get(cid)
    body, _ = read_entry(block)
    signed = open_record(block, ports.store.get(body))
    return Kept(signed, _turns(ports, signed.record.question), _text(ports, signed.record.answer))


def _turns(ports: Ports, question: Cid) -> tuple[Turn, ...] | None:
    try:
        return read_question(ports.store.get(question))[0]
    except NotFound:
        return None


def _text(ports: Ports, answer: Cid) -> str | None:
    try:
        return ports.store.get(answer).decode(errors="replace")
    except NotFound:
        return None
