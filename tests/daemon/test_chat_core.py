import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cli.chat_core import COMMANDS, PROMPT, Begin, Call, Draw, End, Leave, Show, Stream, Terminal, Wipe, Write

KJV = {"name": "kjv", "version": 3, "cid": "bafykjv3", "publisher": "…abcdefgh", "folder": "/a"}
FINISHED = {
    "type": "finished",
    "reason": "stop",
    "n_prompt_tokens": 12,
    "n_tokens": 8,
    "first_token_s": 0.05,
    "total_s": 0.4,
    "n_forgotten_turns": 0,
}


def status(**changes):
    return {
        "chat": "c1",
        "model": "smollm2",
        "n_params": 134_515_008,
        "context_tokens": 8192,
        "policy": "latest",
        "answering": None,
        "next": None,
        "on_new_adapter": "switch",
        "n_turns": 0,
        "indexes": [],
        **changes,
    }


def terminal(**changes):
    return Terminal(status(**changes))


def texts(effects):
    return [effect.text for effect in effects if isinstance(effect, Show)]


def say(text):
    return [Draw("smollm2 is reading ..."), Stream("chat/say", {"text": text})]


def token(text):
    return {"type": "token", "text": text}


def test_a_message_streams_under_the_name_of_who_answers():
    chat = terminal()
    assert chat.line("hello\n") == say("hello")
    assert chat.event(token(" Hi")) == [Begin("base"), Write("Hi")]
    assert chat.event(token(" there")) == [Write(" there")]
    assert chat.event(FINISHED) == [End()]


def test_loading_the_model_is_told_until_the_answer_begins():
    chat = terminal()
    chat.line("hello")
    assert chat.event({"type": "loading", "model": "smol\x1blm2"}) == [Draw("loading smollm2 ...")]
    assert chat.event(token("Hi"))[0] == Begin("base")  # which a screen draws over the status


def test_an_empty_line_is_nothing():
    assert terminal().line("   \n") == []


@pytest.mark.parametrize("evil", ["\x1b[31mred", "\x07", "\u202egnp.exe", "\x9b2J", "a\rb", "\x7f"])
def test_control_characters_of_the_model_and_of_peers_never_reach_the_terminal(evil):
    chat = terminal()
    chat.line("hi")
    written = "".join(e.text for e in chat.event(token("x" + evil)) if isinstance(e, Write))
    adapter = KJV | {"name": "k" + evil, "publisher": evil}
    shown = texts(chat.event({"type": "switched", "now": adapter, "was": None, "swap_s": 0.1}))
    shown += [*texts(chat.failed(evil, evil)), chat.arrived(adapter)]
    shown += texts(chat.event(cited(source(path=evil))))
    for text in [written, *shown]:
        assert not set(text) & set("\x1b\x07\u202e\x9b\r\x7f")


def source(**changes):
    return {"number": 1, "path": "kjv.txt", "first_line": 3, "last_line": 9, "score": 0.5, "cited": True, **changes}


def test_a_switch_is_told_and_names_the_answers_that_follow():
    chat = terminal()
    chat.line("hi")
    shown = chat.event({"type": "switched", "now": KJV, "was": None, "swap_s": 0.025})
    assert texts(shown) == ["now answering with kjv v3 by …abcdefgh (was: base), 25 ms"]
    assert chat.event(token("In"))[0] == Begin("kjv v3")


def cited(*sources, invented=()):
    return {"type": "cited", "sources": sources, "invented": invented}


def test_the_sources_are_listed_and_the_cited_ones_marked():
    chat = terminal()
    chat.line("who?")
    chat.event(token("Noah [1]"))
    effects = chat.event(cited(source(), source(number=2, path="b", last_line=3, cited=False)))
    assert effects[0] == End()
    assert texts(effects) == ["sources (* cited):", "* [1] kjv.txt, lines 3-9", "  [2] b, line 3"]
    assert chat.event(FINISHED) == []


def test_an_answer_that_cites_nothing_says_so_and_lists_what_it_was_given():
    chat = terminal()
    chat.line("who?")
    chat.event(token("Noah"))
    effects = chat.event(cited(source(cited=False)))
    assert texts(effects) == ["sources (none cited):", "  [1] kjv.txt, lines 3-9"]


def test_a_source_that_the_model_invented_is_told():
    lines = texts(terminal().event(cited(source(), invented=[3, 7])))
    assert lines[-1] == "the answer also cites [3] [7]: there is no such source"


def test_an_empty_a_cut_and_a_forgetful_answer_are_said():
    chat = terminal()
    chat.line("hi")
    assert texts(chat.event(FINISHED)) == ["(an empty answer)"]
    chat.line("hi")
    chat.event(token("x"))
    effects = chat.event(FINISHED | {"reason": "length", "n_forgotten_turns": 4})
    assert effects[0] == End()
    assert "--max-tokens" in texts(effects)[0] and "2 oldest" in texts(effects)[1]


def test_ctrl_c_in_mid_answer_ends_its_line():
    chat = terminal()
    chat.line("hi")
    chat.event(token("half"))
    assert chat.stopped() == [End(), Show("stopped", "notice")]
    assert chat.event(token("x")) != []


def test_a_failed_answer_is_told_and_the_chat_goes_on():
    chat = terminal()
    chat.line("hi")
    chat.event(token("half"))
    effects = chat.event({"type": "failed", "code": "engine_died", "text": "the engine died"})
    assert effects[:2] == [End(), Show("error: the engine died", "error")]
    assert "the next message starts it again" in effects[2].text
    assert chat.has_failed
    assert chat.line("again") == say("again")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("/use", "/loadrag")])
def test_every_command_does_something(command):
    assert terminal().line(command)


def test_commands_that_leave_leave():
    assert terminal().line("/exit") == terminal().line(" /quit ") == [Leave()]


def test_an_unknown_command_is_not_sent_to_the_model():
    (shown,) = terminal().line("/hlep me")
    assert shown.style == "error" and "/help" in shown.text


def test_clear_forgets_and_wipes():
    (call,) = terminal().line("/clear")
    assert call.name == "chat/clear"
    assert call.then({"text": ""})[0] == Wipe()


def test_use_tells_who_answers_next():
    chat = terminal()
    (call,) = chat.line("/use kjv@3")
    assert (call.name, call.params) == ("chat/use", {"adapter": "kjv@3"})
    assert texts(call.then(status(next=KJV))) == ["from the next message on: kjv v3 by …abcdefgh"]
    assert chat.line("/use")[0].style == "error"


def test_adapters_are_listed_with_a_mark_at_who_answers():
    chat = terminal(answering=KJV)
    (call,) = chat.line("/adapters")
    lines = texts(call.then({"adapters": [KJV | {"version": 4, "cid": "bafykjv4"}, KJV]}))
    assert lines == ["  kjv v4 by …abcdefgh  bafykjv4", "* kjv v3 by …abcdefgh  bafykjv3"]
    assert "covey adapter ls" in texts(call.then({"adapters": []}))[0]


def test_loadrag_names_the_path_whole_and_tells_what_was_skipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat = terminal()
    assert chat.line("/loadrag 'my notes'") == [Stream("chat/load", {"path": str(tmp_path / "my notes")})]
    assert chat.line("/loadrag")[0].style == "error"
    progress = {"type": "progress", "step": "indexing", "n_done": 3, "n_total": 9, "unit": "files"}
    assert chat.event(progress) == [Draw("indexing: 3 of 9 files")]
    assert chat.event({"type": "skipped", "path": "a.png", "reason": "binary"}) == []
    loaded = {
        "type": "loaded",
        "name": "n",
        "root": "/notes",
        "n_documents": 2,
        "n_chunks": 5,
        "n_embedded": 1,
        "n_unchanged": 1,
        "n_removed": 0,
        "skipped": {"binary": 7},
    }
    assert texts(chat.event(loaded)) == [
        "/notes: 2 files in 5 chunks (1 read, 1 unchanged, 0 gone)",
        "  skipped 7: binary (e.g. a.png)",
    ]


def test_ragstatus_lists_what_is_loaded():
    (call,) = terminal().line("/ragstatus")
    index = {"name": "n", "root": "/notes", "n_documents": 2, "n_chunks": 5}
    assert texts(call.then(status(indexes=[index]))) == ["/notes: 2 files, 5 chunks"]
    assert "/loadrag" in texts(call.then(status()))[0]


def test_stats_count_tokens_speed_first_token_and_swap():
    chat = terminal()
    assert texts(chat.line("/stats")) == ["no answer yet"]
    chat.event({"type": "switched", "now": KJV, "was": None, "swap_s": 0.25})
    chat.event(FINISHED)
    chat.event(FINISHED | {"first_token_s": 0.15})
    text = "\n".join(texts(chat.line("/stats")))
    assert "16 written, 24 read" in text
    assert "20.0 tok/s" in text
    assert "150 ms (mean 100 ms)" in text
    assert "250 ms the last time" in text


def test_an_adapter_that_arrives_is_told():
    assert terminal().arrived(KJV) == "kjv v3 by …abcdefgh has arrived and answers from your next message on"
    assert terminal(on_new_adapter="tell").arrived(KJV).endswith("to switch: /use kjv@3")


def test_a_chat_that_asks_asks_once_before_the_next_line():
    chat = terminal(on_new_adapter="ask")
    assert chat.next_prompt() == PROMPT
    chat.arrived(KJV)
    assert chat.line("") == []  # the prompt was not the question
    assert chat.next_prompt() == "switch to kjv v3 by …abcdefgh? [y/N] "
    (call,) = chat.line("Y")
    assert call.name == "chat/agree"
    assert chat.next_prompt() == PROMPT


@pytest.mark.parametrize("answer", ["n", "", "no"])
def test_no_is_the_answer_unless_the_user_says_yes(answer):
    chat = terminal(on_new_adapter="ask")
    chat.event({"type": "offered", "adapter": KJV})
    chat.next_prompt()
    assert texts(chat.line(answer))[0].startswith("staying with base")
    assert chat.next_prompt() == PROMPT


def test_a_message_typed_at_the_question_is_a_message():
    chat = terminal(on_new_adapter="ask")
    chat.arrived(KJV)
    chat.next_prompt()
    assert chat.line("tell me more") == say("tell me more")
    assert chat.line("y") == say("y")


def test_offers_are_silent_where_the_user_was_told():
    chat = terminal(on_new_adapter="tell")
    assert chat.event({"type": "offered", "adapter": KJV}) == []
    assert chat.next_prompt() == PROMPT


def test_completion_knows_commands_names_and_paths(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "note.txt").touch()
    chat = terminal()
    chat.greet()[-1].then({"adapters": [KJV]})
    assert chat.complete("/ad", "/ad") == ["/adapters "]
    assert chat.complete("hello /ad", "/ad") == []
    assert chat.complete("/use ", "") == ["latest", "none", "kjv"]
    assert chat.complete("/use k", "k") == ["kjv"]
    word = str(tmp_path / "note")
    assert chat.complete(f"/loadrag {word}", word) == [str(tmp_path / "note.txt"), str(tmp_path / "notes") + "/"]


def test_a_chat_that_the_daemon_forgot_begins_anew():
    chat = terminal(answering=KJV, on_new_adapter="ask")
    chat.arrived(KJV)
    assert "new one begins" in texts(chat.reopened(status(chat="c2")))[0]
    assert chat.next_prompt() == PROMPT


@given(st.lists(st.text(max_size=30), max_size=8))
def test_any_line_gives_effects_and_never_an_error(lines):
    chat = terminal(on_new_adapter="ask")
    for line in lines:
        chat.next_prompt()
        for effect in chat.line(line):
            assert isinstance(effect, Show | Call | Draw | Stream | Leave)
            if isinstance(effect, Show):
                assert "\x1b" not in effect.text and "\n" not in effect.text
