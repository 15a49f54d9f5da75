"""A server that speaks Anthropic's Messages API answers for an agent; what it does wrong is told in words."""

import http.server
import json
import threading

import pytest

from agents.engine.messages import Turn
from agents.errors import BackendBusy, BackendFailed, BackendRefused, BackendUnreachable
from agents.roster.anthropic import open_anthropic
from agents.roster.declaration import Model

TURNS = [Turn("system", "You are brief."), Turn("user", "What is a flock?")]
GOOD = {
    "content": [{"type": "text", "text": " many "}, {"type": "thinking"}, {"type": "text", "text": "birds"}],
    "model": "large-2",
    "stop_reason": "max_tokens",
    "usage": {"input_tokens": 11, "output_tokens": 2},
}


class Answers(http.server.BaseHTTPRequestHandler):
    status = 200
    body = b""
    asked: list

    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, dict(self.headers), sent))
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        try:
            self.wfile.write(self.body)
        except OSError:
            """The other side has heard enough."""

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Answers,), {"asked": [], "body": json.dumps(GOOD).encode()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


async def ask(url):
    wish = Model(kind="anthropic", url=url, name="large", temperature=2.0, timeout_s=20)
    async with open_anthropic(wish, "secret") as model:
        return await model.answer(TURNS, 99)


async def test_it_is_asked_in_its_own_form_and_its_usage_is_counted(server):
    handler, url = server
    answer = await ask(url)
    assert (answer.text, answer.reason, answer.model) == ("many birds", "length", "large-2")
    assert (answer.n_prompt_tokens, answer.n_tokens) == (11, 2)
    [(path, headers, sent)] = handler.asked
    assert path == "/v1/messages" and headers["x-api-key"] == "secret" and headers["anthropic-version"]
    assert sent == {
        "model": "large",
        "max_tokens": 99,
        "temperature": 1.0,
        "system": "You are brief.",
        "messages": [{"role": "user", "content": "What is a flock?"}],
    }


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (401, b'{"error": {"message": "no such key"}}', BackendRefused, "no such key"),
        (429, b"{}", BackendBusy, "too much to do"),
        (529, b"[]", BackendBusy, "too much to do"),
        (500, b"\xff", BackendFailed, "500"),
        (200, b"{", BackendFailed, "does not speak"),
        (200, b'{"content": "text"}', BackendFailed, "does not speak"),
        (200, b'{"content": [], "usage": {"input_tokens": -1}}', BackendFailed, "does not speak"),
        (200, b" " * (2 << 20), BackendFailed, "over"),
        (302, b"", BackendFailed, "302"),
    ],
)
async def test_what_it_does_wrong_is_told(server, status, body, kind, said):
    handler, url = server
    handler.status, handler.body = status, body
    with pytest.raises(kind, match=said):
        await ask(url)


@pytest.mark.parametrize(("url", "kind"), [("http://127.0.0.1:1/v1", BackendUnreachable), ("x", BackendRefused)])
async def test_a_server_that_is_not_there_is_told(url, kind):
    with pytest.raises(kind):
        await ask(url)
