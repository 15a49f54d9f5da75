import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.retrieval import files
from agents.retrieval.events import Skipped
from agents.retrieval.files import Found, read, strip_html, text_of, walk


def names(items):
    return [item.name for item in items if isinstance(item, Found)]


def reasons(items):
    return {item.path: item.reason for item in items if isinstance(item, Skipped)}


def test_text_files_are_found_in_order_and_the_rest_is_said(tmp_path):
    for name in ("b.md", "a.txt", "sub/c.py", "pic.png", "README", ".git/config", "node_modules/x.js", "noext"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
    items = list(walk(tmp_path))
    assert names(items) == ["README", "a.txt", "b.md", "sub/c.py"]
    assert reasons(items) == {
        "node_modules/": "installed or generated files",
        "noext": "not a text file by its name (no extension)",
        "pic.png": "not a text file by its name (.png)",
    }


def test_links_and_pipes_are_not_followed_or_opened(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "passwd.txt").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.txt")
    items = list(walk(tmp_path))
    assert names(items) == []
    assert reasons(items) == {
        "loop": "a symbolic link",
        "passwd.txt": "a symbolic link",
        "pipe.txt": "not a regular file",
    }


def test_a_file_given_by_itself_is_read_whatever_its_name(tmp_path):
    (tmp_path / "notes.weird").write_text("hello")
    (found,) = walk(tmp_path / "notes.weird")
    assert read(found) == b"hello"


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(walk(tmp_path / "nothing"))


def test_too_many_files_end_the_walk_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILES", 3)
    for n in range(6):
        (tmp_path / f"{n}.txt").write_text("x")
    items = list(walk(tmp_path))
    assert len(names(items)) == 3
    assert "load subfolders" in items[-1].reason


def test_folders_deeper_than_the_limit_are_not_entered(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_DEPTH", 1)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.txt").write_text("x")
    assert reasons(walk(tmp_path)) == {"a/b/": "deeper than 1 folders"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"a\0b", "binary"), (b"\xff\xfeab", "not UTF-8 text"), (b"", "empty"), (b" \n\n", "empty")],
)
def test_a_file_without_text_is_skipped_with_its_reason(tmp_path, data, reason):
    path = tmp_path / "f.txt"
    path.write_bytes(data)
    found = Found("f.txt", path)
    made = read(found)
    made = made if isinstance(made, Skipped) else text_of(found, made)
    assert made == Skipped("f.txt", reason)


def test_a_file_over_the_limit_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1 << 20)
    path = tmp_path / "big.txt"
    path.write_bytes(b"x" * ((1 << 20) + 1))
    assert read(Found("big.txt", path)) == Skipped("big.txt", "larger than 1 MiB")


def test_a_file_that_vanished_is_skipped(tmp_path):
    assert isinstance(read(Found("gone.txt", tmp_path / "gone.txt")), Skipped)


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    found = Found("w.txt", tmp_path / "w.txt")
    assert text_of(found, b"\xef\xbb\xbfone\r\ntwo\rthree") == "one\ntwo\nthree"


def test_html_keeps_its_text_and_its_line_numbers():
    page = (
        "<html><head><style>\nb{}\n</style>\n<script>\nalert('<p>')\n</script></head>\n<p>Noah &amp;\n<b>sons</b></p>"
    )
    lines = strip_html(page).split("\n")
    assert len(lines) == 8
    assert "Noah &" in lines[6]
    assert "sons" in lines[7]
    assert "alert" not in "".join(lines)


@given(st.text(st.sampled_from("<>/!-'\" \nabps&;="), max_size=80))
def test_any_page_is_read_and_lines_stay_where_they_were(page):
    assert strip_html(page).count("\n") <= page.count("\n")
