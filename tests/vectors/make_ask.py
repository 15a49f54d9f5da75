"""Write the vectors of questions, replies and records: `python -m tests.vectors.make_ask`, from the root.

`question` and `reply` are messages without their frame; `record` is an entry and its body block. Each is annotated hex,
and what a reader makes of it: `accepted`, or the code of its refusal.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2

from protocols.ask import wire
from protocols.ask.record import Record, answer_block, question_block, sign_record
from protocols.ask.wire import (
    Accepted,
    Answered,
    Ask,
    Describe,
    Offer,
    OfferedAdapter,
    Options,
    Piece,
    Refused,
    Turn,
    Waiting,
)
from protocols.message import Message, encode
from storage.cid import DAG_CBOR, Cid
from storage.keys import Identity
from tests.vectors.make_signed import annotate

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
BASE, ADAPTER = Cid.of(b"base", DAG_CBOR), Cid.of(b"adapter", DAG_CBOR)
TURNS = (Turn(role="system", content="Be brief."), Turn(role="user", content="What is a list?"))
OPTIONS = Options(max_tokens=64, temperature=0.5, seed=7, stop=("\n\n",))
ANSWER = "A row of things."

Vector = dict[str, Any]


def messages() -> Iterator[tuple[str, str, str, bytes]]:
    """What kind it is, its name, what is expected, its bytes."""
    ask = Ask(turns=TURNS, base=BASE, adapter="poet@2", options=OPTIONS, deadline_s=60.0, wants_record=True)
    good = encode(ask, wire.MAX_ASK_BYTES)
    adapter = OfferedAdapter(name="poet", version=2, manifest=ADAPTER)
    offer = Offer(
        model="tiny", base=BASE, architecture="LlamaForCausalLM", n_params=1000, context_tokens=1024, max_tokens=256,
        adapters=(adapter,),
    )  # fmt: skip
    yield "question", "a question", "accepted", good
    yield "question", "a question with nothing but defaults", "accepted", _bytes(Ask(turns=TURNS))
    yield "question", "what do you answer with?", "accepted", _bytes(Describe())
    for name, reply in [
        ("an offer", offer),
        ("accepted, with an adapter", Accepted(model="tiny", base=BASE, adapter=ADAPTER, n_ahead=2)),
        ("a sign of life", Waiting(n_ahead=1)),
        ("a piece", Piece(text="A row")),
        ("the end", Answered(reason="stop", n_prompt_tokens=12, n_tokens=5)),
        ("a refusal that tells when to come again", Refused(code="quota_spent", text="spent", retry_s=36.5)),
        ("a refusal for good", Refused(code="untrusted", text="no", retry_s=None)),
    ]:
        yield "reply", name, "accepted", _bytes(reply)
    plain = cbor2.loads(good)
    for name, change in [
        ("no turn", {"turns": []}),
        ("a role that is none", {"turns": [{"role": "tool", "content": "x"}]}),
        ("no tokens at all", {"options": plain["options"] | {"max_tokens": 0}}),
        ("more tokens than any answer has", {"options": plain["options"] | {"max_tokens": wire.MAX_TOKENS + 1}}),
        ("a sampling option that is unknown", {"options": plain["options"] | {"mirostat": 2}}),
        ("a whole number for a float", {"deadline_s": 60}),
        ("a deadline that never comes", {"deadline_s": wire.MAX_DEADLINE_S * 2}),
        ("a base that is no CID", {"base": b"base"}),
        ("a field that is unknown", {"priority": 1}),
    ]:
        yield "question", name, "malformed", cbor2.dumps(plain | change, canonical=True)
    del plain["wants_record"]
    yield "question", "a field left out", "malformed", cbor2.dumps(plain, canonical=True)
    yield "question", "a byte behind it", "malformed", good + b"\0"
    yield "question", "an answer in place of a question", "malformed", _bytes(Piece(text="A row"))
    yield "reply", "a question in place of an answer", "malformed", good
    refused = cbor2.loads(_bytes(Refused(code="busy", text="later", retry_s=None)))
    for name, change in [
        ("a code that is no word", {"code": "Come later!"}),
        ("a time that lies behind us", {"retry_s": -1.0}),
        ("a text without end", {"text": "x" * 1025}),
    ]:
        yield "reply", name, "malformed", cbor2.dumps(refused | change, canonical=True)


def records() -> Iterator[Vector]:
    """Records, good and bad."""
    record = Record(
        question=question_block(TURNS, BASE, ADAPTER, OPTIONS).cid,
        answer=answer_block(ANSWER).cid,
        model="tiny",
        base=BASE,
        adapter=ADAPTER,
        options=OPTIONS,
        reason="stop",
        n_prompt_tokens=12,
        n_tokens=5,
        created_unix_s=1_700_000_000,
    )
    entry = sign_record(ALICE, record, 1, BOB.peer_id)
    good = {"kind": "record", "name": "a record", "expect": "accepted", "cid": str(entry.cid)}
    yield good | {
        "question_cid": str(record.question),
        "question": annotate(question_block(TURNS, BASE, ADAPTER, OPTIONS).data),
        "answer_cid": str(record.answer),
        "author": str(ALICE.peer_id),
        "asker": str(BOB.peer_id),
        "bytes": annotate(entry.block),
        "body": annotate(entry.body_block),
    }
    body = bytearray(entry.body_block)
    body[-1] ^= 1
    yield _bad("a byte that was changed", "malformed", entry.block, bytes(body))
    other = sign_record(BOB, record, 1, BOB.peer_id)
    yield _bad("another's body", "malformed", entry.block, other.body_block)


def main() -> None:
    """Write the file beside this one."""
    vectors = [
        {"kind": kind, "name": name, "expect": expect, "bytes": annotate(data)}
        for kind, name, expect, data in messages()
    ]
    document = {"about": "The protocol /covey/ask/1.0.0: see protocols/SPEC.md", "vectors": [*vectors, *records()]}
    path = Path(__file__).parent / "ask.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _bytes(message: Message) -> bytes:
    return encode(message, wire.MAX_REPLY_BYTES)


def _bad(name: str, code: str, block: bytes, body: bytes) -> Vector:
    return {"kind": "record", "name": name, "expect": code, "bytes": annotate(block), "body": annotate(body)}


if __name__ == "__main__":
    main()
