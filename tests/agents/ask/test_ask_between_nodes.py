"""Questions between whole nodes on virtual time: honest ones, and askers and answerers that keep none of the rules."""

from contextlib import aclosing, asynccontextmanager

import msgspec
import pytest
import trio

from agents.adapters.publish import Release, store_adapter
from agents.ask.convert import options_of, turns_of
from agents.ask.errors import (
    AnsweredWrongly,
    BadOption,
    BrokeOff,
    NoRecord,
    PeerBusy,
    PeerFailed,
    PeerRefuses,
    QuotaSpent,
    TooManyQuestions,
)
from agents.ask.offers import RemoteModel
from agents.ask.recording import RecordedEngine
from agents.ask.records import Said, keep_record, read_record, store_record
from agents.ask.remote import RemoteEngine, describe
from agents.ask.serve import Host, Terms, serve
from agents.cache.seated import SeatedEngine
from agents.chat.conversation import TooLong
from agents.engine.messages import Embed, Finished, Generate, Load, Loaded, Stage, Staged, Token, Turn
from agents.errors import EngineDied, EngineFailed, UnknownName
from agents.models import Desk, card_of
from protocols.ask import shell, wire
from protocols.ask.quota import Limits
from protocols.ask.record import Record, answer_block, question_block, sign_record
from protocols.ask.wire import Accepted, Answered, Ask, Piece, SignedRecord, Waiting
from protocols.framing import frame, read_frame
from protocols.message import decode, encode
from protocols.net import PeerInfo
from simulations.world import TINY, make_node, write_adapter
from storage.blockstore import Visibility
from storage.cid import Cid
from storage.keys import Identity
from storage.pins import PinKind

ASK = Generate(turns=(Turn("user", "why?"),), max_tokens=8)
BASE = Cid.parse(TINY.base)
QUESTION = Ask(turns=(wire.Turn(role="user", content="why?"),), options=wire.Options(max_tokens=8))
LIMITS = Limits(n_at_once=2, n_per_minute=100, tokens_per_hour=10_000, tokens_per_day=20_000, n_running=1, n_queued=2)
TERMS = Terms(is_flock=False, limits=LIMITS, max_tokens=100, timeout_s=60.0, model="tiny")


class SlowEngine:
    """Says one word a second, for ever; fails where it is told to. Knows how many questions were taken back."""

    def __init__(self, n_words: float = 3, error: Exception | None = None) -> None:
        self.n_words = n_words
        self.error = error
        self.n_taken_back = 0
        self.asked: list[Generate] = []

    @asynccontextmanager
    async def call(self, request):
        self.asked.append(request)
        try:
            async with aclosing(self._replies(request)) as replies:
                yield replies
        except trio.Cancelled:
            self.n_taken_back += 1
            raise
        except GeneratorExit:
            self.n_taken_back += 1
            raise

    async def _replies(self, request):
        n = 0
        while n < self.n_words:
            await trio.sleep(1)
            n += 1
            yield Token(id=0, text=f"word{n} ")
        if self.error:
            raise self.error
        yield Finished(id=0, reason="stop", n_prompt_tokens=5, n_tokens=n, first_token_s=1.0, total_s=float(n))

    async def one(self, request):
        assert isinstance(request, Load)
        return Loaded(id=0, card=TINY, load_s=0.0)


@pytest.fixture
def meeting(sim_world, tmp_path):
    """Ann, who answers as told, and Bob, whom she trusts, connected."""

    async def meet(engine=None, terms=TERMS, *, trusts=True):
        ann, bob = (make_node(sim_world, name, tmp_path) for name in ("ann", "bob"))
        ann.add_model()
        if trusts:
            ann.ports.catalog.peers.trust(bob.peer, ["ask"], 1.0)
        engine = engine or SlowEngine()
        desk = Desk(engine)
        serve(Host(ann.ports, desk, lambda peer, model: SeatedEngine(engine, desk, model), terms), ann.ports)
        info = PeerInfo.parse(ann.network.addresses()[0])
        await bob.network.connect(info)
        return ann, bob, info, engine

    return meet


async def answered(bob, info, request=ASK, **options):
    async with RemoteEngine(bob.network, info, **{"timeout_s": 100.0} | options).call(request) as replies:
        return [reply async for reply in replies]


def text_of(replies) -> str:
    return "".join(reply.text for reply in replies if isinstance(reply, Token))


async def test_a_trusted_peer_is_answered_word_by_word(meeting, autojump_clock):
    ann, bob, info, engine = await meeting()
    request = msgspec.structs.replace(ASK, temperature=0.5, seed=7, stop=("\n",), top_k=3, json_schema="{}")

    said = await answered(bob, info, request)

    assert text_of(said) == "word1 word2 word3 "
    assert isinstance(said[-1], Finished) and said[-1].n_tokens == 3
    (asked,) = engine.asked
    assert msgspec.structs.replace(asked, id=0) == msgspec.structs.replace(request, id=0)
    assert ann.first("question_answered").fields["n_tokens"] == 3


async def test_the_offer_tells_the_model_and_the_most_tokens(meeting, autojump_clock):
    _, bob, info, _ = await meeting()
    offer = await describe(bob.network, info)
    assert (offer.model, offer.base, offer.context_tokens, offer.max_tokens, offer.adapters) == (
        "tiny", BASE, TINY.context_tokens, 100, ()
    )  # fmt: skip


async def test_who_is_not_trusted_with_it_is_told_how_that_is_changed(meeting, autojump_clock):
    ann, bob, info, engine = await meeting(trusts=False)
    ann.ports.catalog.peers.trust(bob.peer, ["adapters"], 1.0)
    for question in (answered(bob, info), describe(bob.network, info)):
        with pytest.raises(PeerRefuses, match=f"covey peer trust {bob.peer} --kinds ask"):
            await question
    assert engine.asked == []
    assert ann.first("question_refused").fields["code"] == "untrusted"


async def test_the_whole_flock_may_ask_where_the_settings_say_so(meeting, autojump_clock):
    ann, bob, info, _ = await meeting(terms=TERMS._replace(is_flock=True), trusts=False)
    with pytest.raises(PeerRefuses):
        await answered(bob, info)
    ann.ports.catalog.peers.trust(bob.peer, ["adapters"], 1.0)
    assert text_of(await answered(bob, info))


async def test_who_does_not_answer_at_all_is_told_from_who_is_away(sim_world, tmp_path, autojump_clock):
    ann, bob = (make_node(sim_world, name, tmp_path) for name in ("ann", "bob"))
    info = PeerInfo.parse(ann.network.addresses()[0])
    with pytest.raises(PeerRefuses, match=r"ask\.is_enabled"):
        await answered(bob, info)
    nobody = PeerInfo(Identity(b"n" * 32).peer_id, ())
    with pytest.raises(PeerFailed, match="cannot be reached"):
        await answered(bob, nobody)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"max_tokens": 101}, BadOption, "at most 100"),
        ({"max_tokens": 1 << 20}, BadOption, "no peer gives"),
        ({"adapter": "poet"}, UnknownName, "no adapter 'poet'"),
        ({"adapter": "best:loss:min"}, AnsweredWrongly, "another adapter"),
        ({"n_logprobs": 1}, BadOption, "log probabilities"),
        ({"turns": (Turn("user", "word " * 10**6),)}, TooLong, "shorten it"),
        ({"turns": (Turn("user", "x"),) * 600}, TooLong, "600 messages"),
        ({"turns": (Turn("user", "word " * 8_000),)}, QuotaSpent, "ask for less"),
    ],
)
async def test_a_question_that_does_not_fit_is_refused_in_one_line(meeting, autojump_clock, change, error, said):
    _, bob, info, _ = await meeting()
    with pytest.raises(error, match=said) as caught:
        await answered(bob, info, msgspec.structs.replace(ASK, **change))
    assert "\n" not in str(caught.value)


async def test_a_model_that_is_not_there_is_refused(meeting, autojump_clock):
    _, bob, info, _ = await meeting()
    question = msgspec.structs.replace(QUESTION, base=Cid.of(b"other"))
    with pytest.raises(shell.PeerRefused, match="answers with tiny") as caught:
        await anext(shell.ask(bob.network, info.peer, question))
    assert caught.value.refused.code == "wrong_base"


async def test_questions_wait_for_each_other_and_the_line_has_an_end(meeting, autojump_clock):
    _, bob, info, engine = await meeting()
    told: list[str] = []

    async def ask_one():
        try:
            told.append(text_of(await answered(bob, info)))
        except TooManyQuestions as error:
            told.append(str(error).rpartition(". ")[2])

    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask_one)
    assert sorted(told)[:2] == ["Try again in 5 s"] * 2 and len(engine.asked) == 2
    assert trio.current_time() - began_s > 6  # one after the other


async def test_a_full_line_is_told_so(meeting, autojump_clock):
    _, bob, info, _ = await meeting(terms=TERMS._replace(limits=LIMITS._replace(n_queued=0)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answered, bob, info)
        await trio.sleep(0.5)
        with pytest.raises(PeerBusy):
            await answered(bob, info)


async def test_a_question_that_is_taken_back_stops_the_engine_and_costs_what_was_said(meeting, autojump_clock):
    limits = LIMITS._replace(tokens_per_hour=20)
    _, bob, info, engine = await meeting(SlowEngine(n_words=float("inf")), TERMS._replace(limits=limits))
    async with RemoteEngine(bob.network, info, timeout_s=100.0).call(ASK) as replies:
        async for reply in replies:
            if reply.text.startswith("word2"):
                break
    await trio.sleep(2)
    assert engine.n_taken_back == 1
    with pytest.raises(QuotaSpent, match=r"Try again in \d+ min"):
        await answered(bob, info, msgspec.structs.replace(ASK, max_tokens=19))


async def test_an_answer_takes_no_longer_than_either_side_allows(meeting, autojump_clock):
    _, bob, info, engine = await meeting(SlowEngine(n_words=float("inf")), TERMS._replace(timeout_s=30.0))
    with pytest.raises(PeerFailed, match="timed_out"):
        await answered(bob, info)
    with pytest.raises(BrokeOff, match="fell silent after"):
        await answered(bob, info, timeout_s=10.0)
    await trio.sleep(2)
    assert engine.n_taken_back == 2


async def test_signs_of_life_keep_a_slow_start_from_looking_dead(meeting, autojump_clock):
    class Reading(SlowEngine):
        async def _replies(self, request):
            await trio.sleep(shell.SILENCE_LIMIT_S * 3)
            async for reply in super()._replies(request):
                yield reply

    _, bob, info, _ = await meeting(Reading(), TERMS._replace(timeout_s=1000.0))
    assert text_of(await answered(bob, info, timeout_s=1000.0))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (EngineDied("killed"), "it is started again"),
        (EngineFailed("/home/ann/secret cannot be loaded"), "refused the question"),
        (EngineFailed("the prompt has 99 tokens, tiny takes 64"), "the prompt has 99 tokens"),
    ],
)
async def test_a_failure_of_the_engine_is_told_without_paths_and_the_next_question_is_answered(
    meeting, autojump_clock, error, said
):
    _, bob, info, engine = await meeting(SlowEngine(error=error))
    with pytest.raises(PeerFailed, match=said) as caught:
        await answered(bob, info)
    assert "/home" not in str(caught.value)
    engine.error = None
    assert text_of(await answered(bob, info))


async def test_a_peer_that_goes_in_mid_answer_is_told_of_with_what_came(meeting, sim_world, autojump_clock):
    ann, bob, info, _ = await meeting(SlowEngine(n_words=float("inf")))
    async with trio.open_nursery() as nursery:

        async def goes():
            await trio.sleep(3.5)
            await ann.network.disconnect(bob.peer)

        nursery.start_soon(goes)
        with pytest.raises(BrokeOff, match=r"went away after \d+ characters"):
            await answered(bob, info)


async def test_a_peer_stands_in_for_an_engine_in_a_chat_and_nowhere_else(meeting, autojump_clock):
    _, bob, info, _ = await meeting()
    engine = RemoteEngine(bob.network, info, timeout_s=1.0)
    assert isinstance(await engine.one(Stage(adapter="x")), Staged)
    with pytest.raises(EngineFailed):
        await engine.one(Embed(texts=("x",)))
    with pytest.raises(EngineFailed):
        async with engine.call(Embed(texts=("x",))):
            raise AssertionError


# Records


async def test_a_record_is_signed_by_who_answered_and_kept_by_who_asked(meeting, autojump_clock):
    ann, bob, info, _ = await meeting()
    kept = []

    async def keep(signed, turns, answer):
        keep_record(bob.ports, signed, turns, answer)
        kept.append(signed.entry.cid)

    await answered(bob, info, keep=keep)

    read = read_record(bob.ports, kept[0])
    assert read.answer == "word1 word2 word3 " and read.turns[-1].content == "why?"
    assert (read.signed.entry.author, read.signed.entry.recipient) == (ann.peer, bob.peer)
    assert {pin.kind for pin in bob.ports.pins.list()} == {PinKind.DIRECT}
    assert len(bob.ports.pins.list()) == 4
    assert ann.ports.pins.list() == [], "what peers ask for is held by nobody but them"
    assert read_record(ann.ports, kept[0]) == read


# Those who keep none of the rules


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


# Adapters


async def test_a_peer_may_use_the_adapters_that_it_may_see_and_hears_of_no_other(meeting, tmp_path, autojump_clock):
    ann, bob, info, engine = await meeting()
    rows = {}
    for fill, (name, visibility) in enumerate([("poet", Visibility.FLOCK), ("diary", Visibility.PRIVATE)]):
        folder = write_adapter(tmp_path / name, fill=fill)
        rows[name], _ = store_adapter(ann.ports, folder, Release(name, TINY, visibility=visibility))

    remote = RemoteModel(info, "ann", await describe(bob.network, info))
    poet = remote.resolve("poet@1")

    assert [one.name for one in remote.adapters()] == ["poet"]
    assert (poet, remote.resolve("none")) == (remote.resolve("latest"), None)
    assert (remote.row.name, card_of(remote.row).context_tokens) == ("tiny on ann", TINY.context_tokens)
    with pytest.raises(UnknownName, match="it offers: poet"):
        remote.resolve("diary")

    await answered(bob, info, msgspec.structs.replace(ASK, adapter=poet.folder))
    assert engine.asked[-1].adapter == rows["poet"].folder
    told = set()
    for wish in ("diary", str(rows["diary"].manifest), str(Cid.of(b"nothing")), "nothing"):
        with pytest.raises(UnknownName) as caught:
            await answered(bob, info, msgspec.structs.replace(ASK, adapter=wish))
        told.add(str(caught.value).replace(wish, "..."))
    assert len(told) == 1
    assert len(engine.asked) == 1


async def test_an_answer_of_this_node_is_put_on_record_too(meeting, autojump_clock):
    ann, _, _, engine = await meeting()
    kept = []

    async def keep(request, answer, finished):
        said = Said("tiny", BASE, None, options_of(request), finished.reason, finished.n_prompt_tokens, 3)
        signed = store_record(ann.ports, said, turns_of(request), answer, None, is_kept=True)
        kept.append(read_record(ann.ports, signed.entry.cid))

    recorded = RecordedEngine(engine, keep)
    async with recorded.call(ASK) as replies:
        assert text_of([reply async for reply in replies]) == kept[0].answer == "word1 word2 word3 "
    async with recorded.call(Embed(texts=())) as replies:
        pass
    assert isinstance(await recorded.one(Load(folder="/m")), Loaded)
    assert len(kept) == 1 and kept[0].signed.entry.recipient is None


async def test_a_record_whose_texts_are_gone_still_says_who_signed(meeting, autojump_clock):
    ann, _, _, _ = await meeting()
    said = Said("tiny", BASE, None, wire.Options(), "length", 1, 3)
    signed = store_record(ann.ports, said, QUESTION.turns, "so", None, is_kept=False)
    ann.ports.store.delete_many([signed.record.question, signed.record.answer])
    kept = read_record(ann.ports, signed.entry.cid)
    assert (kept.turns, kept.answer, kept.signed.entry.author) == (None, None, ann.peer)
