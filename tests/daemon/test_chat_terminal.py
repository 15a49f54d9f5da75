"""`covey chat` as a process: on a pseudo-terminal and on pipes, against a scripted daemon on a real socket."""

import contextlib
import http.server
import json
import os
import select
import signal
import socketserver
import stat
import subprocess
import sys
import threading
import time

import pytest

pytestmark = pytest.mark.e2e

LIMIT_S = 60.0
KJV = {"name": "kjv", "version": 3, "cid": "bafykjv3", "publisher": "bob", "folder": "/a"}
FINISHED = {
    "type": "finished",
    "reason": "stop",
    "n_prompt_tokens": 12,
    "n_tokens": 8,
    "first_token_s": 0.05,
    "total_s": 0.4,
    "n_forgotten_turns": 0,
}


class Daemon:
    """Answers the operations of a chat. A message of `hang` is begun and never ended; `news` is told to followers."""

    def __init__(self, socket_path):
        self.calls = []
        self.left = threading.Event()  # a client went away in mid-answer
        self.followed = threading.Event()
        self.news = threading.Event()
        self.on_new_adapter = "switch"
        self.forgets = False
        daemon = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                params = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = self.path.removeprefix("/v1/")
                daemon.calls.append((name, params))
                daemon.answer(self, name, params)

            def address_string(self):
                return "cli"

            def log_message(self, *_):
                pass

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False

        self.server = Server(str(socket_path), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def names(self):
        return [name for name, _ in self.calls]

    def answer(self, handler, name, params):
        if self.forgets and name != "chat/open":
            self.forgets = False
            return self.reply(handler, {"error": {"code": "unknown_chat", "text": "gone", "hint": ""}}, 404)
        match name:
            case "chat/open" | "chat/status" | "chat/use" | "chat/agree":
                self.reply(handler, self.status())
            case "chat/adapters":
                self.reply(handler, {"adapters": [KJV]})
            case "chat/say":
                self.say(handler, params["text"])
            case "chat/news":
                self.stream(handler, [])
                self.followed.set()
                self.news.wait(LIMIT_S)
                with contextlib.suppress(OSError):
                    self.write(handler, {"type": "arrived", "adapter": KJV})
                    handler.connection.recv(1)
            case _:
                self.reply(handler, {"text": "done"})
        return None

    def status(self):
        return {
            "chat": "c1",
            "model": "smollm2",
            "n_params": 134_515_008,
            "context_tokens": 8192,
            "policy": "latest",
            "answering": None,
            "next": None,
            "on_new_adapter": self.on_new_adapter,
            "n_turns": 0,
            "indexes": [],
        }

    def say(self, handler, text):
        if text == "fail":
            return self.reply(
                handler, {"error": {"code": "engine_missing", "text": "no engine", "hint": "pip it"}}, 503
            )
        if text == "die":
            return self.stream(handler, [{"type": "failed", "code": "engine_died", "text": "the engine died"}])
        self.stream(handler, [{"type": "token", "text": f"You said \x1b[31m{text}"}])
        if text == "hang":
            if handler.connection.recv(1) == b"":
                self.left.set()
            return None
        self.write(handler, {"type": "token", "text": "."})
        return self.write(handler, FINISHED)

    def reply(self, handler, item, code=200):
        body = json.dumps(item).encode()
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def stream(self, handler, items):
        handler.send_response(200)
        handler.end_headers()
        for item in items:
            self.write(handler, item)

    def write(self, handler, item):
        handler.wfile.write(json.dumps(item).encode() + b"\n")


class Terminal:
    """A process on a pseudo-terminal of 24 x 100."""

    def __init__(self, environment):
        self.master, slave = os.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daemon.cli.main", "chat"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = ""

    def type(self, keys):
        os.write(self.master, keys.encode())

    def until(self, text):
        """Read until `text` has come since the last call; return what came."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.seen:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{text!r} did not come; there is {self.seen!r}"
            if select.select([self.master], [], [], left_s)[0]:
                try:
                    data = os.read(self.master, 4096)
                except OSError:
                    data = b""
                assert data, f"the program ended before {text!r}; there is {self.seen!r}"
                self.seen += data.decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def until_prompt(self, prompt="you>"):
        """Read until a line can be typed anew; return what came. A prompt is redrawn as one types, begun only once."""
        return self.until("\x1b[?2004h") + self.until(prompt)

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def environment(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    keep = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COVEY_HOME")}
    return keep | {"COVEY_HOME": str(home), "TERM": "xterm-256color", "INPUTRC": "/dev/null", "PYTHONWARNINGS": ""}


@pytest.fixture
def covey_daemon(tmp_path, environment):
    daemon = Daemon(tmp_path / "home" / "control.sock")
    yield daemon
    daemon.news.set()
    daemon.server.shutdown()
    daemon.server.server_close()


@pytest.fixture
def start(environment, covey_daemon):
    started = []

    def start_():
        started.append(Terminal(environment))
        return started[-1]

    yield start_
    for terminal in started:
        terminal.end()


def run(environment, *arguments, stdin=""):
    return subprocess.run(
        [sys.executable, "-m", "daemon.cli.main", "chat", *arguments],
        input=stdin,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def test_a_conversation_on_a_terminal(start, covey_daemon, tmp_path):
    terminal = start()
    assert "smollm2 (135 M parameters)" in terminal.until_prompt()
    terminal.type("hello\r")
    answer = terminal.until_prompt()
    assert "base>" in answer and "You said [31mhello." in answer
    terminal.type("/stats\r")
    assert "8 written, 12 read" in terminal.until_prompt()
    terminal.type("/exit\r")
    assert terminal.process.wait(LIMIT_S) == 0
    assert covey_daemon.names()[-1] == "chat/close"
    history = tmp_path / "home" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "hello" in history.read_text()


def test_ctrl_c_stops_the_answer_and_not_the_chat(start, covey_daemon):
    terminal = start()
    terminal.until_prompt()
    terminal.type("hang\r")
    terminal.until("You said")
    terminal.type("\x03")
    assert "stopped" in terminal.until_prompt()
    assert covey_daemon.left.wait(LIMIT_S)
    terminal.type("again\r")
    assert "again." in terminal.until_prompt()


def test_ctrl_c_at_the_prompt_drops_the_line_and_ctrl_d_leaves(start, covey_daemon):
    terminal = start()
    terminal.until_prompt()
    terminal.type("half a li")
    terminal.until("half a li")
    terminal.type("\x03")
    terminal.until("/exit or Ctrl-D")
    terminal.until_prompt()
    terminal.type("\x04")
    assert terminal.process.wait(LIMIT_S) == 0
    assert "chat/say" not in covey_daemon.names()


def test_history_comes_back_in_the_next_chat(start):
    first = start()
    first.until_prompt()
    first.type("remember me\r")
    first.until("remember me.")
    first.process.send_signal(signal.SIGKILL)
    second = start()
    second.until_prompt()
    second.type("\x1b[A\r")
    assert "You said [31mremember me." in second.until("remember me.")


def test_tab_completes_commands_and_names(start):
    terminal = start()
    terminal.until_prompt()
    terminal.type("/us\tkj\t\r")
    assert "/use kjv" in terminal.until("from the next message on")


def test_news_comes_above_the_line_that_is_being_typed(start, covey_daemon):
    terminal = start()
    terminal.until_prompt()
    assert covey_daemon.followed.wait(LIMIT_S)
    terminal.type("hel")
    terminal.until("hel")
    covey_daemon.news.set()
    shown = terminal.until("from your next message on")
    assert "kjv v3 by bob has arrived" in shown
    terminal.until("hel")  # the line comes back below
    terminal.type("lo\r")
    assert "You said [31mhello." in terminal.until_prompt()


def test_news_and_ctrl_c_at_the_same_moment_harm_nothing(start, covey_daemon):
    terminal = start()
    terminal.until_prompt()
    assert covey_daemon.followed.wait(LIMIT_S)
    terminal.type("half")
    terminal.until("half")
    covey_daemon.news.set()
    terminal.type("\x03")
    shown = terminal.until("/exit or Ctrl-D")
    if "kjv v3 by bob has arrived" not in shown:
        terminal.until("kjv v3 by bob has arrived")
    terminal.type("still here\r")
    terminal.until("still here.")


def test_news_in_mid_answer_waits_for_the_next_prompt(start, covey_daemon):
    terminal = start()
    terminal.until_prompt()
    assert covey_daemon.followed.wait(LIMIT_S)
    terminal.type("hang\r")
    terminal.until("You said")
    covey_daemon.news.set()
    terminal.type("\x03")
    shown = terminal.until("kjv v3 by bob has arrived")
    assert "stopped" in shown


def test_lines_that_are_pasted_are_one_message(start, covey_daemon):
    terminal = start()
    terminal.until_prompt()
    terminal.type("\x1b[200~one\rtwo\x1b[201~\r")
    terminal.until("two.")
    assert ("chat/say", {"chat": "c1", "text": "one\ntwo"}) in covey_daemon.calls


def test_a_chat_that_asks_asks_at_the_next_prompt(start, covey_daemon):
    covey_daemon.on_new_adapter = "ask"
    terminal = start()
    terminal.until_prompt()
    assert covey_daemon.followed.wait(LIMIT_S)
    covey_daemon.news.set()
    terminal.until("has arrived")
    terminal.type("hi\r")
    terminal.until_prompt("switch to kjv v3 by bob? [y/N]")
    terminal.type("y\r")
    terminal.until_prompt()
    assert covey_daemon.names()[-1] == "chat/agree"


def test_errors_are_told_and_the_chat_goes_on(start, covey_daemon):
    terminal = start()
    terminal.until_prompt()
    terminal.type("fail\r")
    shown = terminal.until_prompt()
    assert "error: no engine" in shown and "pip it" in shown
    terminal.type("die\r")
    assert "error: the engine died" in terminal.until_prompt()
    covey_daemon.forgets = True
    terminal.type("still there?\r")
    shown = terminal.until("there?.")
    assert "no longer had this chat" in shown


def test_one_prompt_from_the_command_line(environment, covey_daemon):
    done = run(environment, "-p", "hello", "--adapter", "none", "--max-tokens", "7")
    assert (done.returncode, done.stdout, done.stderr) == (0, "You said [31mhello.\n", "")
    assert covey_daemon.calls[0] == ("chat/open", {"adapter": "none", "max_tokens": 7, "temperature": 0.0})
    assert covey_daemon.names()[-1] == "chat/close"


def test_one_prompt_that_fails_ends_with_an_error(environment, covey_daemon):
    done = run(environment, "--once", "die")
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "error: the engine died\n  the next message starts it again; see why: covey logs\n",
    )
    done = run(environment, "--once", "fail")
    assert done.returncode == 1 and done.stderr.startswith("covey: no engine\n")


def test_json_gives_the_events_as_lines(environment, covey_daemon):
    done = run(environment, "--once", "hello", "--json")
    items = [json.loads(line) for line in done.stdout.splitlines()]
    assert [item["type"] for item in items] == ["token", "token", "finished"]


def test_lines_from_a_pipe_are_answered_one_by_one(environment, covey_daemon):
    done = run(environment, stdin="one\ndie\n/nonsense\n\ntwo\n")
    assert done.stdout == "You said [31mone.\nYou said [31mtwo.\n"
    assert "the engine died" in done.stderr and "/nonsense" in done.stderr
    assert done.returncode == 1


def test_without_a_daemon_it_says_what_to_do(environment):
    done = run(environment, "-p", "hello")
    assert done.returncode == 3
    assert "covey up" in done.stderr
