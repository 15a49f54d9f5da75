"""Questions and replies: what is accepted, in which order, and that nothing else is; records, and what they prove."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.ask import record as records
from protocols.ask import wire
from protocols.ask.record import Record, answer_block, check_answer, open_record, question_block, sign_record
from protocols.ask.wire import Accepted, Answered, Ask, Dialogue, Options, Piece, Refused, SignedRecord, Turn, Waiting
from protocols.entry import make_entry
from protocols.errors import Forged, Malformed, ProtocolError, TooBig
from protocols.message import decode, encode
from storage.cid import DAG_CBOR, Cid
from storage.keys import Identity

ANN, BOB, EVE = (Identity(letter * 32) for letter in (b"a", b"b", b"e"))
BASE, ADAPTER = Cid.of(b"base", DAG_CBOR), Cid.of(b"adapter", DAG_CBOR)
TURNS = (Turn(role="system", content="be brief"), Turn(role="user", content="why?"))
ASK = Ask(turns=TURNS, base=BASE, adapter="poet@2", options=Options(stop=("\n",), temperature=0.5, seed=7))
ACCEPTED = Accepted(model="tiny", base=BASE, adapter=None, n_ahead=1)
ANSWERED = Answered(reason="stop", n_prompt_tokens=3, n_tokens=2)
PIECE, WAITING = Piece(text="so"), Waiting(n_ahead=0)
REFUSED = Refused(code="busy", text="later", retry_s=2.5)


def framed(message) -> bytes:
    return encode(message, wire.MAX_REPLY_BYTES)


def test_a_question_comes_back_from_its_bytes_as_it_was():
    assert decode(encode(ASK, wire.MAX_ASK_BYTES), Ask, wire.MAX_ASK_BYTES) == ASK


@pytest.mark.parametrize(
    "change",
    [
        {"turns": ()},
        {"turns": TURNS * 300},
        {"adapter": ""},
        {"adapter": "x" * 257},
        {"deadline_s": 0.0},
        {"deadline_s": 1e9},
        {"options": Options(max_tokens=0)},
        {"options": Options(max_tokens=10**6)},
        {"options": Options(temperature=11.0)},
        {"options": Options(top_p=0.0)},
        {"options": Options(stop=("",))},
        {"options": Options(stop=("x",) * 17)},
        {"options": Options(seed=-1)},
        {"turns": (Turn(role="tool", content="x"),)},
    ],
)
def test_a_question_outside_of_the_limits_is_refused(change):
    data = encode(msgspec.structs.replace(ASK, **change), 1 << 30)
    with pytest.raises(ProtocolError):
        decode(data, Ask, wire.MAX_ASK_BYTES)


def test_a_question_of_a_million_tokens_is_refused_unread():
    data = encode(msgspec.structs.replace(ASK, turns=(Turn(role="user", content="word " * 10**6),)), 1 << 30)
    with pytest.raises(TooBig):
        decode(data, Ask, wire.MAX_ASK_BYTES)


@pytest.mark.parametrize(
    "replies",
    [
        [ACCEPTED, ANSWERED],
        [WAITING, ACCEPTED, WAITING, PIECE, WAITING, PIECE, ANSWERED],
        [REFUSED],
        [ACCEPTED, PIECE, REFUSED],
    ],
)
def test_these_dialogues_are_whole(replies):
    dialogue = Dialogue()
    assert [dialogue.heard(framed(reply)) for reply in replies] == replies
    assert dialogue.is_over


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        ([PIECE], "before the question was accepted"),
        ([ANSWERED], "before the question was accepted"),
        ([ACCEPTED, ACCEPTED], "accepted twice"),
        ([ACCEPTED, ANSWERED, PIECE], "behind the end"),
        ([REFUSED, WAITING], "behind the end"),
        ([ASK], "not a message"),
    ],
)
def test_a_reply_out_of_turn_is_refused(replies, said):
    dialogue = Dialogue()
    for reply in replies[:-1]:
        dialogue.heard(framed(reply))
    with pytest.raises(Malformed, match=said):
        dialogue.heard(framed(replies[-1]))


def test_an_answer_without_end_is_refused():
    dialogue = Dialogue(max_answer_bytes=10)
    dialogue.heard(framed(ACCEPTED))
    dialogue.heard(framed(Piece(text="é" * 5)))
    with pytest.raises(TooBig):
        dialogue.heard(framed(Piece(text="x")))


def test_replies_without_end_are_refused(monkeypatch):
    monkeypatch.setattr(wire, "MAX_REPLIES", 3)
    dialogue = Dialogue()
    for _ in range(3):
        dialogue.heard(framed(WAITING))
    with pytest.raises(TooBig):
        dialogue.heard(framed(WAITING))


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_raise_an_error_of_the_protocol(data):
    for read in (Dialogue().heard, lambda raw: decode(raw, Ask, wire.MAX_ASK_BYTES)):
        try:
            read(data)
        except ProtocolError:
            continue


@given(st.text(max_size=40_000))
def test_pieces_fit_and_make_the_whole(text):
    cut = wire.pieces(text)
    assert "".join(cut) == text
    assert all(len(framed(Piece(text=piece))) <= wire.MAX_PIECE_BYTES + 64 for piece in cut)


def record_of(answer: str = "because", **changes) -> Record:
    fields = {
        "question": question_block(TURNS, BASE, ADAPTER, ASK.options).cid,
        "answer": answer_block(answer).cid,
        "model": "tiny",
        "base": BASE,
        "adapter": ADAPTER,
        "options": ASK.options,
        "reason": "stop",
        "n_prompt_tokens": 3,
        "n_tokens": 2,
        "created_unix_s": 5,
    }
    return Record(**fields | changes)


def test_a_record_proves_who_answered_whom_what_to_which_question():
    entry = sign_record(ANN, record_of(), 1, BOB.peer_id)
    signed = open_record(entry.block, entry.body_block)
    assert signed.record == record_of()
    check_answer(signed, ANN.peer_id, BOB.peer_id, TURNS, "because")


@pytest.mark.parametrize(
    ("signer", "asker", "turns", "answer"),
    [
        (EVE, BOB, TURNS, "because"),
        (ANN, EVE, TURNS, "because"),
        (ANN, None, TURNS, "because"),
        (ANN, BOB, TURNS[1:], "because"),
        (ANN, BOB, TURNS, "because!"),
    ],
)
def test_a_record_of_anything_else_is_forged(signer, asker, turns, answer):
    entry = sign_record(signer, record_of(), 1, asker.peer_id if asker else None)
    with pytest.raises(Forged):
        check_answer(open_record(entry.block, entry.body_block), ANN.peer_id, BOB.peer_id, turns, answer)


def test_a_record_whose_bytes_were_changed_is_refused():
    entry = sign_record(ANN, record_of(), 1, BOB.peer_id)
    for place in range(0, len(entry.body_block), 7):
        changed = bytearray(entry.body_block)
        changed[place] ^= 1
        with pytest.raises(ProtocolError):
            open_record(entry.block, bytes(changed))


def test_entries_that_are_no_records_are_refused():
    for kind, scope, content in [
        ("adapter", "x", {}),
        (records.KIND, "x", {}),
        (records.KIND, "elsewhere", {name: getattr(record_of(), name) for name in Record.__struct_fields__}
         | {"options": msgspec.to_builtins(ASK.options) | {"stop": ["\n"]}}),
    ]:  # fmt: skip
        entry = make_entry(ANN, kind, scope, 1, [], content)
        with pytest.raises(Malformed):
            open_record(entry.block, entry.body_block)


def test_the_same_question_has_one_cid_and_reads_back():
    block = question_block(TURNS, BASE, None, msgspec.structs.replace(ASK.options, presence_penalty=-0.0))
    assert block.cid == question_block(TURNS, BASE, None, ASK.options).cid
    assert records.read_question(block.data) == (TURNS, None)
    for data in (b"", b"\x00", answer_block("x").data):
        with pytest.raises(Malformed):
            records.read_question(data)


def test_a_record_fits_a_reply():
    entry = sign_record(ANN, record_of(options=Options(json_schema="x" * wire.MAX_SCHEMA_CHARS)), 1, BOB.peer_id)
    signed = SignedRecord(entry=entry.block, body=entry.body_block)
    framed(msgspec.structs.replace(ANSWERED, record=signed))
