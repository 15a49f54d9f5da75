"""Answers that are given again: to whom, to which questions, for how long, and in how much room."""

import sqlite3
from array import array
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.cache.answers import AnswerCache, nearest
from agents.cache.key import Key, key_of
from agents.cache.stores import ENTRY_OVERHEAD_BYTES, FileAnswers, Given, MemoryAnswers
from agents.engine.messages import Embed, Embedded, Finished, Generate, ModelCard, Token, Turn
from agents.errors import EngineDied, EngineFailed
from storage.catalog.models import ModelRow
from storage.cid import DAG_CBOR, Cid

BASE = Cid.of(b"base", DAG_CBOR)
ADAPTERS = "/home/adapters"
POET, CLERK = (str(Cid.of(name, DAG_CBOR)) for name in (b"poet", b"clerk"))
CARD = ModelCard(
    name="fake",
    fingerprint=str(BASE),
    architecture="F",
    n_params=1,
    n_layers=1,
    hidden_size=1,
    vocabulary=1,
    context_tokens=1,
    dtype="F32",
    has_chat_template=False,
)
MODEL = ModelRow(
    name="fake", fingerprint=str(BASE), folder="/m", source="x", card=msgspec.to_builtins(CARD), added_unix_s=0.0
)
ASK = Generate(turns=(Turn("system", "be brief"), Turn("user", "what is a list?")), adapter=f"{ADAPTERS}/{POET}")
MEANINGS = {"what is a list?": (1.0, 0.0), "what's a list?": (0.995, 0.0998749), "tell me a story": (0.0, 1.0)}
TTL_S = 100.0


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class CountingEngine:
    """Answers each question with the number of questions so far; fails, or says that it was cancelled, when told to."""

    def __init__(self) -> None:
        self.n_asked = 0
        self.error: Exception | None = None
        self.reason = "stop"
        self.has_encoder = True

    @asynccontextmanager
    async def call(self, request):
        self.n_asked += 1

        async def replies():
            yield Token(id=request.id, text=f"answer {self.n_asked}")
            if self.error:
                raise self.error
            yield Finished(
                id=request.id, reason=self.reason, n_prompt_tokens=5, n_tokens=2, first_token_s=1.0, total_s=2.0
            )

        yield replies()

    async def one(self, request):
        if not self.has_encoder:
            raise EngineFailed("no encoder is installed")
        assert isinstance(request, Embed)
        vector = array("f", MEANINGS[request.texts[0]])
        return Embedded(id=0, vectors=vector.tobytes(), width=2)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory", "file", "both"])
def cache(request, tmp_path, clock):
    memory, file = MemoryAnswers(1 << 20, TTL_S), FileAnswers(tmp_path / "c" / "answers.db", 1 << 20, TTL_S)
    yield AnswerCache(
        {"memory": [memory], "file": [file], "both": [memory, file]}[request.param], max_distance=0.0, unix_s=clock
    )
    file.close()


async def ask(engine, request=ASK):
    async with engine.call(request) as replies:
        said = [reply async for reply in replies]
    return "".join(one.text for one in said[:-1]), said[-1]


async def test_the_same_question_is_answered_once_and_says_so(cache):
    behind = CountingEngine()
    engine = cache.before(behind, MODEL)
    first, finished = await ask(engine)
    again, told = await ask(engine, msgspec.structs.replace(ASK, id=7))
    assert (first, again, behind.n_asked) == ("answer 1", "answer 1", 1)
    assert (finished.cache, told.cache, told.distance, told.n_tokens, told.id) == ("none", "exact", None, 2, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"adapter": f"{ADAPTERS}/{CLERK}"},
        {"adapter": None},
        {"max_tokens": 3},
        {"top_k": 3},
        {"stop": ("x",)},
        {"json_schema": "{}"},
        {"turns": (Turn("system", "be long"), Turn("user", "what is a list?"))},
        {"turns": (Turn("user", "what is a list?"),)},
        {"turns": (), "text": "what is a list?"},
    ],
)
async def test_whatever_could_change_the_answer_makes_another_question(cache, change):
    behind = CountingEngine()
    engine = cache.before(behind, MODEL)
    await ask(engine)
    assert (await ask(engine, msgspec.structs.replace(ASK, **change)))[0] == "answer 2"


async def test_another_model_and_another_asker_get_an_answer_of_their_own(cache):
    behind = CountingEngine()
    other = msgspec.structs.replace(CARD, fingerprint=str(Cid.of(b"other", DAG_CBOR)))
    await ask(cache.before(behind, MODEL))
    await ask(cache.before(behind, replace(MODEL, card=msgspec.to_builtins(other))))
    await ask(cache.before(behind, MODEL, scope="a peer"))
    assert behind.n_asked == 3


@pytest.mark.parametrize(
    ("change", "is_seeded", "n_asked"),
    [
        ({"temperature": 1.0}, False, 2),
        ({"temperature": 1.0, "seed": 3}, True, 1),
        ({"n_logprobs": 2}, True, 2),
        ({"adapter": "/home/me/adapter"}, False, 2),
    ],
)
async def test_only_what_comes_out_the_same_again_is_kept(cache, change, is_seeded, n_asked):
    behind = CountingEngine()
    engine = cache.before(behind, MODEL, is_seeded=is_seeded)
    for _ in range(2):
        await ask(engine, msgspec.structs.replace(ASK, **change))
    assert behind.n_asked == n_asked


async def test_an_answer_that_broke_off_is_not_kept(cache):
    behind = CountingEngine()
    engine = cache.before(behind, MODEL)
    behind.reason = "cancelled"
    await ask(engine)
    behind.reason, behind.error = "stop", EngineDied("killed")
    with pytest.raises(EngineDied):
        await ask(engine)
    behind.error = None
    assert (await ask(engine))[0] == "answer 3"


async def test_an_old_answer_is_given_no_more(cache, clock):
    engine = cache.before(CountingEngine(), MODEL)
    await ask(engine)
    clock.now_s += TTL_S - 1
    assert (await ask(engine))[0] == "answer 1"
    clock.now_s += 1
    assert (await ask(engine))[0] == "answer 2"


async def test_a_similar_question_gets_the_answer_with_its_distance_only_where_that_is_asked_for(cache, clock):
    similar = msgspec.structs.replace(ASK, turns=(ASK.turns[0], Turn("user", "what's a list?")))
    other = msgspec.structs.replace(ASK, turns=(ASK.turns[0], Turn("user", "tell me a story")))
    elsewhere = msgspec.structs.replace(similar, turns=similar.turns[1:])
    behind = CountingEngine()
    strict = cache.before(behind, MODEL)
    loose = AnswerCache(cache._stores, max_distance=0.05, unix_s=clock).before(behind, MODEL)

    await ask(loose)
    text, told = await ask(loose, similar)

    assert (text, told.cache, told.threshold) == ("answer 1", "semantic", 0.05)
    assert told.distance == pytest.approx(0.005, abs=1e-4)
    assert (await ask(strict, similar))[1].cache == "none"
    assert (await ask(loose, other))[1].cache == "none"
    assert (await ask(loose, elsewhere))[1].cache == "none", "the chat before it was another"


async def test_without_an_encoder_only_the_same_question_counts(cache, clock):
    behind = CountingEngine()
    behind.has_encoder = False
    engine = AnswerCache(cache._stores, max_distance=0.05, unix_s=clock).before(behind, MODEL)
    await ask(engine)
    assert (await ask(engine))[1].cache == "exact"


def test_a_cache_without_stores_stands_in_nobodys_way():
    engine = CountingEngine()
    assert AnswerCache([], max_distance=0.0, unix_s=Clock()).before(engine, MODEL) is engine


def key(number: int) -> Key:
    return Key(number.to_bytes(32), b"around", f"question {number}")


def answer(text: str = "x", unix_s: float = 0.0) -> Given:
    return Given(text, "stop", 1, 1, unix_s)


@pytest.mark.parametrize("kind", ["memory", "file"])
@given(uses=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3000)), max_size=40))
def test_no_store_ever_takes_more_than_its_room_and_the_last_used_stays(tmp_path_factory, kind, uses):
    room = 10 * (ENTRY_OVERHEAD_BYTES + 100)
    path = tmp_path_factory.mktemp("cache") / "answers.db"
    store = MemoryAnswers(room, 1e9) if kind == "memory" else FileAnswers(path, room, 1e9)
    for step, (number, n_chars) in enumerate(uses):
        given_ = answer("x" * n_chars)
        store.put(key(number), given_, float(step))
        assert (store.get(key(number), float(step)) == given_) == (given_.n_bytes <= room)
    if isinstance(store, FileAnswers):
        total = sqlite3.connect(path).execute("SELECT coalesce(sum(n_bytes), 0) FROM answers").fetchone()[0]
        store.close()
    else:
        total = store.n_bytes
    assert total <= room


@pytest.mark.parametrize("damage", ["garbage", "version", "empty", "other table"])
def test_a_damaged_file_is_an_empty_cache(tmp_path, damage):
    path = tmp_path / "answers.db"
    store = FileAnswers(path, 1 << 20, 1e9)
    store.put(key(1), answer(), 1.0)
    store.close()
    if damage == "version":
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99")
        database.close()
    elif damage == "other table":
        database = sqlite3.connect(path)
        database.executescript("DROP TABLE answers")
        database.close()
    else:
        path.write_bytes(b"no database at all" * 100 if damage == "garbage" else b"")

    store = FileAnswers(path, 1 << 20, 1e9)

    assert store.get(key(1), 1.0) is None
    store.put(key(2), answer(), 1.0)
    assert store.get(key(2), 1.0) is not None
    store.close()


def test_the_file_survives_its_process_and_nobody_else_may_read_it(tmp_path):
    path = tmp_path / "answers.db"
    for round_ in range(2):
        store = FileAnswers(path, 1 << 20, 1e9)
        assert (store.get(key(1), 1.0) is not None) == (round_ == 1)
        store.put(key(1), answer(), 1.0)
        store.close()
    assert path.stat().st_mode & 0o077 == 0


def test_vectors_of_another_encoder_are_passed_over():
    short = answer()._replace(vector=array("f", [1.0]).tobytes())
    assert nearest(array("f", [1.0, 0.0]).tobytes(), [short, answer()], 1.0) is None


def test_a_vector_that_is_no_number_is_near_to_nothing():
    broken = array("f", [float("nan"), 0.0]).tobytes()
    sound = array("f", [1.0, 0.0]).tobytes()
    near = answer()._replace(vector=sound)
    assert nearest(broken, [near], 1.0) is None
    assert nearest(sound, [answer()._replace(vector=broken)], 1.0) is None
    assert nearest(sound, [answer()._replace(vector=broken), near], 0.1).given is near


def test_the_key_does_not_depend_on_the_number_of_the_request():
    numbered = msgspec.structs.replace(ASK, id=9)
    assert key_of(ASK, BASE, None, "") == key_of(numbered, BASE, None, "")
