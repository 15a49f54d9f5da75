"""What comes to an agent's mind is bounded, depends on no order, and can be told again from its record."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.errors import EngineDied
from agents.memory.indexes import WORDS, Encoding, Indexes, by_words
from agents.memory.items import BadMemory, Item, UnknownMemory, gather, key_of, knowledge
from agents.memory.mind import Mind
from agents.memory.recall import merged
from agents.memory.view import MAX_FACT_CHARS, View, Worked, choose, recorded
from agents.memory.wish import MAX_FACTS, Memory, wish_of
from protocols.workspaces.entries import Put, check
from storage.cid import RAW, Cid
from tests.agents.memory.test_items import fact, told

WORKSPACE = Cid.of(b"workspace", RAW)
ITEMS = [fact("Bees make honey"), fact("A flock flies south"), fact("Honey is sweet, says the bee"), fact("Cows moo")]
TEXTS = st.lists(st.text(alphabet="ab ", min_size=1, max_size=400), max_size=12, unique=True)


class Topics:
    """An encoder of three numbers: how much a text tells of honey, and of flocks. `texts` are those it was given."""

    def __init__(self, fails=False):
        self.texts = []
        self.fails = fails

    async def __call__(self, texts):
        if self.fails:
            raise EngineDied("out of memory")
        self.texts += texts
        rows = []
        for text in texts:
            row = [float("hone" in text.lower()), float("flock" in text or "birds" in text), 0.05]
            length = math.hypot(*row)
            rows.append(struct.pack("<3f", *(number / length for number in row)))
        return b"".join(rows), 3


def test_words_find_what_has_them_in_whatever_order_it_is_known(tmp_path):
    found = by_words(tmp_path / "one", "who makes honey, bees?", ITEMS)
    assert found[0].text == "Bees make honey" and len(found) == 2
    assert by_words(tmp_path / "other", "who makes honey, bees?", ITEMS[::-1]) == found
    assert by_words(tmp_path / "one", "nothing of it", []) == []


def test_an_index_of_words_is_brought_up_to_date_made_anew_where_it_is_damaged_and_not_needed(tmp_path):
    folder = tmp_path / "bee"
    assert by_words(folder, "make honey", ITEMS[:2]) == ITEMS[:1]
    assert by_words(folder, "south moo", ITEMS[1:]) == by_words(tmp_path / "fresh", "south moo", ITEMS[1:])
    assert by_words(folder, "bees", ITEMS[1:]) == [ITEMS[2]], "what was forgotten is not found"
    (folder / WORDS).write_bytes(b"no database" * 1000)
    assert by_words(folder, "moo", ITEMS) == [ITEMS[3]] == by_words(folder, "moo", ITEMS)
    assert (folder / WORDS).read_bytes().startswith(b"SQLite")
    (tmp_path / "full").write_text("no folder can be made here")
    assert by_words(tmp_path / "full" / "bee", "moo", ITEMS) == [ITEMS[3]]


def test_what_is_gathered_on_the_event_loop_is_not_looked_into_there(village):
    ann = village().ann
    for item in ITEMS:
        told(ann, item)
    ann.say(Put(key="memory/agents/bee/" + "x" * 32, value={"kind": "nonsense"}))
    kept = gather(ann.space, "bee", is_shared=True, n_done=4)
    assert [one.value["kind"] for one in kept.own] == ["fact"] * len(ITEMS) + ["nonsense"]
    assert kept.knowledge() == ITEMS == knowledge(ann.space, "bee", is_shared=True)


def test_rankings_are_merged_by_ranks():
    one, two, three, four = ITEMS
    assert [item for _, item in merged([one, two], [two, three])][:1] == [two]
    assert merged([one], [two]) == merged([two], [one])
    assert merged() == [] and four not in [item for _, item in merged([one, two])]


@given(facts=TEXTS, done=TEXTS, before=TEXTS, most=st.integers(256, 3000), n=st.integers(0, 8))
def test_what_is_told_is_within_its_bounds_and_a_part_of_what_there_is(facts, done, before, most, n):
    wish = Memory(facts=n, episodes=n, working=n, max_chars=most)
    steps = [Worked(Cid.of(text.encode(), RAW), "step", text) for text in before]
    past = [Item(kind="episode", text=text, source=str(WORKSPACE)) for text in done]
    view = choose(wish, [fact(text) for text in facts], past, steps)
    assert len(view.text()) <= most
    assert list(view.facts) == [fact(text) for text in facts][: len(view.facts)]
    assert list(view.episodes) == past[len(past) - len(view.episodes) :]
    assert list(view.working) == steps[len(steps) - len(view.working) :]
    assert max(map(len, (view.facts, view.episodes, view.working))) <= n


def test_nothing_wished_for_is_nothing_told():
    assert choose(Memory(), ITEMS, ITEMS, [Worked(WORKSPACE, "a", "b")]).text() == ""
    assert View().record() == {} and wish_of(3) == Memory(episodes=3)
    assert len(choose(Memory(facts=1), [fact("x" * 4096)], [], []).text()) < MAX_FACT_CHARS + 100


async def test_meanings_find_what_has_none_of_the_words_and_only_what_is_new_is_embedded(tmp_path):
    topics, meanings = Topics(), Indexes(tmp_path)
    encoding = Encoding("topics", topics)
    near = await meanings.near(WORKSPACE, "bee", encoding, "birds?", ITEMS)
    assert [item.text for item in near] == ["A flock flies south", "Cows moo"][: len(near)] and near
    assert topics.texts == [item.text for item in ITEMS] + ["birds?"]
    await meanings.near(WORKSPACE, "bee", encoding, "birds?", [*ITEMS[1:], fact("More birds")])
    assert topics.texts[5:] == ["More birds", "birds?"]
    await meanings.forget(WORKSPACE, "bee")
    assert not list(tmp_path.rglob("*.db"))
    await meanings.forget(WORKSPACE, "bee")


@pytest.mark.parametrize("name", ["..", ".", "bee", "x" * 64])
async def test_no_agents_name_leads_out_of_the_folder(tmp_path, name):
    (tmp_path / "inner").mkdir()
    meanings = Indexes(tmp_path / "inner")
    await meanings.near(WORKSPACE, name, Encoding("../../up", Topics()), "birds?", ITEMS)
    await meanings.forget(WORKSPACE, name)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert [path.name for path in (tmp_path / "inner").iterdir()] == [str(WORKSPACE)]


async def test_a_mind_looks_for_both_or_for_words_where_it_has_no_encoder_or_that_fails(village, tmp_path):
    ann, mind = village().ann, Mind(tmp_path)
    for item in ITEMS:
        told(ann, item)
    both = Memory(facts=3)
    assert (await mind.recall(ann.space, "bee", both, "honey")).by == "words"
    mind.encoding = Encoding("topics", Topics())
    recalled = await mind.recall(ann.space, "bee", both, "birds that make honey")
    assert recalled.by == "both" and "A flock flies south" in [item.text for _, item in recalled.found]
    assert (await mind.recall(ann.space, "bee", Memory(search="words"), "honey")).by == "words"
    mind.encoding = Encoding("topics", Topics(fails=True))
    assert (await mind.recall(ann.space, "bee", both, "honey")).by == "words"
    view = await mind.view(ann.space, "bee", Memory(facts=1), {"prompt": "Who makes honey, bees?"})
    assert "Bees make honey" in view.text() and view.record() == {"facts": [str(ITEMS[0].cid)], "by": "words"}


class Alone:
    """A run and a step of it, as far as a view asks."""

    name = "sum"

    def seen_by(self, view):
        return [], []


def test_a_record_is_told_again_from_the_history_alone(village):
    ann = village().ann
    for item in ITEMS:
        told(ann, item)
    view = choose(Memory(facts=2), ITEMS[2:], [], [], "both")
    assert recorded(ann.space, view.record(), Alone(), Alone()) == view
    with pytest.raises(UnknownMemory):
        recorded(ann.space, {"facts": [str(fact("never said").cid)]}, Alone(), Alone())
    with pytest.raises(UnknownMemory):
        recorded(ann.space, {"working": [str(WORKSPACE)]}, Alone(), Alone())


@pytest.mark.parametrize("record", [1, [], {"facts": 1}, {"facts": [1]}, {"facts": ["x"] * (MAX_FACTS + 1)}])
def test_a_record_that_is_none_is_refused(village, record):
    with pytest.raises(BadMemory):
        recorded(village().ann.space, record, Alone(), Alone())


def test_keys_fit_the_longest_name():
    check(Put(key=key_of(fact("x"), "n" * 64), value=None))
