"""Askers and answerers that keep none of the rules: each is one clear error, and others are answered."""

import msgspec
import pytest
import trio

from agents.ask.errors import (
    AnsweredWrongly,
    BrokeOff,
    NoRecord,
)
from agents.ask.remote import describe
from agents.engine.messages import Token
from protocols.ask import shell, wire
from protocols.ask.record import Record, answer_block, question_block, sign_record
from protocols.ask.wire import Accepted, Answered, Piece, SignedRecord, Waiting
from protocols.framing import frame, read_frame
from protocols.message import decode, encode
from protocols.net import PeerInfo
from simulations.world import make_node
from tests.agents.ask.nodes import BASE, QUESTION, TERMS, SlowEngine, answered, text_of


def liar(node, *replies: bytes, hangs: bool = False):
    """Have a node answer whatever it is asked with these bytes."""

    async def handle(stream):
        await read_frame(stream, wire.MAX_ASK_BYTES)
        for reply in replies:
            await stream.write(reply)
        if hangs:
            await trio.sleep_forever()

    node.network.serve(wire.PROTOCOL, handle)


def framed(message) -> bytes:
    return frame(encode(message, wire.MAX_REPLY_BYTES))


ACCEPTED = Accepted(model="tiny", base=BASE, adapter=None, n_ahead=0)
ANSWERED = Answered(reason="stop", n_prompt_tokens=1, n_tokens=1)


@pytest.mark.parametrize(
    ("replies", "hangs", "error"),
    [
        ([], False, BrokeOff),
        ([], True, BrokeOff),
        ([framed(ACCEPTED)], True, BrokeOff),
        ([framed(ACCEPTED), framed(Piece(text="so"))], True, BrokeOff),
        ([framed(ACCEPTED), framed(Piece(text="so"))], False, AnsweredWrongly),
        ([framed(ACCEPTED), framed(Piece(text="so"))[:-1]], False, BrokeOff),
        ([framed(Piece(text="so"))], False, AnsweredWrongly),
        ([framed(ACCEPTED), framed(ACCEPTED)], False, AnsweredWrongly),
        ([framed(ACCEPTED), *[framed(Piece(text="x" * 30_000))] * 40], False, AnsweredWrongly),
        ([b"\xff" * 20], False, AnsweredWrongly),
        ([b"\x00"], False, AnsweredWrongly),
        ([frame(b"hello")], False, AnsweredWrongly),
        ([framed(msgspec.structs.replace(ACCEPTED, adapter=BASE))], False, AnsweredWrongly),
        ([framed(Waiting(n_ahead=1))], True, BrokeOff),
    ],
)
async def test_whatever_an_answerer_says_or_does_not_say_is_one_clear_error(
    sim_world, tmp_path, autojump_clock, replies, hangs, error
):
    eve, bob = (make_node(sim_world, name, tmp_path) for name in ("eve", "bob"))
    liar(eve, *replies, hangs=hangs)
    with trio.fail_after(200), pytest.raises(error) as caught:
        await answered(bob, PeerInfo.parse(eve.network.addresses()[0]))
    assert "\n" not in str(caught.value) and str(eve.peer) in str(caught.value)


@pytest.mark.parametrize("lie", ["none", "other answer", "other signer", "garbage"])
async def test_a_record_that_does_not_fit_its_answer_is_not_kept(sim_world, tmp_path, autojump_clock, lie):
    eve, bob = (make_node(sim_world, name, tmp_path) for name in ("eve", "bob"))
    request = wire.Turn(role="user", content="why?")
    options = wire.Options(max_tokens=8)
    record = Record(
        question=question_block([request], BASE, None, options).cid,
        answer=answer_block("so" if lie == "other signer" else "not so").cid,
        model="tiny",
        base=BASE,
        adapter=None,
        options=options,
        reason="stop",
        n_prompt_tokens=1,
        n_tokens=1,
        created_unix_s=1,
    )
    signer = bob.ports.identity if lie == "other signer" else eve.ports.identity
    entry = sign_record(signer, record, 1, bob.peer)
    signed = SignedRecord(entry=entry.block, body=b"garbage" if lie == "garbage" else entry.body_block)
    last = msgspec.structs.replace(ANSWERED, record=None if lie == "none" else signed)
    liar(eve, framed(ACCEPTED), framed(Piece(text="so")), framed(last))

    async def keep(signed, turns, answer):
        raise AssertionError("kept")

    with pytest.raises(NoRecord):
        await answered(bob, PeerInfo.parse(eve.network.addresses()[0]), keep=keep)


@pytest.mark.parametrize(
    "said",
    [b"", b"\x00", b"\x05hello", b"\xff" * 20, frame(b"\xa0"), frame(bytes(1 << 19)), framed(ACCEPTED), b"\x81"],
)
async def test_whatever_an_asker_says_the_others_are_answered(meeting, autojump_clock, said):
    ann, bob, info, _ = await meeting()
    stream = await bob.network.open_stream(ann.peer, [wire.PROTOCOL])
    await stream.write(said)
    await trio.sleep(shell.QUESTION_LIMIT_S + 1)
    await stream.aclose()
    assert text_of(await answered(bob, info))


async def test_who_floods_is_cut_off_and_may_come_again(meeting, autojump_clock):
    _, bob, info, _ = await meeting()
    told = []
    for _ in range(80):
        try:
            await describe(bob.network, info)
            told.append(True)
        except BrokeOff:
            told.append(False)
    assert told.count(True) < 80 and told[:60] == [True] * 60
    await trio.sleep(60)
    assert text_of(await answered(bob, info))


async def test_an_asker_that_goes_on_behind_its_question_is_cut_off(meeting, autojump_clock):
    ann, bob, info, engine = await meeting(SlowEngine(n_words=float("inf")))
    stream = await bob.network.open_stream(ann.peer, [wire.PROTOCOL])
    await stream.write(frame(encode(QUESTION, wire.MAX_ASK_BYTES)))
    first = decode(await read_frame(stream, wire.MAX_REPLY_BYTES), Accepted, wire.MAX_REPLY_BYTES)
    assert first.model == "tiny"
    await trio.sleep(2.5)
    await stream.write(b"more")
    await trio.sleep(1)
    assert engine.n_taken_back == 1
    engine.n_words = 1
    assert text_of(await answered(bob, info))


async def test_an_asker_that_reads_nothing_holds_no_place_for_long(meeting, autojump_clock):
    class Floods(SlowEngine):
        async def _replies(self, request):
            while True:
                yield Token(id=0, text="x" * 30_000)

    ann, bob, _, engine = await meeting(Floods(), TERMS._replace(timeout_s=1000.0))
    stream = await bob.network.open_stream(ann.peer, [wire.PROTOCOL])
    question = msgspec.structs.replace(QUESTION, deadline_s=1000.0)
    await stream.write(frame(encode(question, wire.MAX_ASK_BYTES)))
    await trio.sleep(shell.WRITE_LIMIT_S + 5)
    assert engine.n_taken_back == 1
