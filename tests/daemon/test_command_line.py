"""The command line against a daemon that a thread plays on a real socket: what it sends, prints and exits with."""

import http.server
import io
import json
import os
import socketserver
import sys
import threading
from pathlib import Path

import pytest

from daemon.api import faults
from daemon.cli import root
from daemon.paths import Home, make_home


class FakeDaemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers each operation with what the test put into `answers`: (status, list of JSON lines or bytes)."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.answers: dict[str, tuple[int, object]] = {}
        self.asked: list[tuple[str, object]] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeDaemon

    def do_POST(self):
        name = self.path.removeprefix("/v1/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((name, json.loads(body)))
        status, answer = self.server.answers[name]
        if answer == b"cut off":
            self.cut_off()
            return
        raw = answer if isinstance(answer, bytes) else b"".join(json.dumps(line).encode() + b"\n" for line in answer)
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def cut_off(self):
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Covey-Answer", "this one")
        self.end_headers()
        line = b'{"id": 1, "unix_s": 0, "kind": "a", "fields": {}}\n'
        self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        self.close_connection = True

    def address_string(self):
        return "socket"

    def log_message(self, *args):
        pass


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    home = Home(tmp_path / "home")
    make_home(home)
    monkeypatch.setenv("COVEY_HOME", str(home.root))
    monkeypatch.chdir(tmp_path)
    with FakeDaemon(home.socket) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def covey(capsysbinary):
    def run(*arguments):
        code = root.run(list(arguments))
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


def error(code, text="no", hint="do this"):
    return [{"error": {"code": code, "text": text, "hint": hint}}]


def test_parameters_are_sent_by_their_types(daemon, covey):
    daemon.answers["peer/trust"] = (200, [{"peer": "ann", "trusted": ["adapters", "ask"]}])
    assert covey("peer", "trust", "ann", "--kinds", "adapters, ask") == (
        0,
        "ann is now trusted with: adapters, ask\n",
        "",
    )
    daemon.answers["peer/ls"] = (200, [[]])
    assert covey("peer", "ls", "--json") == (0, "[]\n", "")
    assert daemon.asked == [("peer/trust", {"peer": "ann", "kinds": ["adapters", "ask"]}), ("peer/ls", {})]


def test_paths_are_made_absolute_and_flags_are_sent(daemon, covey, tmp_path):
    daemon.answers["content/add"] = (200, [{"type": "added", "cid": "bafy", "name": "x", "size_bytes": 1}])
    code, out, _ = covey("add", "x", "--no-pinned", "--visibility", "public")
    assert (code, out) == (0, "bafy  x\n")
    assert daemon.asked == [("content/add", {"path": str(tmp_path / "x"), "is_pinned": False, "visibility": "public"})]


def test_what_is_added_and_seen_by_nobody_else_is_told_so_where_that_was_not_asked_for(daemon, covey):
    added = {"type": "added", "cid": "bafy", "name": "x", "visibility": "private", "is_stored": True, "warnings": []}
    daemon.answers["content/add"] = (200, [added])
    note = "only this node sees it; to let others have it: covey share bafy --visibility public\n"
    assert covey("add", "x") == (0, "bafy  x\n", note)
    assert covey("add", "x", "--visibility", "private") == (0, "bafy  x\n", "")
    assert covey("add", "x", "--json")[2] == ""
    for other in ({"visibility": "flock"}, {"is_stored": False}):
        daemon.answers["content/add"] = (200, [added | other])
        assert covey("add", "x") == (0, "bafy  x\n", "")


def test_a_car_is_named_after_its_content_or_goes_to_stdout(daemon, covey, tmp_path):
    done = {
        "type": "exported",
        "cid": "bafy",
        "out": "/x",
        "n_blocks": 2,
        "size_bytes": 9,
        "n_missing": 1,
        "missing": ["b"],
    }
    daemon.answers["car/export"] = (200, [done])
    daemon.answers["car/read"] = (200, b"the bytes")
    code, out, _ = covey("car", "export", "bafy/song/", "--version", "2")
    assert (code, out.splitlines()[0]) == (0, "bafy  2 blocks, 9 B -> /x") and "left out" in out
    assert covey("car", "export", "bafy", "--out", "-", "--offline") == (0, "the bytes", "")
    assert covey("car", "export", "bafy", "--out", "-", "--json")[0] == faults.EXIT_USAGE
    assert covey("car", "export", "bafy", "--version", "3")[0] == faults.EXIT_USAGE
    assert daemon.asked == [
        ("car/export", {"reference": "bafy/song/", "version": 2, "out": str(tmp_path / "song.car")}),
        ("car/read", {"reference": "bafy", "is_offline": True}),
    ]


def test_stdin_goes_by_a_file_that_is_gone_afterwards(daemon, covey, monkeypatch):
    seen = []
    daemon.answers["content/add"] = (200, [{"type": "added", "cid": "bafy", "name": "stdin", "size_bytes": 1}])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe")))
    append = daemon.asked.append
    monkeypatch.setattr(
        daemon,
        "asked",
        type("Spy", (), {"append": lambda _, item: (seen.append(Path(item[1]["path"]).read_bytes()), append(item))})(),
    )
    assert covey("add", "-")[0] == 0
    assert seen == [b"from a pipe"]
    assert not list(Path(root.home_from({"COVEY_HOME": str(Path.cwd() / "home")}).scratch).iterdir())


def test_content_goes_to_stdout_as_it_is(daemon, covey):
    daemon.answers["content/cat"] = (200, b"\x00\x01raw")
    assert covey("cat", "bafy") == (0, "\x00\x01raw", "")
    assert covey("get", "bafy", "--out", "-") == (0, "\x00\x01raw", "")
    assert covey("cat", "bafy", "--offset", "3", "--length", "0") == (0, "\x00\x01raw", "")
    assert [asked for _, asked in daemon.asked] == [
        {"reference": "bafy"},
        {"reference": "bafy"},
        {"reference": "bafy", "offset": 3, "length": 0},
    ]


def test_how_a_file_is_added_is_sent_as_it_was_said(daemon, covey):
    daemon.answers["content/add"] = (200, [{"type": "added", "cid": "bafy", "name": "x", "size_bytes": 1}])
    assert covey("add", "x", "--chunker", "rabin", "--no-raw-leaves", "--cid-version", "0", "--preserve-mode")[0] == 0
    assert covey("add", "x", "--layout", "trickle", "--raw-leaves", "--only-hash", "--preserve-mtime")[0] == 0
    first, second = [{name: value for name, value in asked.items() if name != "path"} for _, asked in daemon.asked]
    assert first == {"chunker": "rabin", "raw_leaves": False, "cid_version": 0, "preserve_mode": True}
    assert second == {"layout": "trickle", "raw_leaves": True, "only_hash": True, "preserve_mtime": True}


def test_a_json_text_goes_to_stdout_with_json_or_without(daemon, covey):
    daemon.answers["dag/get"] = (200, b'{"a":1}')
    assert covey("dag", "get", "bafy/x") == covey("dag", "get", "bafy/x", "--json") == (0, '{"a":1}\n', "")
    assert covey("block", "get", "bafy", "--json")[0] == faults.EXIT_USAGE


def test_what_makes_or_finds_a_cid_prints_it_alone(daemon, covey, tmp_path):
    for name in ("block/put", "dag/put"):
        daemon.answers[name] = (200, [{"cid": "bafy", "n_bytes": 1}])
    daemon.answers["cid/convert"] = (200, [{"cid": "bafy"}])
    daemon.answers["dag/resolve"] = (200, [{"cid": "bafy", "path": "a/\x1b[2J"}])
    assert covey("block", "put", "x", "--codec", "dag-cbor", "--no-pinned") == (0, "bafy\n", "")
    assert covey("dag", "put", "x", "--store-codec", "dag-pb", "--hash", "blake3") == (0, "bafy\n", "")
    assert covey("cid", "convert", "Qm", "--version", "1", "--base", "base36") == (0, "bafy\n", "")
    code, out, _ = covey("dag", "resolve", "bafy/x")
    assert code == 0 and out.startswith("bafy/a/") and "\x1b" not in out
    path = str(tmp_path / "x")
    assert daemon.asked == [
        ("block/put", {"path": path, "codec": "dag-cbor", "is_pinned": False}),
        ("dag/put", {"path": path, "store_codec": "dag-pb", "hash": "blake3"}),
        ("cid/convert", {"cid": "Qm", "version": 1, "base": "base36"}),
        ("dag/resolve", {"reference": "bafy/x"}),
    ]
    for wrong in (("block", "put", "x", "--codec", "xml"), ("cid", "convert", "Qm", "--base", "base1")):
        assert covey(*wrong)[0] == faults.EXIT_USAGE


GOT = {"type": "got", "cid": "bafy", "out": "/w/b.txt", "fetched_bytes": 2048, "n_providers": 1, "took_s": 0.5}
GOT |= {"visibility": "public"}


def test_get_writes_by_name_into_the_working_folder(daemon, covey, tmp_path):
    daemon.answers["content/get"] = (200, [{"step": "fetching", "n_done": 1, "type": "progress"}, GOT])
    assert covey("get", "bafy/sub/b.txt")[:2] == (0, "bafy  fetched 2.0 KiB from 1 peer in 0.5 s -> /w/b.txt\n")
    assert covey("get", "bafy", "--out", "elsewhere")[0] == 0
    assert [asked[1]["out"] for asked in daemon.asked] == [str(tmp_path / "b.txt"), str(tmp_path / "elsewhere")]
    daemon.answers["content/get"] = (200, [GOT | {"visibility": "private"}])
    assert "not passed on to others; to do so: covey share bafy --visibility public" in covey("get", "bafy")[1]


def test_results_stay_on_stdout_while_a_bar_is_drawn_on_the_terminal(daemon, covey, monkeypatch):
    daemon.answers["content/get"] = (200, [{"step": "fetching", "n_done": 1, "type": "progress"}, GOT])
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal, os.fdopen(master, "rb"):
        monkeypatch.setattr(sys, "stderr", terminal)
        assert covey("get", "bafy", "--json")[1].count("\n") == 2
        assert covey("get", "bafy")[1] == "bafy  fetched 2.0 KiB from 1 peer in 0.5 s -> /w/b.txt\n"


def test_a_stream_that_ends_without_a_result_is_a_failure(daemon, covey):
    daemon.answers["content/get"] = (200, [{"step": "fetching", "n_done": 1, "type": "progress"}])
    code, out, err = covey("get", "bafy")
    assert (code, out) == (1, "")
    assert "the daemon stopped before it had answered" in err


@pytest.mark.parametrize(
    ("options", "n_tokens", "said"),
    [((), 256, "--max-tokens"), (("--max-tokens", "600"), 512, "half of the model's context")],
)
def test_an_answer_that_was_cut_says_by_what(daemon, covey, options, n_tokens, said):
    finished = {"type": "finished", "reason": "length", "n_tokens": n_tokens, "cache": "none"}
    daemon.answers["ask/say"] = (200, [{"type": "token", "text": "So"}, finished])
    code, out, err = covey("ask", "why?", *options)
    assert (code, out) == (0, "So\n") and said in err


def test_a_stream_that_is_cut_off_is_a_failure(daemon, covey):
    daemon.answers["events/read"] = (200, b"cut off")
    code, _, err = covey("events")
    assert code == 1
    assert "the daemon stopped before it had answered" in err


def test_content_that_is_cut_off_says_why(daemon, covey):
    """Half of it has gone out: the reason stands in the daemon's events."""
    daemon.answers["content/cat"] = (200, b"cut off")
    fields = {"operation": "content/cat", "code": "corrupt_block", "text": "the block bafy has changed on disk"}
    event = {"id": 1, "unix_s": 0.0, "kind": "answer_cut_short", "fields": fields | {"answer": "this one"}, "names": {}}
    other = event | {"id": 2, "fields": fields | {"answer": "another", "text": "of somebody else"}}
    daemon.answers["events/read"] = (200, [event, other])
    code, _, err = covey("cat", "bafy")
    assert code == 1 and "what came is not all: the block bafy has changed on disk" in err
    daemon.answers["events/read"] = (200, [])
    assert "what came is not all: the daemon broke off" in covey("cat", "bafy")[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("artifact", "publish", "x", "--kind", "model"), "Missing option '--name'"),
        (("train", "x", "--name", "a", "--rank", "0"), "expected a whole number >= 1"),
        (("train", "x", "--name", "a", "--learning-rate", "nan"), "expected a number"),
        (("train", "x", "--name", "a/b"), "letters, digits, dots, dashes"),
        (("peer", "trust", "ann", "--kinds", "adapters,foo"), "choose from adapters, rounds"),
        (("fl", "plan", "--rounds", "x"), "expected a whole number\n"),
        (("fl", "result", "bafy", "--as-adapter", "../x"), "letters, digits, dots, dashes"),
        (("add", ""), "a path cannot be empty"),
        (("add", "x", "--layout", "flat"), "'balanced', 'trickle'"),
        (("cat", "bafy", "--offset", "-1"), "expected a whole number >= 0"),
    ],
)
def test_values_that_cannot_be_are_told_before_anything_is_sent(daemon, covey, arguments, said):
    code, _, err = covey(*arguments)
    assert code == 2
    assert said in err
    assert daemon.asked == []


@pytest.mark.parametrize("arguments", [("add",), ("fl", "plan"), ("fl", "join", "bafy", "--data"), ("fl", "verify")])
def test_a_pipe_or_a_device_is_not_opened_by_the_daemon_which_would_wait_or_read_for_ever(
    daemon, covey, tmp_path, arguments
):
    os.mkfifo(tmp_path / "pipe")
    for path in ("pipe", "/dev/zero"):
        code, _, err = covey(*arguments, path)
        assert code == faults.EXIT_USAGE
        assert f"{path} is neither a file nor a folder" in err
    assert daemon.asked == []


def test_a_folder_is_listed_by_cid_size_and_name(daemon, covey):
    entries = [
        {"name": "a\x1b.txt", "cid": "bafk", "size_bytes": 1536},
        {"name": "b", "cid": "bafy", "size_bytes": None, "kind": "folder"},
    ]
    daemon.answers["content/ls"] = (200, [{"cid": "bafy", "entries": entries}])
    assert covey("ls", "bafy")[1] == "bafk     1.5 KiB  a\\x1b.txt\nbafy           -  b/\n"


def test_that_nobody_provides_something_is_said(daemon, covey):
    daemon.answers["net/providers"] = (200, [[]])
    assert "covey get" in covey("net", "providers", "bafy")[1]
    assert covey("net", "providers", "bafy", "--json")[1] == "[]\n"


def test_events_are_lines_with_ids(daemon, covey):
    daemon.answers["events/read"] = (
        200,
        [{"id": 3, "unix_s": 0, "kind": "peer_connected", "fields": {"peer": "12D3"}}],
    )
    code, out, _ = covey("events", "--since", "2")
    assert code == 0
    assert out.split()[0] == "3"
    assert "peer_connected  peer=12D3" in out
    assert daemon.asked == [("events/read", {"since": 2})]


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (403, "untrusted", faults.EXIT_REFUSED),
        (404, "unknown_name", faults.EXIT_NOT_FOUND),
        (409, "unfit", faults.EXIT_FAILED),
        (409, "target_exists", faults.EXIT_FAILED),
        (500, "internal", faults.EXIT_FAILED),
        (504, "timed_out", faults.EXIT_FAILED),
    ],
)
def test_errors_are_a_line_a_hint_and_an_exit_code(daemon, covey, status, code, exit_code):
    daemon.answers["peer/ls"] = (status, error(code, "no\x1b[2J"))
    assert covey("peer", "ls") == (exit_code, "", "covey: no[2J\n  do this\n")
    got, out, err = covey("peer", "ls", "--json")
    assert (got, out) == (exit_code, "")
    assert json.loads(err)["error"]["code"] == code


def test_an_error_at_the_end_of_a_stream_counts(daemon, covey):
    daemon.answers["pin/add"] = (200, [{"step": "fetching", "n_done": 1}, *error("untrusted")])
    code, _, err = covey("pin", "add", "bafy")
    assert code == faults.EXIT_REFUSED
    assert "covey: no" in err


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": 5}', b"\xff"])
def test_an_answer_that_is_nonsense_is_no_crash(daemon, covey, body):
    daemon.answers["peer/ls"] = (500, body)
    code, _, err = covey("peer", "ls")
    assert code == faults.EXIT_FAILED
    assert err.startswith("covey: ")


def test_no_daemon_is_one_line_and_exit_code_three(tmp_path, covey, monkeypatch):
    monkeypatch.setenv("COVEY_HOME", str(tmp_path / "none"))
    line = f"covey: the daemon is not running in {tmp_path / 'none'}. Start it: covey up\n"
    for command in (["status"], ["peer", "ls"], ["events"], ["add", "x"]):
        assert covey(*command) == (faults.EXIT_NOT_RUNNING, "", line)


def test_a_home_that_is_no_folder_is_named(covey, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = covey("--home", str(tmp_path / "file"), "fl", "status")
    assert code == 1 and err.startswith(f"covey: {tmp_path / 'file'}/control.sock: Not a directory\n")


def test_a_socket_that_nobody_listens_on_is_no_daemon(daemon, covey, tmp_path, monkeypatch):
    home = Home(tmp_path / "dead")
    make_home(home)
    from daemon.api.http import control_socket

    control_socket(home).close()
    monkeypatch.setenv("COVEY_HOME", str(home.root))
    assert covey("status")[0] == faults.EXIT_NOT_RUNNING


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["peer", "trust"], ["peer", "trust", "a", "--kinds"], ["add"], ["events", "--since", "x"]],
)
def test_a_wrong_command_line_is_exit_code_two(daemon, covey, arguments):
    code, _, err = covey(*arguments)
    assert code == faults.EXIT_USAGE
    assert "Usage" in err or "requires an argument" in err


def test_settings_are_shown_read_and_changed(daemon, covey):
    assert covey("config", "set", "network.port", "4710")[:2] == (0, "network.port = 4710\n")
    assert covey("config", "get", "network.port") == (0, "4710\n", "")
    assert "port = 4710" in covey("config", "show")[1]
    code, _, err = covey("config", "set", "storage.quota_gb", "-1")
    assert code == 1 and "nothing is changed: storage.quota_gb cannot be -1; allowed is 0, and from 0.1 to" in err
    code, _, err = covey("config", "set", "network.prt", "1")
    assert code == faults.EXIT_FAILED
    assert "did you mean network.port?" in err


def test_doctor_finds_nothing_wrong_in_a_new_home_and_says_what_to_do(tmp_path, covey, monkeypatch):
    monkeypatch.setenv("COVEY_HOME", str(tmp_path / "new"))
    code, out, _ = covey("doctor")
    assert code == 0
    assert "covey init" in out
    assert "covey up" in out


def test_doctor_fails_with_a_bad_config_or_an_open_home(tmp_path, covey, monkeypatch):
    home = Home(tmp_path / "bad")
    make_home(home)
    home.config.write_text("[nonsense]\n")
    home.root.chmod(0o755)
    monkeypatch.setenv("COVEY_HOME", str(home.root))
    code, out, _ = covey("doctor", "--json")
    levels = {finding["check"]: finding["level"] for finding in json.loads(out)}
    assert code == faults.EXIT_FAILED
    assert (levels["home"], levels["config"]) == ("fail", "fail")


def test_init_makes_a_node_once(tmp_path, covey, monkeypatch):
    monkeypatch.setenv("COVEY_HOME", str(tmp_path / "fresh"))
    first = json.loads(covey("init", "--json")[1])
    again = json.loads(covey("init", "--json")[1])
    assert (first["is_new"], again["is_new"]) == (True, False)
    code, out, err = covey("id")
    assert (code, out.strip()) == (0, first["peer"]) and first["peer"] == again["peer"]
    assert err == "the node does not run; its addresses are known while it does: covey up\n"
    assert covey("id", "--json")[2] == ""


def test_init_with_a_key_that_cannot_be_used_makes_no_node_that_would_be_open_to_everybody(
    tmp_path, covey, monkeypatch
):
    monkeypatch.setenv("COVEY_HOME", str(tmp_path / "new"))
    (tmp_path / "damaged").write_text("no key")
    for name in ("damaged", "nowhere"):
        assert covey("init", "--flock", str(tmp_path / name))[0] == 1
    assert not (tmp_path / "new").exists()


def test_every_command_has_help_and_json(covey):
    import click

    def check(command, words):
        assert command.help, words
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                check(command.get_command(click.Context(command), name), (*words, name))
        elif words[0] not in ("chat", "demo", "mcp"):
            assert "as_json" in {parameter.name for parameter in command.params}, words

    for name in root.covey.list_commands(click.Context(root.covey)):
        try:
            command = root.covey.get_command(click.Context(root.covey), name)
        except ModuleNotFoundError:
            continue
        check(command, (name,))
