"""An index of words: what has the words of a question is found, best first, and no question is SQLite's syntax."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.retrieval.words import IN_MEMORY, MAX_WORDS, Words
from storage.errors import Corrupt

TEXTS = {
    "a": "The bees make honey",
    "b": "A bee, alone",
    "c": "Die Straße nach Köln",
    "d": "the the the",
    "e": "snake_case and kebab-case",
    "f": "мёд пчёл",
}


@pytest.fixture
def words(tmp_path):
    found = Words.open(tmp_path / "words.db")
    found.put(TEXTS)
    yield found
    found.close()


def names(words, question, n=10):
    return [name for _, name in words.search(question, n)]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("honey", ["a"]),
        ("BEES", ["b", "a"]),
        ("straße", ["c"]),
        ("koln", ["c"]),
        ("case", ["e"]),
        ("kebab", ["e"]),
        ("пчёл", ["f"]),
        ("make alone", ["b", "a"]),
        ("nothing of it", []),
        ("", []),
        ("?!", []),
    ],
)
def test_words_are_found_by_stems_without_capitals_and_accents(words, question, found):
    assert sorted(names(words, question)) == sorted(found)


def test_the_rare_word_and_the_shorter_text_come_first_and_of_equals_the_lesser_name(words):
    assert names(words, "the bees make it")[0] == "a"
    words.put({"z": "one more", "y": "one more"})
    assert names(words, "more") == ["y", "z"]
    assert names(words, "more", 1) == ["y"]
    assert all(score > 0 for score, _ in words.search("the bees", 10))


def test_texts_are_replaced_and_forgotten_and_there_after_a_restart(words, tmp_path):
    words.put({"a": "wasps"})
    assert names(words, "honey") == [] and names(words, "wasps") == ["a"]
    words.remove(["a", "unknown"])
    assert names(words, "wasps") == [] and words.names() == TEXTS.keys() - {"a"}
    words.close()
    again = Words.open(tmp_path / "words.db")
    assert again.names() == TEXTS.keys() - {"a"} and names(again, "alone") == ["b"]
    again.close()


@pytest.mark.parametrize(
    "question",
    ['"', "'; DROP TABLE names", "a AND", "NEAR(a b)", "text:bee", "name:*", "^bee", "bee*", "(", "-bee", "{x y}: bee",
     "\0bee", "bee\0", "\ud800 bee", "bee " * 9000, " ".join(map(str, range(1000))), "x" * 100_000],
)  # fmt: skip
def test_no_question_is_syntax(words, question):
    assert set(names(words, question)) <= TEXTS.keys()


@given(st.text())
def test_whatever_is_asked_is_answered(question):
    words = Words.open()
    words.put({"a": question, "b": "other"})
    words.search(question, 3)
    words.close()


def test_a_question_counts_up_to_its_bound(words):
    assert names(words, " ".join([*(f"w{number}" for number in range(MAX_WORDS)), "honey"])) == []
    assert names(words, " ".join([*(f"w{number}" for number in range(MAX_WORDS - 1)), "honey"])) == ["a"]


def test_what_cannot_be_put_leaves_all_as_it_was(words):
    with pytest.raises(UnicodeEncodeError):
        words.put({"new": "fine", "bad": "\ud800"})
    assert words.names() == TEXTS.keys() and names(words, "fine") == []


def test_a_damaged_file_says_what_to_do(tmp_path):
    (tmp_path / "words.db").write_bytes(b"x" * 5000)
    with pytest.raises(Corrupt, match="made anew"):
        Words.open(tmp_path / "words.db")
    assert IN_MEMORY.name == ":memory:"
