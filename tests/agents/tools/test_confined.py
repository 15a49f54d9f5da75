"""Nothing leads out of an agent's folder: no dots, no links, none swapped in while it looks."""

import os

import pytest

from agents.roster.declaration import Policy
from agents.tools import confined, tools
from agents.tools.ranking import Passage, best, passages_of
from agents.tools.tool import Reach, ToolFailed, ToolRefused, use


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "docs"
    (root / "sub").mkdir(parents=True)
    (root / "a.md").write_text("# Flocks\n\nA flock is many birds.\n")
    (root / "sub" / "b.txt").write_text("A herd is many cows.")
    (tmp_path / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "out").symlink_to(tmp_path)
    (root / ".hidden").write_text("secret")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("secret")
    os.mkfifo(root / "pipe.txt")
    os.link(tmp_path / "secret.txt", root / "hard.txt")
    return root


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt", "/etc/passwd", "sub/../../secret.txt", "link.txt", "out/secret.txt", "out", "pipe.txt",
        "hard.txt", "sub", "a.md/x", "a\0b", "/".join(["x"] * 40), ".hidden", ".git/config",
    ],
)  # fmt: skip
def test_what_leads_elsewhere_is_refused(folder, path):
    with pytest.raises((ToolRefused, ToolFailed)):
        confined.read(str(folder), path, 100)


def test_what_is_there_is_read_and_listed(folder):
    assert confined.read(str(folder), "sub/b.txt", 6) == b"A herd"
    assert confined.read(str(folder), "./sub//b.txt", 6) == b"A herd"
    assert sorted(confined.files(str(folder))) == [("a.md", 33), ("sub/b.txt", 20)]
    with pytest.raises(ToolFailed, match=r"no 'c\.txt'"):
        confined.read(str(folder), "c.txt", 6)


@pytest.mark.parametrize("path", ["../x", "out/x", ".x", "", "/x", "no/x", ".git/hooks", "sub/.x"])
def test_nothing_is_written_elsewhere(folder, tmp_path, path):
    before = list(os.walk(tmp_path))
    with pytest.raises((ToolRefused, ToolFailed)):
        confined.write(str(folder), path, b"x")
    assert list(os.walk(tmp_path)) == before


def test_a_file_is_written_whole_and_a_link_in_its_place_is_replaced_not_followed(folder, tmp_path):
    confined.write(str(folder), "sub/b.txt", b"new")
    assert (folder / "sub" / "b.txt").read_text() == "new"
    confined.write(str(folder), "link.txt", b"new")
    assert (tmp_path / "secret.txt").read_text() == "secret" and (folder / "link.txt").read_text() == "new"
    assert not [name for name in os.listdir(folder) if name.startswith(".link")]


@pytest.mark.parametrize(("is_before", "found"), [(True, None), (False, b"A herd is many cows.")])
def test_a_folder_that_becomes_a_link_while_it_is_read_never_leads_out(folder, tmp_path, monkeypatch, is_before, found):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "b.txt").write_text("secret")
    really = os.open

    def swapping(path, *args, **options):
        def swap():
            os.rename(folder / "sub", folder / "was")
            os.symlink(tmp_path / "outside", folder / "sub")

        if path == "sub" and is_before:
            swap()
        fd = really(path, *args, **options)
        if path == "sub" and not is_before:
            swap()
        return fd

    monkeypatch.setattr(os, "open", swapping)
    if found is None:
        with pytest.raises(ToolRefused):
            confined.read(str(folder), "sub/b.txt", 100)
    else:
        assert confined.read(str(folder), "sub/b.txt", 100) == found


async def test_the_tools_for_files_keep_to_the_policy(folder):
    reach = Reach(policy=Policy(folder=str(folder)), key="")
    found = await use(tools()["file-search"], {"query": "birds"}, reach)
    assert "A flock is many birds." in found and "a.md, line" in found and "secret" not in found
    assert [row["path"] for row in await use(tools()["file-list"], {}, reach)] == ["a.md", "sub/b.txt"]
    with pytest.raises(ToolRefused, match="may not write"):
        await use(tools()["file-write"], {"path": "x", "text": "y"}, reach)
    with pytest.raises(ToolRefused, match="no folder"):
        await use(tools()["file-read"], {"path": "a.md"}, Reach(policy=Policy(), key=""))
    may = Reach(policy=Policy(folder=str(folder), may_write=True), key="")
    assert await use(tools()["file-write"], {"path": "x", "text": "y"}, may) == {"path": "x", "n_bytes": 1}
    for given in (None, {"path": 1}, {"path": "x" * 5000}, {"n": 0, "query": "x"}, {"query": "x" * 40_000}):
        with pytest.raises(ToolFailed):
            await use(tools()["file-search"], given, reach)


def test_the_passage_that_has_the_rare_word_comes_first():
    passages = [Passage("x", n, text) for n, text in enumerate(["the the the", "the bird", "the bird sings", "cow"])]
    assert [passage.line for _, passage in best("the bird sings", passages, 2)] == [2, 1]
    assert best("", passages, 2) == [] == best("x", [], 2)


def test_passages_are_short_and_lose_nothing():
    text = "\n\n".join(f"paragraph {n} " + "word " * 50 for n in range(20)) + "\n" + "line\n" * 1000
    found = passages_of("x", text)
    assert all(len(passage.text) <= 1200 for passage in found)
    assert sum(passage.text.count("word") for passage in found) == 1000
    assert sum(passage.text.count("line") for passage in found) == 1000
    assert [passage.line for passage in found] == sorted(passage.line for passage in found)
