from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.chat.sessions import Sessions, TooManyChats, UnknownChat


@dataclass
class Session:
    name: str
    is_busy: bool = False
    is_closed: bool = False

    def close(self):
        self.is_closed = True


def sessions(limit=2):
    return Sessions(limit=limit, idle_s=10.0)


def test_a_session_is_found_until_it_was_idle_for_long():
    open_ = sessions()
    one = Session("A")
    open_.add("a", one, 0.0)
    assert open_.get("a", 9.0) is one
    assert open_.get("a", 18.0) is one
    assert not one.is_closed
    with pytest.raises(UnknownChat):
        open_.get("a", 28.0)
    assert one.is_closed


def test_a_session_with_an_answer_under_way_is_never_idle():
    open_, one = sessions(), Session("A", is_busy=True)
    open_.add("a", one, 0.0)
    assert open_.get("a", 1e9) is one


def test_one_chat_too_many_is_refused_until_another_ends():
    open_ = sessions()
    open_.add("a", Session("A"), 0.0)
    open_.add("b", Session("B"), 1.0)
    with pytest.raises(TooManyChats, match="/exit"):
        open_.add("c", Session("C"), 2.0)
    open_.remove("a")
    open_.remove("a")
    open_.add("c", Session("C"), 2.0)
    assert len(open_) == 2


@given(st.lists(st.tuples(st.sampled_from("agr"), st.integers(0, 5), st.floats(0, 8)), max_size=60))
def test_there_are_never_more_sessions_than_the_limit_nor_older_than_the_idle_time(steps):
    open_, now_s, used_s = sessions(limit=3), 0.0, {}
    for action, key, pause_s in steps:
        now_s += pause_s
        alive = {k for k, at_s in used_s.items() if now_s - at_s < 10.0}
        used_s = {k: used_s[k] for k in alive}
        match action:
            case "a" if key not in alive:
                try:
                    open_.add(str(key), Session(str(key)), now_s)
                    used_s[key] = now_s
                except TooManyChats:
                    assert len(alive) == 3
            case "g":
                try:
                    assert open_.get(str(key), now_s).name == str(key)
                    assert key in alive
                    used_s[key] = now_s
                except UnknownChat:
                    assert key not in alive
            case "r":
                open_.remove(str(key))
                used_s.pop(key, None)
        assert len(open_) <= 3
