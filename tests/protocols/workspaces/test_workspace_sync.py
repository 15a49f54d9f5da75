"""Members bring each other up to date: what is asked and answered, and that nothing else is."""

from itertools import count

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from protocols.entry import make_entry
from protocols.errors import Forged, Malformed, ProtocolError, ProtocolRefused, Tampered, TooBig
from protocols.framing import frame
from protocols.message import encode
from protocols.telling import MAX_TOLD_BYTES, Here, Mark, Told, Where
from protocols.workspaces import sync
from protocols.workspaces.sync import Ask, AskContent, AskMembers, AskRoot, Content, Desk, Known
from storage.cid import DAG_CBOR, RAW, Cid
from storage.keys import Identity
from tests.protocols.scripted import BOB, ScriptedNetwork, ScriptedStream, framed, told

ANN = Identity(b"a" * 32)
ROOT = make_entry(ANN, "workspace", "workspaces", 0, [], {})
WORKSPACE = Cid.of(b"workspace", DAG_CBOR)
BACKWARDS = tuple(sorted((ANN.peer_id, BOB.peer_id), reverse=True))
HEADS = (Cid.of(b"head", DAG_CBOR),)
ENTRIES = [make_entry(ANN, "join", f"workspaces/{WORKSPACE}", number, [], {}) for number in range(3)]


def desk(since, news=trio.sleep_forever, where=tuple):
    return lambda peer, cid: Desk(ROOT, since, news, where) if cid == WORKSPACE else None


async def asked(*said, known=None, wait_s=0.0, tail=b""):
    signs = []
    answer = await asked_of(ScriptedStream(framed(*said) + tail), known, wait_s, lambda: signs.append(1))
    return answer.entries, signs


async def asked_of(stream, known=None, wait_s=0.0, on_here=lambda: None, **more):
    answer = await sync.ask(
        ScriptedNetwork(stream), BOB.peer_id, WORKSPACE, known or Known({}), wait_s, on_here, **more
    )
    assert stream.is_closed
    return answer


async def answered(question, find_desk):
    stream = ScriptedStream(frame(encode(question, sync.MAX_ASK_BYTES)))
    await sync.answer(stream, find_desk)
    return stream.written


async def test_a_member_is_told_what_it_lacks_and_takes_it_for_what_it_is(autojump_clock):
    heard = []

    def since(known):
        heard.append(known)
        return ENTRIES[known.marks[ANN.peer_id].height :]

    known = Known({ANN.peer_id: Mark(1, sync.digest_of(ENTRIES[0].cid))}, HEADS)
    written = await answered(sync.question_of(WORKSPACE, known, 5.0), desk(since))
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
    assert await answered(Ask(workspace=WORKSPACE, wait_s=10.0), desk(lambda known: there, news)) == framed(
        Here(), told(ENTRIES[0])
    )
    assert trio.current_time() - began_s == 3


async def test_and_no_longer_than_the_asker_does(autojump_clock):
    began_s = trio.current_time()
    assert await answered(Ask(workspace=WORKSPACE, wait_s=4.0), desk(lambda known: ())) == framed(Here())
    assert trio.current_time() - began_s == 4


async def test_a_workspace_that_is_not_known_and_one_that_is_not_the_askers_end_alike(autojump_clock):
    for question in (Ask(workspace=Cid.of(b"other"), wait_s=9.0), AskRoot(workspace=Cid.of(b"other"))):
        assert await answered(question, desk(lambda known: ENTRIES)) == b""
    with pytest.raises(ProtocolRefused, match="knows of no such workspace"):
        await asked()


async def test_an_answer_holds_no_more_than_its_limits_say_and_begins_with_the_first(autojump_clock, monkeypatch):
    monkeypatch.setattr(sync, "MAX_ANSWERS", 2)
    assert await answered(Ask(workspace=WORKSPACE), desk(lambda known: ENTRIES)) == framed(
        Here(), told(ENTRIES[0]), told(ENTRIES[1])
    )
    with pytest.raises(Malformed, match="more than one answer may hold"):
        await asked(Here(), *map(told, ENTRIES))


async def test_of_a_history_without_end_no_more_is_taken_than_one_answer_holds(autojump_clock, monkeypatch):
    monkeypatch.setattr(sync, "MAX_ANSWERS", 5)
    taken = []

    def since(known):
        for number in count():
            taken.append(number)
            yield ENTRIES[number % 3]

    written = await answered(Ask(workspace=WORKSPACE), desk(since))
    assert written == framed(Here(), *(told(ENTRIES[number % 3]) for number in range(5))) and len(taken) == 5


async def test_nor_of_an_answer_without_end(autojump_clock):
    class Endless(ScriptedStream):
        n_read = 0

        async def read(self, max_bytes):
            self.said = self.said or framed(told(ENTRIES[0])) * 100
            piece = await super().read(max_bytes)
            self.n_read += len(piece)
            return piece

    stream = Endless(framed(Here()))
    with pytest.raises(Malformed, match="more than one answer may hold"):
        await asked_of(stream)
    assert stream.n_read < (sync.MAX_ANSWERS + 200) * len(framed(told(ENTRIES[0])))
    stream = Endless(framed(Here()))
    with pytest.raises(Malformed, match="more than one answer may hold"):
        await asked_of(stream, is_known=lambda cid: True)


async def test_what_was_heard_of_another_meanwhile_is_not_verified_once_more(autojump_clock):
    other = Told(entry=ENTRIES[0].block, body=b"not looked at")
    answer = await asked_of(ScriptedStream(framed(Here(), other, told(ENTRIES[1]))), is_known=ENTRIES[0].cid.__eq__)
    assert answer.known == [ENTRIES[0].cid] and [entry.cid for entry in answer.entries] == [ENTRIES[1].cid]
    assert answer.n_told == 2


async def test_a_root_is_given_by_its_cid_and_no_other_is_taken(autojump_clock):
    written = await answered(AskRoot(workspace=WORKSPACE), desk(lambda known: ()))
    assert written == framed(Here(), told(ROOT))
    found = await sync.ask_root(ScriptedNetwork(ScriptedStream(written)), BOB.peer_id, ROOT.body_cid)
    assert found.cid == ROOT.cid
    with pytest.raises(Malformed, match="another"):
        await sync.ask_root(ScriptedNetwork(ScriptedStream(written)), BOB.peer_id, WORKSPACE)
    with pytest.raises(Malformed, match="did not give"):
        await sync.ask_root(ScriptedNetwork(ScriptedStream(framed(Here()))), BOB.peer_id, WORKSPACE)


async def test_members_tell_where_others_are(autojump_clock):
    where = Where(peer=ANN.peer_id, addresses=("/ip4/192.0.2.7/tcp/4701",))
    written = await answered(AskMembers(workspace=WORKSPACE), desk(lambda known: (), where=lambda: [where]))
    assert written == framed(Here(), where)
    assert await sync.ask_members(ScriptedNetwork(ScriptedStream(written)), BOB.peer_id, WORKSPACE) == [where]


async def test_content_is_given_to_members_and_no_other_bytes_are_taken_for_it(autojump_clock):
    there = {Cid.of(data, RAW): data for data in (b"content", bytes(sync.MAX_CONTENT_BYTES + 1))}

    async def content(cid):
        return there.get(cid)

    def find_desk(peer, workspace):
        return Desk(ROOT, lambda known: (), trio.sleep_forever, tuple, content)

    async def take(cid, *said):
        return await sync.ask_content(
            ScriptedNetwork(ScriptedStream(framed(Here(), *said))), BOB.peer_id, WORKSPACE, cid
        )

    asked_for = [await answered(AskContent(workspace=WORKSPACE, cid=cid), find_desk) for cid in there]
    assert asked_for == [framed(Here(), Content(data=b"content")), framed(Here())]
    cid = next(iter(there))
    assert await take(cid, Content(data=b"content")) == b"content" and await take(cid) is None
    with pytest.raises(Tampered):
        await take(cid, Content(data=b"other bytes"))
    with pytest.raises(TooBig):
        await take(cid, told(make_entry(ANN, "say", "x", 0, [], {"text": "x" * (20 << 10)})))
    with pytest.raises(Malformed):
        await take(cid, told(ENTRIES[0]))


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


async def test_who_is_no_member_any_more_when_there_is_news_is_told_nothing(autojump_clock):
    there, is_member = [], [True]

    async def news():
        await trio.sleep(3)
        there.append(ENTRIES[0])
        is_member.clear()

    members = desk(lambda known: there, news)
    written = await answered(Ask(workspace=WORKSPACE, wait_s=9.0), lambda *who: members(*who) if is_member else None)
    assert written == framed(Here())


@pytest.mark.parametrize(
    "fields",
    [
        {"wait_s": 20.5},
        {"wait_s": -1.0},
        {"authors": (ANN.peer_id,)},
        {"authors": (ANN.peer_id,), "heights": (1,), "latest": (b"short",)},
        {"authors": (ANN.peer_id,), "heights": (0,), "latest": (bytes(16),)},
        {"authors": (ANN.peer_id, ANN.peer_id), "heights": (1, 1), "latest": (bytes(16), bytes(16))},
        {
            "authors": tuple(sorted((ANN.peer_id, BOB.peer_id), reverse=True)),
            "heights": (1, 1),
            "latest": (bytes(16),) * 2,
        },
        {"heads": HEADS * 513},
    ],
)
def test_a_question_outside_its_form_is_refused(fields):
    with pytest.raises(Malformed):
        sync.read_ask(encode(Ask(workspace=WORKSPACE, **fields), sync.MAX_ASK_BYTES))


def test_the_largest_question_fits():
    peers = tuple(sorted(Identity(number.to_bytes(32)).peer_id for number in range(512)))
    marks = {peer: Mark(1 << 20, bytes(16)) for peer in peers}
    heads = tuple(Cid.of(bytes(peer), DAG_CBOR) for peer in peers)
    question = sync.question_of(WORKSPACE, Known(marks, heads), 20.0)
    assert sync.read_ask(encode(question, sync.MAX_ASK_BYTES)) == question


@given(st.binary(max_size=300))
def test_no_bytes_are_a_question_but_those_of_one(data):
    try:
        question = sync.read_ask(data)
    except ProtocolError:
        return
    assert encode(question, sync.MAX_ASK_BYTES) == data
