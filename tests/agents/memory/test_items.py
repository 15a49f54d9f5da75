"""What an agent remembers is read out of the history, alike by everybody; what is none of it is passed over."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.memory.items import (
    MAX_ITEM_BYTES,
    MAX_ITEMS,
    MAX_TEXT_CHARS,
    BadMemory,
    Item,
    checked,
    episodes,
    ever,
    gather,
    key_of,
    knowledge,
    read_block,
)
from protocols.workspaces.entries import Drop, Put
from storage.cid import RAW, Cid
from storage.codecs import dag_cbor

ADAPTER = str(Cid.of(b"adapter", RAW))


def fact(text):
    return Item(kind="fact", text=text)


def told(member, item, agent="bee"):
    return member.say(Put(key=key_of(item, agent), value=msgspec.to_builtins(item)))


def test_what_was_remembered_last_stands_last_and_twice_is_once(village):
    ann = village("bob")
    for text in ("one", "two", "one"):
        told(ann.ann, fact(text))
    told(ann.bob, fact("of all"), None)
    told(ann.bob, fact("another's"), "wasp")
    ann.meet()
    for member in (ann.ann, ann.bob):
        assert {item.text for item in knowledge(member.space, "bee", is_shared=False)} == {"one", "two"}
        assert {item.text for item in knowledge(member.space, "bee", is_shared=True)} == {"one", "two", "of all"}
    assert knowledge(ann.ann.space, "bee", is_shared=True) == knowledge(ann.bob.space, "bee", is_shared=True)
    ann.ann.say(Drop(key=key_of(fact("one"), "bee")))
    assert [item.text for item in knowledge(ann.ann.space, "bee", is_shared=False)] == ["two"]
    name = str(fact("one").cid)
    assert ever(ann.ann.space, [name, "other"]) == {name: fact("one")}, "a record may name what is forgotten since"


def test_the_adapter_that_was_learnt_last_is_the_newest_skill(village):
    ann = village().ann
    assert gather(ann.space, "bee", is_shared=True).newest_skill() is None
    for name in (b"old", b"new"):
        told(ann, Item(kind="skill", text="poems", adapter=str(Cid.of(name, RAW))))
    assert gather(ann.space, "bee", is_shared=False).newest_skill().adapter == str(Cid.of(b"new", RAW))


def test_episodes_that_were_brought_along_stand_before_what_is_done_here(village):
    ann = village().ann
    item = Item(kind="episode", text="elsewhere", source=ADAPTER)
    told(ann, item)
    assert episodes(ann.space, "bee", 3) == [item] and episodes(ann.space, "bee", 0) == []
    assert knowledge(ann.space, "bee", is_shared=True) == []


GOOD = {"kind": "fact", "text": "x", "adapter": "", "source": ""}


@pytest.mark.parametrize(
    "value",
    [
        None,
        "x",
        {},
        {**GOOD, "kind": "order"},
        {**GOOD, "text": ""},
        {**GOOD, "text": "x" * (MAX_TEXT_CHARS + 1)},
        {**GOOD, "text": 1},
        {**GOOD, "more": 1},
        {**GOOD, "adapter": ADAPTER},
        {**GOOD, "source": ADAPTER},
        {**GOOD, "kind": "skill"},
        {**GOOD, "kind": "skill", "adapter": "../../etc"},
        {**GOOD, "kind": "skill", "adapter": "b" * 129},
        {**GOOD, "kind": "episode"},
    ],
)
def test_what_is_no_memory_comes_to_no_mind_and_is_refused_as_a_block(village, value):
    ann = village().ann
    key = "memory/agents/bee/" + hashlib.sha256(repr(value).encode()).hexdigest()[:32]
    ann.say(Put(key=key, value=value))
    assert knowledge(ann.space, "bee", is_shared=True) == []
    with pytest.raises(BadMemory):
        read_block(dag_cbor.encode(value))


def test_an_item_under_another_key_than_its_own_is_passed_over(village):
    ann = village().ann
    for key in ("memory/agents/bee/x", "memory/shared/y", key_of(fact("b"), "bee"), key_of(fact("a"), "bee/x")):
        ann.say(Put(key=key, value=msgspec.to_builtins(fact("a"))))
    assert knowledge(ann.space, "bee", is_shared=True) == []


def test_of_very_many_the_newest_count(village):
    ann = village().ann
    for number in range(MAX_ITEMS + 2):
        told(ann, fact(str(number)))
    found = knowledge(ann.space, "bee", is_shared=False)
    assert len(found) == MAX_ITEMS and (found[0].text, found[-1].text) == ("2", str(MAX_ITEMS + 1))


@pytest.mark.parametrize("data", [b"", b"\xff", b"x" * (MAX_ITEM_BYTES + 1), fact("x").block + b"\0", b"\xa0"])
def test_bytes_that_are_no_memory_are_refused(data):
    with pytest.raises(BadMemory):
        read_block(data)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_what_is_written_is_read(text):
    item = checked(fact(text))
    assert read_block(item.block) == item


def test_a_memory_that_is_written_in_another_way_is_refused():
    with pytest.raises(BadMemory, match="another way"):
        read_block(dag_cbor.encode({"kind": "fact", "text": "x"}))


def test_in_a_private_workspace_who_has_no_key_reads_nothing_of_it(village):
    ann = village("bob", is_private=True)
    told(ann.ann, fact("A secret"))
    ann.meet()
    assert [item.text for item in knowledge(ann.bob.space, "bee", is_shared=True)] == ["A secret"]
    assert b"A secret" not in b"".join(node.entry.body_block for node in ann.ann.space.history)
    keyless = type(ann.bob.space)(ann.root)
    for entry in ann.ann.space.history.since(keyless.history.known()):
        keyless.add(entry)
    assert keyless.document() == ann.ann.space.document()
    assert knowledge(keyless, "bee", is_shared=True) == []
