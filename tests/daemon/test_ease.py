"""What people read: helps, summaries, tables that fit, and what an empty list says."""

import json

import click
import msgspec
import pytest

from daemon.api import faults
from daemon.api.operation import operations
from daemon.cli import beside, forms, root
from daemon.cli.generate import command_of
from daemon.cli.render import event_line
from daemon.cli.text import escaped
from daemon.cli.values import bare

MAX_SUMMARY_CHARS = 60
CID = "bafyreib" + "a" * 51
PEER = "12D3KooW" + "A" * 44
ROW = {
    "name": "psalms",
    "version": 1,
    "state": "refused",
    "publisher": PEER,
    "publisher_name": "ada",
    "is_own": False,
    "n_bytes": 1 << 20,
    "base": CID,
    "heard_unix_s": 0.0,
    "tags": [],
    "manifest": CID,
    "reason": "it is too big",
}


def answers(**of):
    return lambda name: of[name.replace("/", "_")]


def test_the_list_of_commands_cuts_no_summary_and_names_the_exit_codes(capsys):
    assert root.run(["--help"]) == faults.EXIT_OK
    out = capsys.readouterr().out
    assert "...\n" not in out.partition("Commands:")[2]
    for code, meaning in faults.EXITS.items():
        assert f"{code}" in out
        assert meaning in out


def test_every_noun_says_what_it_is_about_and_is_a_command(capsys):
    assert root.run(["--help"]) == faults.EXIT_OK
    out = capsys.readouterr().out
    assert "Work with" not in out
    for noun, line in root.NOUNS.items():
        assert len(line) <= MAX_SUMMARY_CHARS and f"{line}\n" in out
        assert root.run([noun, "--help"]) == faults.EXIT_OK
        assert f"{line[:40]}" in capsys.readouterr().out


@pytest.mark.parametrize("operation", [one for one in operations().values() if one.words], ids=lambda one: one.name)
def test_every_command_has_a_short_summary_and_tells_of_its_arguments(operation):
    assert len(operation.summary) <= MAX_SUMMARY_CHARS
    text = command_of(operation).get_help(click.Context(command_of(operation)))
    fields = {field.name: field for field in msgspec.structs.fields(operation.params)}
    for name in operation.arguments:
        meta = bare(fields[name].type)[1]
        assert meta and meta.description, name
        assert name.upper() in text.partition("Arguments:")[2]


def test_a_wrong_command_line_is_json_where_that_is_asked_for(capsys):
    assert root.run(["peer", "ls", "--nonsense", "--json"]) == faults.EXIT_USAGE
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "usage"
    assert root.run(["cat", CID, "--json"]) == faults.EXIT_USAGE
    assert "leave --json away" in json.loads(capsys.readouterr().err)["error"]["text"]


def test_adapters_fit_a_terminal_and_reasons_have_lines_of_their_own():
    lines = list(forms.FORMS["adapter/ls"]([ROW, ROW | {"reason": None, "publisher_name": None}]))
    assert max(map(len, lines)) < 120
    assert [" ada " in lines[1], lines[2], PEER[-8:] in lines[3]] == [True, "  it is too big", True]


def test_an_empty_list_of_adapters_says_what_is_missing():
    say = beside.BESIDE["adapter/ls"]
    trained = [
        {"name": "psalms", "is_finished": True, "is_published": False},
        {"name": "old", "is_finished": True, "is_published": True},
        {"name": "half", "is_finished": False, "is_published": False},
    ]
    nothing = {"training_ls": [], "peer_ls": [], "model_ls": []}
    assert "no adapter fits" in next(say(answers(**nothing), {"tag": "x"}, []))
    assert "covey model pull" in next(say(answers(**nothing), {}, []))
    assert "covey peer trust" in next(say(answers(**nothing | {"model_ls": [{}]}), {}, []))
    trusted = nothing | {"model_ls": [{}], "peer_ls": [{"trusted": ["adapters"]}]}
    assert "covey peer trust" not in next(say(answers(**trusted), {}, []))
    (line,) = say(answers(training_ls=trained), {}, [ROW])
    assert "psalms." in line
    assert "old" not in line


def test_events_shorten_ids_and_quote_texts():
    event = {"id": 1, "unix_s": 0, "kind": "x", "fields": {"peer": PEER, "cid": CID, "text": "it broke", "n": 2}}
    line = event_line(event)
    assert line.endswith(f'peer=…{PEER[-8:]} cid=…{CID[-8:]} text="it broke" n=2')


def test_events_call_a_peer_what_the_user_does():
    event = {"id": 1, "unix_s": 0, "kind": "x", "fields": {"peer": PEER}, "names": {"peer": "ada"}}
    assert event_line(event).endswith("peer=ada")


def test_warnings_go_to_stderr_and_the_result_stays_alone(capsys):
    forms.show({"cid": CID, "name": "x", "warnings": ["beware"]}, as_json=False, name="content/add")
    out, err = capsys.readouterr()
    assert (out, err) == (f"{CID}  x\n", "covey: warning: beware\n")


def test_what_was_published_before_is_told_so():
    result = {"name": "psalms", "version": 1, "n_bytes": 1, "visibility": "flock", "manifest": CID, "is_new": False}
    assert next(iter(forms.FORMS["adapter/publish"](result))).startswith("was published already as psalms v1")


def test_no_two_names_are_escaped_alike():
    names = ["a\x1b", "a\\x1b", "a", "a\u202e", "a\n", "a\\n", "grüße 🦜"]
    assert len({escaped(name) for name in names}) == len(names)
    assert escaped("a\x1b") == "a\\x1b"
    assert escaped("grüße 🦜") == "grüße 🦜"
