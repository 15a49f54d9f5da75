import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.engine.messages import Turn
from agents.errors import BadData
from agents.training.check import check, read, refuse_bad
from agents.training.records import Continuation, Dialogue, Preference, detect, parse, read_data


def line(*turns):
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}).encode()


GOOD = line(("user", "hi"), ("assistant", "hello"))
LINES = {
    "chat": GOOD,
    "instruction": b'{"instruction": "add", "input": "1 2", "output": "3"}',
    "completion": b'{"prompt": "a", "completion": "b"}',
    "preference": b'{"prompt": "a", "chosen": "b", "rejected": "c"}',
    "text": b'{"text": "a story"}',
}


def records(data, name="x.jsonl", **options):
    form, is_json = detect(name, data)
    return parse(data, form, is_json=is_json, **options)


@pytest.mark.parametrize("form", LINES)
def test_the_form_is_told_by_the_first_line(form):
    assert detect("x.jsonl", LINES[form]) == (form, True)
    assert detect("x.txt", LINES[form]) == (form, True)
    assert detect("x.jsonl", b"\xef\xbb\xbf\n\n{broken\n" + LINES[form]) == (form, True)


def test_what_is_no_json_is_text():
    assert detect("x.txt", b"{a story}") == ("text", False)
    assert detect("x", b"once upon a time\n" + GOOD) == ("text", False)
    assert detect("x.txt", b'{"unknown": 1}') == ("text", False)


def test_json_of_no_known_form_is_refused_with_the_forms_that_there_are():
    with pytest.raises(BadData, match=r"line 2 has 'a'.*messages.*instruction"):
        detect("x.jsonl", b'\n{"a": 1}')
    with pytest.raises(BadData, match="line 1: not a JSON object"):
        detect("x.jsonl", b"story\n[1]")


def test_each_form_becomes_what_is_learned_and_what_is_only_read():
    bodies = {form: records(data)[0][0].body for form, data in LINES.items()}
    assert bodies == {
        "chat": Dialogue((Turn("user", "hi"), Turn("assistant", "hello"))),
        "instruction": Dialogue((Turn("user", "add\n\n1 2"), Turn("assistant", "3"))),
        "completion": Continuation("a", "b"),
        "preference": Preference("a", "b", "c"),
        "text": Continuation("", "a story"),
    }


def test_preferences_may_be_chats_that_repeat_their_prompt():
    asked = {"role": "user", "content": "q"}
    value = {
        "prompt": [asked],
        "chosen": [asked, {"role": "assistant", "content": "b"}],
        "rejected": [asked, {"role": "assistant", "content": "c"}],
    }
    wanted = Preference((Turn("user", "q"),), "b", "c")
    assert records(json.dumps(value).encode())[0][0].body == wanted
    del value["prompt"]
    assert records(json.dumps(value).encode())[0][0].body == wanted
    value = {"prompt": "q", "chosen": "b", "rejected": "c"}
    assert records(json.dumps(value).encode())[0][0].body == Preference("q", "b", "c")


@pytest.mark.parametrize(
    ("form", "bad", "said"),
    [
        ("chat", b"{", "not JSON"),
        ("chat", b"[]", "Expected `object`"),
        ("chat", b'{"messages": []}', "no answer"),
        ("chat", b'{"prompt": "x"}', "messages"),
        ("chat", line(("user", "hi")), "no answer"),
        ("chat", line(("robot", "hi")), "robot"),
        ("chat", line(("user", "hi"), ("assistant", "  ")), "no answer"),
        ("chat", b'{"messages": [{"role": "user", "content": 1}]}', "content"),
        ("chat", b"[" * 100_000, "(?i)recursion|deep|object"),
        ("chat", b'{"messages": ' + b"[" * 100_000, "(?i)recursion|deep|object|array"),
        ("chat", b"\xff", "not JSON|not UTF-8"),
        ("chat", b'{"messages": [{"role": "user", "content": "\xff"}]}', "not UTF-8"),
        ("chat", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        ("completion", b'{"prompt": "a", "completion": " "}', "completion is empty"),
        ("instruction", b'{"instruction": "", "output": "a"}', "instruction is empty"),
        ("instruction", b'{"instruction": "a", "output": ""}', "output is empty"),
        ("text", b'{"text": ""}', "text is empty"),
        ("preference", b'{"prompt": "a", "chosen": "b", "rejected": "b"}', "the same"),
        ("preference", b'{"prompt": "", "chosen": "b", "rejected": "c"}', "no prompt"),
        ("preference", b'{"prompt": "a", "chosen": [], "rejected": "c"}', "chosen does not end"),
        (
            "preference",
            b'{"chosen": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "b"}],'
            b'"rejected": [{"role": "user", "content": "2"}, {"role": "assistant", "content": "c"}]}',
            "different chats",
        ),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_reason_and_the_others_are_read(form, bad, said):
    found, problems = records(LINES[form] + b"\r\n\r\n" + bad + b"\n" + LINES[form])
    assert [record.line for record in found] == [1, 4]
    (problem,) = problems
    assert problem.line == 3
    with pytest.raises(BadData, match=said):
        raise BadData(problem.text)


def test_bad_lines_are_refused_together():
    form, found, problems = read("x.jsonl", GOOD + b"\n{\n{\n{\n{", None, "")
    assert form == "chat"
    with pytest.raises(BadData, match=r"^x.jsonl: line 2: .*line 4: .*and 1 more lines"):
        refuse_bad("x.jsonl", found, problems)


def test_a_form_that_the_data_has_not_is_refused():
    with pytest.raises(BadData, match="looks like chat, not like completion"):
        read("x.jsonl", GOOD, "completion", "")
    assert read("x.jsonl", GOOD, "text", "")[1][0].body == Continuation("", GOOD.decode())


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data):
    with suppress(BadData):
        check("x.jsonl", data)


def test_text_loses_its_mark_and_its_carriage_returns():
    assert records(b"\xef\xbb\xbfa\r\nb", "x.txt") == ([(1, Continuation("", "a\nb"), None)], [])
    assert records(b"a\n\xff", "x.txt")[1][0].line == 2
    assert "NUL" in records(b"a\nb\n\0", "x.txt")[1][0].text


def test_an_empty_or_missing_file_is_refused(tmp_path):
    (tmp_path / "empty").write_bytes(b" \n")
    for name in ("empty", "missing"):
        with pytest.raises(BadData):
            read_data(tmp_path / name)


def test_the_report_counts_what_is_odd_and_names_the_lines():
    rows = [{"prompt": f"p{n}", "completion": "c" * 10, "topic": "ab"[n % 2]} for n in range(20)]
    rows[3] = rows[2] | {"prompt": " P2 "}  # the same but for case and spaces
    rows[4]["completion"] = "lost \ufffd"
    rows[5]["prompt"] = "bell \x07"
    rows[6]["completion"] = "long " * 100
    data = b"\n".join(json.dumps(row).encode() for row in rows) + b"\n{"
    report = check("x.jsonl", data, stratify="topic", context_tokens=64)
    assert (report.form, report.n_examples, report.n_bad, report.n_duplicates) == ("completion", 20, 1, 1)
    assert report.duplicates[0].line == 4 and "line 3" in report.duplicates[0].text
    assert [one.line for one in report.odd] == [5, 6] and "'\\x07'" in report.odd[1].text
    assert [one.line for one in report.long] == [7]
    assert sum(report.strata.values()) == 20 and report.n_train + report.n_held_out == 20
    assert report.lengths.least == 8 and report.lengths.greatest == 502


def test_a_field_to_stratify_by_has_to_be_there():
    _, problems = records(LINES["text"], stratify="topic")
    assert "topic" in problems[0].text
    with pytest.raises(BadData, match="plain text"):
        read("x.txt", b"a story", None, "topic")
