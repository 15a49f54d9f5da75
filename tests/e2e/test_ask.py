"""One node answers for another, with real models and real processes; and what the asker reads when that goes wrong."""

import json
import os
import signal
import time

import pytest

pytestmark = pytest.mark.e2e

LONG = ("ask", "Tell me all about lists.", "--on", "ada", "--max-tokens", "900")


@pytest.fixture
def ada(new_node, with_tiny):
    node = with_tiny(new_node("ada"))
    node.set({"ask.is_enabled": "true"})
    return node.up()


@pytest.fixture
def bob(new_node, ada):
    node = new_node("bob").up()
    node.ok("peer", "add", ada.address, "--name", "ada")
    return node


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_trusted_peer_is_answered_streamed_recorded_and_checked(ada, bob):
    refused = bob.covey("ask", "What is a list?", "--on", "ada")
    assert refused.returncode == 4
    assert f"covey peer trust {bob.peer} --kinds ask" in refused.stderr and refused.stderr.count("\n") == 1
    ada.ok("peer", "trust", bob.peer, "--kinds", "ask")

    events = lines(bob.ok("ask", "What is a list?", "--on", "ada", "--max-tokens", "12", "--record", "--json"))
    text = "".join(event["text"] for event in events if event["type"] == "token")
    record = events[-1]["record"]
    assert text and [event["type"] for event in events[-2:]] == ["finished", "recorded"]
    assert (events[-2]["n_tokens"], events[-2]["cache"]) == (12, "none")

    again = lines(bob.ok("ask", "What is a list?", "--on", "ada", "--max-tokens", "12", "--json"))
    assert again[-1]["cache"] == "exact" and "".join(e["text"] for e in again[:-1]) == text

    said = bob.ask("record", "verify", record)
    assert (said["author"], said["asker"], said["answer_text"]) == (ada.peer, bob.peer, text)
    assert said["question_text"] == "What is a list?" and said["again"] is None
    assert bob.ask("record", "verify", record, "--again")["again"] == "undecidable", "bob has no model"
    assert ada.ask("record", "verify", record, "--again")["again"] == "same"

    chat = bob.covey("chat", "--on", "ada", "--max-tokens", "8", "--json", stdin="Hello?\nAnd now?\n/model\n")
    kinds = [event["type"] for event in lines(chat.stdout)]
    assert chat.returncode == 0, chat.stderr
    assert kinds.count("finished") == 2 and kinds.count("failed") == 0
    assert "tiny on ada" in chat.stdout

    for change, code, told in [
        (("--adapter", "poet"), 5, "offers no adapter"),
        (("--max-tokens", "99999999"), 2, "max_tokens"),
        (("--on", "eve"), 5, "neither a peer id nor the name"),
    ]:
        wrong = bob.covey("ask", "What?", *(() if "--on" in change else ("--on", "ada")), *change)
        assert (wrong.returncode, told in wrong.stderr.replace("-", "_") or told in wrong.stderr) == (code, True)

    ada.ok("peer", "untrust", bob.peer, "--kinds", "ask")
    assert bob.covey("ask", "What is a list?", "--on", "ada").returncode == 4


def test_a_peer_that_dies_in_mid_answer_is_told_of_with_what_came(ada, bob):
    ada.ok("peer", "trust", bob.peer, "--kinds", "ask")
    engine = engine_of(ada, bob)
    asking = bob.begin(*LONG)
    first = asking.stdout.read(1)
    os.kill(engine, signal.SIGKILL)
    answer, error = asking.communicate(timeout=60)
    assert (asking.returncode, (first + answer)[-1:]) == (1, "\n"), error
    assert "engine of this node failed" in error and "characters of its answer" in error

    asking = bob.begin(*LONG)
    first = asking.stdout.read(1)
    ada.kill()
    answer, error = asking.communicate(timeout=60)
    assert (asking.returncode, (first + answer)[-1:]) == (1, "\n"), error
    assert "went away after" in error and error.count("\n") == 1
    assert bob.is_alive


def test_an_answer_that_nobody_wants_any_more_is_not_computed(ada, bob):
    ada.ok("peer", "trust", bob.peer, "--kinds", "ask")
    engine, n_answered = engine_of(ada, bob), n_answers(ada)
    asking = bob.begin(*LONG)
    assert asking.stdout.read(1)
    os.kill(engine, signal.SIGSTOP)  # it would be done before a busy machine comes to tell it
    asking.send_signal(signal.SIGINT)
    asking.communicate(timeout=30)
    os.kill(engine, signal.SIGCONT)
    assert asking.returncode == 130
    until_s = time.monotonic() + 20
    while ada.ask("engine", "status")["calls"]:
        assert time.monotonic() < until_s, "it still computes"
    assert n_answers(ada) == n_answered


def engine_of(ada, bob):
    """The process that answers, known before it is at work: to ask for it takes as long as an answer."""
    bob.ok("ask", "Are you there?", "--on", "ada", "--max-tokens", "1")
    return ada.ask("engine", "status")["pid"]


def n_answers(node):
    return sum(event["kind"] == "question_answered" for event in node.events())


def test_what_no_model_can_answer_is_refused_in_one_line(ada):
    million = "word " * 200_000
    for args, stdin, code, told in [
        (("ask", "-"), million, 1, "shorten it"),
        (("ask", "-"), million * 2, 2, "characters"),
        (("ask", "hi", "--max-tokens", "1000000000"), "", 2, "max-tokens"),
        (("ask", "hi", "--frequency", "2"), "", 2, "No such option"),
        (("ask", "hi", "--temperature", "99"), "", 2, "temperature"),
        (("ask", ""), "", 2, "length >= 1"),
        (("ask", "-"), " ", 2, "empty"),
        (("chat", "--max-tokens", "1000000000", "--once", "hi"), "", 1, "max_tokens"),
        (("chat",), million + "\n", 1, "shorten it"),
    ]:
        done = ada.covey(*args, stdin=stdin)
        assert (done.returncode, told in done.stderr) == (code, True), (args, done.stderr[:300])
        assert len(done.stderr) < 800
