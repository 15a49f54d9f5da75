"""Questions between whole nodes on virtual time."""

import msgspec
import pytest
import trio

from agents.adapters.publish import Release, store_adapter
from agents.ask.convert import options_of, turns_of
from agents.ask.errors import (
    AnsweredWrongly,
    BadOption,
    BrokeOff,
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
from agents.chat.conversation import TooLong
from agents.engine.messages import Embed, Finished, Load, Loaded, Stage, Staged, Turn
from agents.errors import AgentError, BadAdapter, BadRequest, EngineDied, EngineFailed, UnknownName
from agents.models import card_of
from protocols.ask import shell, wire
from protocols.net import PeerInfo
from simulations.world import TINY, make_node, write_adapter
from storage.blockstore import Visibility
from storage.cid import Cid
from storage.keys import Identity
from storage.pins import PinKind
from tests.agents.ask.nodes import ASK, BASE, LIMITS, QUESTION, TERMS, SlowEngine, answered, text_of
from tests.storage.losing import lose


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
        (BadRequest("max_tokens is 999"), "invalid_request.*max_tokens is 999"),
        (BadAdapter("q_proj holds NaN or infinity"), "bad_adapter.*holds NaN"),
        (BadAdapter("/home/ann/x cannot be read"), "refused the question"),
    ],
)
async def test_a_failure_of_the_engine_is_told_without_paths_and_the_next_question_is_answered(
    meeting, autojump_clock, error, said
):
    _, bob, info, engine = await meeting(SlowEngine(error=error))
    with pytest.raises(AgentError, match=said) as caught:
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
    lose(ann.ports.store, [signed.record.question, signed.record.answer])
    kept = read_record(ann.ports, signed.entry.cid)
    assert (kept.turns, kept.answer, kept.signed.entry.author) == (None, None, ann.peer)
