import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.engine.worker.text import TextStream, piece_bytes


def from_bytes(ids):
    """A tokenizer whose tokens are bytes."""
    return bytes(ids).decode(errors="replace")


@given(st.text().filter(lambda text: "\ufffd" not in text))
def test_pieces_are_whole_characters_and_make_the_text(text):
    stream = TextStream(from_bytes, ())
    pieces = [stream.feed(byte) for byte in text.encode()]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text, stops):
    stream = TextStream(from_bytes, tuple(stops))
    out = ""
    for byte in text.encode():
        out += stream.feed(byte)
        if stream.is_stopped:
            break
    out += stream.finish()
    # The stop that is complete first ends the answer; of those that end at one place, the one that began first.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert out == (text[: min(ends)[1]] if ends else text)


def test_an_unfinished_character_at_the_end_is_dropped():
    stream = TextStream(from_bytes, ())
    assert stream.feed(ord("a")) == "a"
    assert stream.feed("é".encode()[0]) == ""
    assert stream.finish() == ""


def test_bytes_that_never_become_text_do_not_hold_up_the_answer():
    stream = TextStream(from_bytes, ())
    assert "".join(stream.feed(0xFF) for _ in range(40))


@pytest.mark.parametrize("end", ["", "S", "ST", "STO"])
def test_what_only_begins_like_a_stop_string_is_shown_at_the_end(end):
    stream = TextStream(from_bytes, ("STOP",))
    out = "".join(stream.feed(byte) for byte in f"text {end}".encode())
    assert out == "text "
    assert stream.finish() == end


@pytest.mark.parametrize(
    ("piece", "stands_for"),
    [("Ġthe", b" the"), ("Ċ", b"\n"), ("Ã©", "é".encode()), ("<0x0A>", b"\n"), ("▁the", b" the"),
     ("<|im_end|>", b"<|im_end|>"), ("a", b"a"), ("日本", "日本".encode())],
)  # fmt: skip
def test_a_token_stands_for_bytes(piece, stands_for):
    assert piece_bytes(piece) == stands_for
