import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.chat.conversation import Conversation, TooLong, cited_numbers
from agents.chat.events import Finished
from agents.errors import AgentError
from agents.retrieval.index import Passage


def finished(n_prompt_tokens: int = 20) -> Finished:
    return Finished(reason="stop", n_prompt_tokens=n_prompt_tokens, n_tokens=2, first_token_s=0.1, total_s=0.2)


def turn(chat: Conversation, question: str, answer: str, context_tokens: int = 2048) -> None:
    prompt = chat.begin(question, context_tokens=context_tokens, reply_tokens=64)
    chat.heard(answer)
    chat.finish(finished(n_prompt_tokens=sum(len(t.content) for t in prompt.turns) // 3))


def passage(text: str = "Noah built an ark.", path: str = "kjv.txt") -> Passage:
    return Passage(path=path, first_line=3, last_line=9, text=text, score=0.5)


def test_the_prompt_holds_the_system_text_the_history_and_the_question():
    chat = Conversation(system="Be brief.")
    turn(chat, "hello", "hi")
    prompt = chat.begin("who?", context_tokens=2048, reply_tokens=64)
    assert [(t.role, t.content) for t in prompt.turns] == [
        ("system", "Be brief."),
        ("user", "hello"),
        ("assistant", "hi"),
        ("user", "who?"),
    ]


def test_the_oldest_turns_are_forgotten_first_and_the_system_text_never():
    chat = Conversation(system="Be brief.")
    for n in range(20):
        turn(chat, f"question {n} " + "x" * 100, f"answer {n} " + "y" * 100)
    prompt = chat.begin("last", context_tokens=400, reply_tokens=100)
    assert prompt.turns[0].content == "Be brief."
    assert prompt.turns[-1].content == "last"
    assert prompt.n_forgotten_turns > 0
    assert prompt.turns[-2].content.startswith("answer 19 ")
    assert prompt.turns[1].role == "user"


def test_a_question_longer_than_the_context_is_refused_and_the_chat_goes_on():
    chat = Conversation()
    with pytest.raises(TooLong, match="shorten it"):
        chat.begin("x" * 10_000, context_tokens=256, reply_tokens=64)
    assert not chat.in_turn
    assert chat.begin("short", context_tokens=256, reply_tokens=64)


def test_the_size_of_a_token_is_learnt_from_the_engine():
    chat = Conversation(system="")
    question = "x" * 1_000
    with pytest.raises(TooLong):
        chat.begin(question, context_tokens=400, reply_tokens=64)
    chat.begin("y" * 500, context_tokens=400, reply_tokens=64)
    chat.heard("fine")
    chat.finish(finished(n_prompt_tokens=50))
    assert chat.begin(question, context_tokens=400, reply_tokens=64)


def test_sources_are_numbered_and_only_the_turn_that_asked_carries_them():
    chat = Conversation()
    prompt = chat.begin(
        "Who built?", context_tokens=2048, reply_tokens=64, passages=[passage(), passage("Two", "b.md")]
    )
    text = prompt.turns[-1].content
    assert "[1] kjv.txt, lines 3-9:\nNoah built an ark." in text
    assert "[2] b.md, lines 3-9:\nTwo" in text
    assert "like [1]" in text
    chat.heard("Noah [1, 7], in the days [3].")
    cited = chat.finish(finished())
    assert [(s.number, s.path, s.cited) for s in cited.sources] == [(1, "kjv.txt", True), (2, "b.md", False)]
    assert cited.invented == (3, 7)
    assert [t.content for t in chat.history] == ["Who built?", "Noah [1, 7], in the days [3]."]


def test_an_answer_without_sources_cites_nothing_whatever_it_says():
    chat = Conversation()
    chat.begin("Who?", context_tokens=2048, reply_tokens=64)
    chat.heard("Noah [1]")
    assert chat.finish(finished()) is None


def test_passages_that_do_not_fit_are_left_out_from_the_last():
    chat = Conversation()
    many = [passage("z" * 400) for _ in range(10)]
    prompt = chat.begin("Who?", context_tokens=1024, reply_tokens=64, passages=many)
    assert 0 < len(prompt.sources) < 10
    assert f"[{len(prompt.sources) + 1}]" not in prompt.turns[-1].content


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("Noah [1][3].", {1, 3}),
        ("so [1, 2; 4]", {1, 2, 4}),
        ("none", set()),
        ("a[i] and [x1]", set()),
        ("[12345]", set()),
    ],
)
def test_citations_are_read_from_the_answer(answer, numbers):
    assert cited_numbers(answer) == numbers


def test_the_chat_follows_the_policy_between_turns(make_adapter):
    chat = Conversation()
    assert chat.choose(None) == (None, None)
    one, two = make_adapter(1), make_adapter(2)
    assert chat.choose(one) == (one, None)
    chat.switched(one)
    assert chat.choose(two) == (two, None)
    chat.switched(two)
    assert chat.choose(two) == (two, None)
    assert chat.choose(None) == (None, None)


def test_a_chat_that_asks_offers_once_and_waits_until_the_user_agrees(make_adapter):
    one, two, three = make_adapter(1), make_adapter(2), make_adapter(3)
    chat = Conversation(asks=True)
    assert chat.choose(one) == (one, None)  # what the chat was opened with
    chat.switched(one)
    turn(chat, "q", "a")
    adapter, offered = chat.choose(two)
    assert adapter == one and offered.adapter == two
    assert chat.choose(two) == (one, None)
    assert chat.choose(three)[1].adapter == three
    chat.agree()
    assert chat.choose(three) == (three, None)


def test_a_chat_that_asks_and_began_with_the_base_asks_before_the_first_adapter(make_adapter):
    chat = Conversation(asks=True)
    assert chat.choose(None) == (None, None)
    turn(chat, "q", "a")
    adapter, offered = chat.choose(make_adapter(1))
    assert adapter is None and offered.adapter == make_adapter(1)


def test_use_is_agreement(make_adapter):
    chat = Conversation(asks=True)
    turn(chat, "q", "a")
    chat.use("kjv@1")
    assert chat.wish == "kjv@1"
    assert chat.choose(make_adapter(1)) == (make_adapter(1), None)


def test_an_adapter_that_failed_to_load_is_not_tried_again_until_asked_for(make_adapter):
    chat = Conversation()
    bad = make_adapter(1)
    chat.refuse(bad)
    assert chat.choose(bad) == (None, None)
    chat.use("kjv")
    assert chat.choose(bad) == (bad, None)


def test_an_interrupted_answer_keeps_what_was_said_and_a_silent_one_never_was():
    chat = Conversation()
    chat.begin("one", context_tokens=2048, reply_tokens=64)
    chat.interrupt()
    assert chat.history == ()
    chat.begin("two", context_tokens=2048, reply_tokens=64)
    chat.heard("half")
    chat.interrupt()
    chat.interrupt()
    assert [t.content for t in chat.history] == ["two", "half"]


def test_clear_forgets_the_history_but_not_in_mid_turn():
    chat = Conversation()
    turn(chat, "q", "a")
    chat.begin("r", context_tokens=2048, reply_tokens=64)
    with pytest.raises(AgentError, match="under way"):
        chat.clear()
    chat.abandon()
    chat.clear()
    assert chat.history == ()


@given(
    turns=st.lists(st.tuples(st.text(max_size=300), st.text(max_size=300), st.sampled_from("fia")), max_size=30),
    context_tokens=st.integers(64, 4096),
    n_passages=st.integers(0, 6),
)
def test_every_prompt_fits_alternates_and_ends_with_the_question(turns, context_tokens, n_passages):
    chat = Conversation()
    for question, answer, end in turns:
        try:
            prompt = chat.begin(
                question,
                context_tokens=context_tokens,
                reply_tokens=context_tokens // 2,
                passages=[passage() for _ in range(n_passages)],
            )
        except TooLong:
            assert not chat.in_turn
            continue
        assert sum(len(t.content.encode()) for t in prompt.turns) <= context_tokens / 2 / 0.05
        assert [t.role for t in prompt.turns] == ["system"] + ["user", "assistant"] * (len(prompt.turns) // 2 - 1) + [
            "user"
        ]
        assert prompt.turns[-1].content.endswith(question)
        assert [s.number for s in prompt.sources] == list(range(1, len(prompt.sources) + 1))
        chat.heard(answer)
        match end:
            case "f":
                chat.finish(finished(n_prompt_tokens=max(1, sum(len(t.content) for t in prompt.turns) // 4)))
            case "i":
                chat.interrupt()
            case "a":
                chat.abandon()
