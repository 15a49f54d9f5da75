import os
import signal
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cli.chat_console import Interrupts, Wrap

TEXTS = st.text(alphabet="ab \n", max_size=60)


def wrapped(pieces, width, column=0):
    wrap = Wrap()
    wrap.begin(column)
    return "".join(wrap.feed(piece, width) for piece in pieces) + wrap.flush(width)


def test_lines_break_between_words():
    assert wrapped(["the qui", "ck brown", " fox"], 10) == "the quick \nbrown fox"


def test_the_name_of_who_answers_takes_room_in_the_first_line():
    assert wrapped(["the quick"], 10, column=4) == "the \nquick"


def test_a_word_wider_than_the_terminal_is_left_to_it():
    assert wrapped(["see abcdefghijklmnop now"], 10) == "see \nabcdefghijklmnop\nnow"


def test_wide_characters_count_for_two():
    assert wrapped(["海海 海海"], 8) == "海海 \n海海"


@given(TEXTS, st.integers(1, 20), st.data())
def test_wrapping_only_breaks_lines_however_the_text_is_cut(text, width, data):
    cut = data.draw(st.integers(0, len(text)))
    whole = wrapped([text], width)
    assert wrapped([text[:cut], text[cut:]], width) == whole
    assert whole.split() == text.split()
    words = text.split()
    if all(len(word) <= width for word in words):
        assert all(len(line) <= width for line in whole.split("\n"))


@pytest.fixture
def interrupts():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as made:
        yield made
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_ctrl_c_before_the_wait_is_not_missed(interrupts, pair):
    with interrupts.heard():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.wait(pair[0])


def test_ctrl_c_that_another_thread_receives_ends_the_wait(interrupts, pair):
    with interrupts.heard():
        threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            interrupts.wait(pair[0])


def test_ctrl_c_from_before_is_forgotten_and_other_signals_end_nothing(interrupts, pair):
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    try:
        with interrupts.heard():
            os.kill(os.getpid(), signal.SIGINT)
        with interrupts.heard():
            os.kill(os.getpid(), signal.SIGWINCH)
            pair[1].send(b"x")
            interrupts.wait(pair[0])
        assert pair[0].recv(1) == b"x"
    finally:
        signal.signal(signal.SIGWINCH, before)


def test_ctrl_c_outside_a_wait_interrupts_nothing(interrupts):
    os.kill(os.getpid(), signal.SIGINT)
    with interrupts.heard():
        os.kill(os.getpid(), signal.SIGINT)
