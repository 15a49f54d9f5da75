"""The vectors of the protocol, read as a stranger would."""

import json
from pathlib import Path
from typing import Any

import pytest

from protocols.ask import wire
from protocols.ask.record import open_record
from protocols.errors import Remote
from protocols.message import decode_form
from storage.cid import DAG_CBOR, Cid

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "ask.json").read_text())["vectors"]


def read(annotated: list[str]) -> bytes:
    return b"".join(bytes.fromhex(line.partition("#")[0]) for line in annotated)


def taken(vector: dict[str, Any]) -> Any:
    data = read(vector["bytes"])
    if vector["kind"] == "question":
        return decode_form(data, wire.Question, wire.MAX_ASK_BYTES)
    if vector["kind"] == "reply":
        return decode_form(data, wire.Reply | wire.Offer, wire.MAX_REPLY_BYTES)
    return open_record(data, read(vector["body"]))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_each_is_taken_as_its_vector_says(vector: dict[str, Any]) -> None:
    if vector["expect"] == "accepted":
        taken(vector)
    else:
        with pytest.raises(Remote) as refusal:
            taken(vector)
        assert refusal.value.code == vector["expect"]


def test_the_record_names_question_answer_author_and_asker() -> None:
    (vector,) = (one for one in VECTORS if one["kind"] == "record" and one["expect"] == "accepted")
    signed = taken(vector)
    assert str(signed.entry.cid) == vector["cid"]
    assert (str(signed.entry.author), str(signed.entry.recipient)) == (vector["author"], vector["asker"])
    assert str(Cid.of(read(vector["question"]), DAG_CBOR)) == vector["question_cid"] == str(signed.record.question)
    assert vector["answer_cid"] == str(signed.record.answer)
