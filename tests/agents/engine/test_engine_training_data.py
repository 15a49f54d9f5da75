import json

import pytest

from agents.engine.messages import Turn
from agents.engine.worker.data import (
    IGNORED,
    chat_example,
    is_chat,
    parse_chats,
    parse_text,
    read_data,
    split,
    text_examples,
)
from agents.errors import BadData


def line(*turns):
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}).encode()


GOOD = line(("user", "hi"), ("assistant", "hello"))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"{", "line 3"),
        (b"[]", "line 3"),
        (b'{"messages": []}', "line 3: no answer"),
        (b'{"prompt": "x"}', "line 3"),
        (line(("user", "hi")), "line 3: no answer"),
        (line(("robot", "hi")), "line 3"),
        (line(("user", "hi"), ("assistant", "  ")), "line 3: no answer"),
        (b'{"messages": [{"role": "user", "content": 1}]}', "line 3"),
        (b"[" * 100_000, "line 3"),
        (b"\xff", "line 3: byte 0xff"),
        (b"\0", "line 3: a NUL"),
    ],
)
def test_a_bad_line_is_named_by_its_number(bad, said):
    with pytest.raises(BadData, match=said):
        parse_chats(GOOD + b"\n\n" + bad + b"\n" + GOOD)


def test_good_lines_are_read_and_blank_ones_skipped():
    assert len(parse_chats(GOOD + b"\r\n\r\n" + GOOD)) == 2


def test_text_loses_its_mark_and_its_carriage_returns():
    assert parse_text(b"\xef\xbb\xbfa\r\nb") == "a\nb"


def test_an_empty_or_missing_file_is_refused(tmp_path):
    (tmp_path / "empty").write_bytes(b" \n")
    for name in ("empty", "missing"):
        with pytest.raises(BadData):
            read_data(tmp_path / name)


def test_the_kind_is_told_by_name_or_content(tmp_path):
    assert is_chat(tmp_path / "x.jsonl", b"")
    assert is_chat(tmp_path / "x", GOOD)
    assert not is_chat(tmp_path / "x.txt", b"{a story}")


def test_no_held_out_example_is_trained_on():
    examples = text_examples(range(1000), 10)
    parts = split(examples, 0.1)
    assert len(parts.held_out) == 10 and len(parts.train) == 90
    assert not {example.ids[0] for example in parts.train} & {example.ids[0] for example in parts.held_out}


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_few_examples_are_still_split(n):
    parts = split(text_examples(range(n), 1), 0.1)
    assert parts.train and parts.held_out and len(parts.train) + len(parts.held_out) == n


def test_too_little_data_is_refused():
    with pytest.raises(BadData, match="at least 2"):
        split(text_examples(range(7), 8), 0.1)


def test_only_the_words_of_the_assistant_are_learned():
    def tokens_of(turns, is_open):
        return [token for turn in turns for token in (0, *turn.content.encode(), 9)] + [0] * is_open

    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    example = chat_example(turns, tokens_of, 100)
    assert [label for label in example.labels if label != IGNORED] == [98, 9, 100, 9]
    assert len(example.ids) == len(example.labels)
    assert chat_example(turns, tokens_of, 4) is None
