"""Members bring each other up to date: what is asked and answered, and that nothing else is."""

import json
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from protocols import rounds_sync as sync
from protocols import telling
from protocols.entry import make_entry
from protocols.errors import Forged, Malformed, ProtocolError, ProtocolRefused, TimedOut, TooBig
from protocols.framing import frame
from protocols.message import encode
from protocols.rounds_sync import Ask, AskMembers, AskPlan, Desk, Known
from protocols.telling import MAX_TOLD_BYTES, Here, Mark, Told, Where
from storage.cid import DAG_CBOR, Cid
from storage.keys import Identity
from tests.protocols.scripted import BOB, ScriptedNetwork, ScriptedStream, framed, told

ANN = Identity(b"a" * 32)
EXPERIMENT = Cid.of(b"plan", DAG_CBOR)
PLAN = make_entry(ANN, "plan", "rounds", 0, [], {})
ENTRIES = [make_entry(ANN, "join", f"rounds/{EXPERIMENT}", number, [], {}) for number in range(3)]
VECTORS = Path(__file__).parents[1] / "vectors" / "rounds_sync.json"


def desk(since, news=trio.sleep_forever, where=tuple):
    return lambda peer, cid: Desk(PLAN, since, news, where) if cid == EXPERIMENT else None


async def asked(*said, known=None, wait_s=0.0, tail=b""):
    signs = []
    stream = ScriptedStream(framed(*said) + tail)
    entries = await sync.ask(
        ScriptedNetwork(stream), BOB.peer_id, EXPERIMENT, known or Known({}), wait_s, lambda: signs.append(1)
    )
    assert stream.is_closed
    return entries, signs


async def answered(question, find_desk):
    stream = ScriptedStream(frame(encode(question, sync.MAX_ASK_BYTES)))
    await sync.answer(stream, find_desk)
    return stream.written


async def test_a_member_is_told_what_it_lacks_and_takes_it_for_what_it_is(autojump_clock):
    heard = []

    def since(known):
        heard.append(known)
        return ENTRIES[known.marks[ANN.peer_id].height :]

    known = Known({ANN.peer_id: Mark(1, sync.digest_of(ENTRIES[0]))}, frozenset({BOB.peer_id}))
    written = await answered(sync.question_of(EXPERIMENT, known, 5.0), desk(since))
    assert written == framed(Here(), told(ENTRIES[1]), told(ENTRIES[2]))
    assert heard[0] == known
    entries, signs = await asked(Here(), told(ENTRIES[1]), told(ENTRIES[2]))
    assert [entry.cid for entry in entries] == [ENTRIES[1].cid, ENTRIES[2].cid] and signs


async def test_where_there_is_nothing_to_tell_the_answer_waits_for_news(autojump_clock):
    there = []

    async def news():
        await trio.sleep(3)
        there.append(ENTRIES[0])

    began_s = trio.current_time()
    assert await answered(Ask(experiment=EXPERIMENT, wait_s=10.0), desk(lambda known: there, news)) == framed(
        Here(), told(ENTRIES[0])
    )
    assert trio.current_time() - began_s == 3


async def test_and_no_longer_than_the_asker_does(autojump_clock):
    began_s = trio.current_time()
    assert await answered(Ask(experiment=EXPERIMENT, wait_s=4.0), desk(lambda known: ())) == framed(Here())
    assert trio.current_time() - began_s == 4


async def test_an_experiment_that_is_not_known_and_one_that_is_not_the_askers_end_alike(autojump_clock):
    for question in (Ask(experiment=Cid.of(b"other"), wait_s=9.0), AskPlan(experiment=Cid.of(b"other"))):
        assert await answered(question, desk(lambda known: ENTRIES)) == b""
    with pytest.raises(ProtocolRefused, match="knows of no such experiment"):
        await asked()


async def test_an_answer_holds_no_more_than_its_limits_say_and_begins_with_the_first(autojump_clock, monkeypatch):
    monkeypatch.setattr(sync, "MAX_ANSWERS", 2)
    assert await answered(Ask(experiment=EXPERIMENT), desk(lambda known: ENTRIES)) == framed(
        Here(), told(ENTRIES[0]), told(ENTRIES[1])
    )
    with pytest.raises(Malformed, match="more than one answer may hold"):
        await asked(Here(), *map(told, ENTRIES))
    monkeypatch.setattr(telling, "TELL_BYTES", 1)
    assert await answered(Ask(experiment=EXPERIMENT), desk(lambda known: ENTRIES)) == framed(Here(), told(ENTRIES[0]))


async def test_an_answer_takes_no_more_than_it_tells_of_what_is_lacking(autojump_clock, monkeypatch):
    taken = []

    def since(known):
        for entry in ENTRIES:
            taken.append(entry)
            yield entry

    size = len(ENTRIES[0].block) + len(ENTRIES[0].body_block)
    monkeypatch.setattr(telling, "TELL_BYTES", size)
    assert await answered(Ask(experiment=EXPERIMENT), desk(since)) == framed(Here(), told(ENTRIES[0]))
    assert taken == [ENTRIES[0], *ENTRIES[:2]]  # one to see whether there is any, then as far as they fit


async def test_a_plan_is_given_by_its_cid_and_no_other_is_taken(autojump_clock):
    written = await answered(AskPlan(experiment=EXPERIMENT), desk(lambda known: ()))
    assert written == framed(Here(), told(PLAN))
    found = await sync.ask_plan(ScriptedNetwork(ScriptedStream(written)), BOB.peer_id, PLAN.body_cid)
    assert found.cid == PLAN.cid
    with pytest.raises(Malformed, match="of another experiment"):
        await sync.ask_plan(ScriptedNetwork(ScriptedStream(written)), BOB.peer_id, EXPERIMENT)
    with pytest.raises(Malformed, match="did not give"):
        await sync.ask_plan(ScriptedNetwork(ScriptedStream(framed(Here()))), BOB.peer_id, EXPERIMENT)


async def test_members_tell_where_others_are(autojump_clock):
    where = Where(peer=ANN.peer_id, addresses=("/ip4/192.0.2.7/tcp/4701",))
    written = await answered(AskMembers(experiment=EXPERIMENT), desk(lambda known: (), where=lambda: [where]))
    assert written == framed(Here(), where)
    assert await sync.ask_members(ScriptedNetwork(ScriptedStream(written)), BOB.peer_id, EXPERIMENT) == [where]


async def test_an_entry_that_its_author_did_not_sign_is_refused(autojump_clock):
    forged = ENTRIES[0].block[:-1] + bytes([ENTRIES[0].block[-1] ^ 1])
    with pytest.raises((Forged, Malformed)):
        await asked(Here(), Told(entry=forged, body=ENTRIES[0].body_block))
    with pytest.raises(Malformed, match="the body is not"):
        await asked(Here(), Told(entry=ENTRIES[0].block, body=ENTRIES[1].body_block))


async def test_an_answer_that_is_cut_off_garbled_or_of_another_kind_is_refused(autojump_clock):
    whole = framed(Here(), told(ENTRIES[0]))
    edges = {0, len(framed(Here())), len(whole)}
    for length in range(len(whole)):
        if length not in edges:
            with pytest.raises(ProtocolError):
                await asked(tail=whole[:length])
    for tail in (b"\0", frame(b"\xff"), frame(bytes(MAX_TOLD_BYTES + 1)), framed(Here())):
        with pytest.raises((Malformed, TooBig)):
            await asked(Here(), tail=tail)
    with pytest.raises(Malformed):
        await asked(told(ENTRIES[0]))


async def test_a_silent_asker_does_not_keep_a_stream_for_ever(autojump_clock):
    class Silent(ScriptedStream):
        async def read(self, max_bytes):
            await trio.sleep_forever()

    with pytest.raises(TimedOut):
        await sync.answer(Silent(), desk(lambda known: ENTRIES))
    assert trio.current_time() >= telling.ASK_TIMEOUT_S


@pytest.mark.parametrize(
    "fields",
    [
        {"wait_s": 10.5},
        {"wait_s": -1.0},
        {"authors": (ANN.peer_id,)},
        {"authors": (ANN.peer_id,), "heights": (1,), "latest": (b"short",)},
        {"authors": (ANN.peer_id,), "heights": (0,), "latest": (bytes(16),)},
        {"authors": (ANN.peer_id, ANN.peer_id), "heights": (1, 1), "latest": (bytes(16), bytes(16))},
        {"forks": (max(ANN.peer_id, BOB.peer_id), min(ANN.peer_id, BOB.peer_id))},
    ],
)
def test_a_question_outside_its_form_is_refused(fields):
    with pytest.raises(Malformed):
        sync.read_ask(encode(Ask(experiment=EXPERIMENT, **fields), sync.MAX_ASK_BYTES))


def test_the_largest_question_fits():
    peers = tuple(sorted(Identity(number.to_bytes(32)).peer_id for number in range(1024)))
    marks = {peer: Mark(sync.MAX_HEIGHT, bytes(16)) for peer in peers}
    question = sync.question_of(EXPERIMENT, Known(marks, frozenset(peers)), 10.0)
    assert sync.read_ask(encode(question, sync.MAX_ASK_BYTES)) == question


@given(st.binary(max_size=300))
def test_no_bytes_are_a_question_but_those_of_one(data):
    try:
        question = sync.read_ask(data)
    except ProtocolError:
        return
    assert encode(question, sync.MAX_ASK_BYTES) == data


@pytest.mark.parametrize("vector", json.loads(VECTORS.read_text())["vectors"], ids=lambda vector: vector["name"])
def test_a_question_is_taken_as_its_vector_says(vector):
    data = b"".join(bytes.fromhex(line.partition("#")[0]) for line in vector["bytes"])
    if vector["expect"] == "accepted":
        assert encode(sync.read_ask(data), sync.MAX_ASK_BYTES) == data
    else:
        with pytest.raises(ProtocolError) as refusal:
            sync.read_ask(data)
        assert refusal.value.code == vector["expect"]
