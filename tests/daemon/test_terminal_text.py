"""What reaches a terminal: cleaned of commands, with units, in columns."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cli.inspect import log_line
from daemon.cli.progress import is_progress
from daemon.cli.render import bytes_text, duration_text, event_line, lines_of, table, title, value_text
from daemon.cli.text import clean


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("two\nlines\tand", "two lines and"),
        ("bell\x07\x08\x7f\x9b", "bell"),
        ("evil\u202egnp.exe", "evilgnp.exe"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("grüße 🦜 שלום", "grüße 🦜 שלום"),
        ("half\ud800", "half"),
    ],
)
def test_what_a_terminal_obeys_is_taken_out(text, shown):
    assert clean(text) == shown


@given(st.text())
def test_nothing_that_a_terminal_obeys_remains(text):
    shown = clean(text, keep_lines=True)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t\u200c\u200d"]
    assert clean(shown, keep_lines=True) == shown


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("stored_bytes", 0, "0 B"),
        ("tokens_per_s", 109.61, "109.6 a second"),
        ("stored_bytes", 1536, "1.5 KiB"),
        ("n_peers", 12345, "12,345"),
        ("pid", 12345, "12345"),
        ("took_s", 0.1234, "0.123 s"),
        ("uptime_s", 3725, "1 h 2 min"),
        ("held_out_frac", 0.1, "10.0 %"),
        ("is_connected", True, "yes"),
        ("name", None, "-"),
        ("kinds", ["a", "b"], "a, b"),
        ("name", "a\x1b[2Jb", "a[2Jb"),
    ],
)
def test_units_come_from_names(key, value, shown):
    assert value_text(key, value) == shown


@given(st.floats(60, 1e9))
def test_every_duration_has_a_text(seconds):
    assert duration_text(seconds)


@given(st.integers(0, 1 << 60))
def test_every_size_has_a_text(n_bytes):
    assert bytes_text(n_bytes).endswith("B")


def test_titles_lose_their_units():
    assert [
        title(key)
        for key in ("is_connected", "n_peers", "took_s", "heard_unix_s", "n_bytes", "up_bytes_per_s", "bytes_per_s")
    ] == [
        "connected",
        "peers",
        "took",
        "heard",
        "size",
        "up",
        "speed",
    ]


def test_a_list_of_structs_is_a_table():
    assert list(table([{"name": "a", "n_peers": 1}, {"name": "long", "n_peers": 20}])) == [
        "NAME  PEERS",
        "a     1",
        "long  20",
    ]


def test_results_of_every_shape_have_lines():
    assert list(lines_of([])) == []
    assert list(lines_of(["a"])) == ["a"]
    assert list(lines_of({"text": "done"})) == ["done"]
    assert list(lines_of({"cid": "b", "addresses": ["x", "y"]})) == ["cid        b", "addresses  x", "           y"]
    assert list(lines_of({"cid": "b", "entries": [{"name": "n"}]})) == ["cid  b", "", "entries:", "NAME", "n"]


def test_events_and_progress_are_told_apart():
    event = {"id": 7, "unix_s": 0.0, "kind": "adapter\x1b_heard", "fields": {"name": "a\x07"}}
    assert "adapter_heard  name=a" in event_line(event)
    assert is_progress({"type": "step", "step": "x", "n_done": 1})
    assert not is_progress(event)


def test_log_lines_are_for_people_and_harmless():
    line = json.dumps({"time": "2026-11-22T06:31:38.389Z", "level": "info", "event": "started", "peer": "x\x1b[2J"})
    assert log_line(line, as_json=False) == "2026-11-22 06:31:38 info    started peer=x[2J"
    assert log_line("no json\x07", as_json=False) == "no json"
    assert log_line("[]", as_json=False) == "[]"
