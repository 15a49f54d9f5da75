"""Text that is not UTF-8 or that a terminal obeys: on its way in, out, into the log and onto a terminal."""

import io
import json
import os
from collections.abc import AsyncIterator
from types import SimpleNamespace

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from daemon import jsons
from daemon.api import faults
from daemon.api import http as face
from daemon.api.operation import Nothing, Operation, Result
from daemon.api.operations.content import Add
from daemon.api.operations.events import Event
from daemon.cli import forms, root
from daemon.cli.inspect import log_line
from daemon.cli.text import json_text
from daemon.logs import MAX_LINE_CHARS, as_json, as_line

ODD_NAME = os.fsdecode(b"caf\xe9")
ANYTHING = st.text(st.characters(exclude_categories=()))  # surrogates too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | ANYTHING,
    lambda inner: st.lists(inner) | st.dictionaries(ANYTHING, inner),
    max_leaves=8,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@given(JSON)
def test_whatever_goes_out_is_json_that_anybody_can_read(value):
    assert msgspec.json.decode(jsons.encode(value)) == jsons._escaped(value)


@given(JSON)
def test_what_utf_8_can_hold_goes_out_as_it_is(value):
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return
    assert json.loads(jsons.encode(value)) == value


@given(JSON)
def test_json_on_a_terminal_is_printable_ascii_and_in_a_pipe_it_is_utf_8(value):
    shown = json_text(value, Terminal())
    assert shown.isascii() and shown.isprintable()
    assert json.loads(shown) == json.loads(json_text(value, io.StringIO()).encode()) == value


def test_json_in_a_pipe_keeps_its_letters():
    assert json_text("grüße", io.StringIO()) == '"grüße"'


def test_a_result_with_what_a_terminal_obeys_is_harmless_there(monkeypatch):
    for stream in (terminal := Terminal(), pipe := io.StringIO()):
        monkeypatch.setattr("sys.stdout", stream)
        forms.show({"name": "\x9b31mred\u202e"}, as_json=True)
    assert terminal.getvalue() == '{"name": "\\u009b31mred\\u202e"}\n'
    assert "\x9b" in pipe.getvalue()


def test_a_json_log_line_is_harmless_on_a_terminal(monkeypatch):
    line = '{"level":"info","text":"\x9b31m"}\n'
    assert log_line(line, as_json=True) == line.rstrip()
    monkeypatch.setattr("sys.stdout", Terminal())
    assert log_line(line, as_json=True) == '{"level": "info", "text": "\\u009b31m"}'
    assert log_line("\x9bno json", as_json=True) == "no json"


def logged(**more):
    return {"time": "2026-11-22T07:00:00.000Z", "level": "error", "event": "failed", **more}


def test_a_traceback_in_the_foreground_moves_no_cursor():
    trace = "Traceback\n  line\nValueError: \x1b]0;pwn\x07\x1b[2J"
    assert (
        as_line(None, "", logged(exception=trace)) == "07:00:00 error: failed\nTraceback\n  line\nValueError: ]0;pwn[2J"
    )


def test_an_odd_name_is_logged():
    assert json.loads(as_json(None, "", logged(folder=ODD_NAME)))["folder"] == r"caf\udce9"


async def listing(_node: object, _params: Nothing) -> AsyncIterator[Result]:
    yield Event(id=1, unix_s=1.0, kind="adapter_skipped", fields={"folder": ODD_NAME})
    yield Event(id=2, unix_s=1.0, kind="later", fields={})


async def missing(_node: object, _params: Nothing) -> Event:
    raise FileNotFoundError(2, "No such file", ODD_NAME)


async def test_an_odd_name_ends_no_stream_and_no_answer(home, ask, monkeypatch):
    about = {"noun": "t", "summary": "Test.", "params": Nothing, "result": Event}
    table = {
        "t/listing": Operation(verb="listing", handler=listing, is_stream=True, **about),
        "t/missing": Operation(verb="missing", handler=missing, **about),
    }
    monkeypatch.setattr(face, "operations", lambda: table)
    async with face.control_served(SimpleNamespace(), home):
        lines = (await trio.to_thread.run_sync(ask, "/v1/t/listing")).lines
        answer = await trio.to_thread.run_sync(ask, "/v1/t/missing")
    assert [line["kind"] for line in lines] == ["adapter_skipped", "later"]
    assert lines[0]["fields"] == {"folder": r"caf\udce9"}
    assert answer.json["error"]["text"] == r"there is no file caf\udce9"


async def test_a_request_with_an_odd_name_is_refused_clearly(home, ask, monkeypatch):
    handler = Operation(noun="t", verb="id", summary="Test.", params=Add, result=Event, handler=missing)
    monkeypatch.setattr(face, "operations", lambda: {"t/id": handler})
    async with face.control_served(SimpleNamespace(), home):
        answer = await trio.to_thread.run_sync(ask, "/v1/t/id", {"path": ODD_NAME})
    assert answer.status == 400
    assert answer.json["error"]["text"] == "a name in the request is not UTF-8; rename that file or folder"


def test_an_odd_name_is_refused_in_one_line_that_names_it(capsys):
    assert root.run(["add", ODD_NAME]) == faults.EXIT_USAGE
    assert r"Error: caf\xe9 is not UTF-8; rename the file, or give the folder that it is in" in capsys.readouterr().err


@pytest.mark.parametrize("as_json_", [True, False])
def test_an_error_in_json_is_harmless_on_a_terminal(monkeypatch, as_json_):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    root._complain(faults.Fault("failed", "\x9b31m\u202e", ""), as_json=as_json_)
    assert terminal.getvalue().rstrip("\n").isprintable()


def test_a_line_that_is_too_long_for_the_log_keeps_both_ends_of_what_it_says():
    event = {
        "time": "t",
        "level": "warning",
        "event": "service_restarts",
        "error": "KeyError: x",
        "exception": "a" * 40_000 + "z",
    }
    line = as_json(None, "", event)
    read = msgspec.json.decode(line)
    assert len(line) <= MAX_LINE_CHARS and read["error"] == "KeyError: x" and read["cut_chars"] > 40_000
    assert read["exception"].startswith("aaa") and read["exception"].endswith("aaz")
