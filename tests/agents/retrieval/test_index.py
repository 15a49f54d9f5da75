from contextlib import aclosing

import pytest

from agents.errors import BadData
from agents.retrieval import index as index_module
from agents.retrieval.chunks import Chunk
from agents.retrieval.events import Loaded, Skipped
from agents.retrieval.index import Document, Index, name_of
from agents.retrieval.load import load, search


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "notes"
    root.mkdir()
    (root / "ark.txt").write_text("zoo zebra zigzag\n")
    (root / "sea.md").write_text("mmm hum mum\n")
    return root


@pytest.fixture
def open_index(tmp_path, root):
    opened = []

    def open_():
        opened.append(Index.open(tmp_path / "retrieval", root))
        return opened[-1]

    yield open_
    for index in opened:
        index.close()


async def run(index, embedder):
    async with aclosing(load(index, embedder)) as events:
        return [event async for event in events]


async def test_a_folder_is_indexed_and_found_again(open_index, embedder):
    index = open_index()
    events = await run(index, embedder)
    assert isinstance(events[-1], Loaded)
    assert (events[-1].n_documents, events[-1].n_chunks, events[-1].n_embedded) == (2, 2, 2)
    best, other = await search([index], embedder, "zzz zebra", 5)
    assert best.path == "ark.txt" and (best.first_line, best.last_line) == (1, 1)
    assert best.score > other.score
    assert 0.99 < (await search([index], embedder, "zoo zebra zigzag", 1))[0].score < 1.01


async def test_an_index_survives_a_restart_and_embeds_only_what_changed(open_index, embedder, root):
    await run(open_index(), embedder)
    embedder.texts.clear()
    (root / "sea.md").write_text("new words\n")
    (root / "third.txt").write_text("more\n")
    (root / "ark.txt").touch()
    index = open_index()
    done = (await run(index, embedder))[-1]
    assert embedder.texts == ["new words", "more"]
    assert (done.n_embedded, done.n_unchanged, done.n_removed) == (2, 1, 0)
    assert {p.path for p in await search([index], embedder, "x", 9)} == {"ark.txt", "sea.md", "third.txt"}


async def test_a_file_that_is_gone_is_forgotten(open_index, embedder, root):
    index = open_index()
    await run(index, embedder)
    assert len(await search([index], embedder, "z", 9)) == 2
    (root / "ark.txt").unlink()
    assert (await run(index, embedder))[-1].n_removed == 1
    assert [p.path for p in await search([index], embedder, "z", 9)] == ["sea.md"]


async def test_an_index_cut_short_goes_on_where_it_was(open_index, embedder, root):
    for n in range(100):
        (root / f"{n:03d}.txt").write_text(f"text number {n}\n")
    embedder.fails_after = 64
    with pytest.raises(RuntimeError):
        await run(open_index(), embedder)
    embedder.fails_after = None
    embedder.texts.clear()
    done = (await run(open_index(), embedder))[-1]
    assert done.n_documents == 102
    assert len(embedder.texts) == 102 - 64


async def test_what_is_skipped_is_said_and_counted_by_reason(open_index, embedder, root):
    for n in range(60):
        (root / f"{n}.bin").write_bytes(b"\0")
    events = await run(open_index(), embedder)
    told = [event for event in events if isinstance(event, Skipped)]
    assert len(told) == 50
    assert events[-1].skipped == {"not a text file by its name (.bin)": 60}


async def test_several_indexes_are_searched_as_one(tmp_path, open_index, embedder):
    other_root = tmp_path / "other.txt"
    other_root.write_text("zzzz zz\n")
    one, two = open_index(), Index.open(tmp_path / "retrieval", other_root)
    await run(one, embedder)
    await run(two, embedder)
    assert [p.path for p in await search([one, two], embedder, "zzz", 2)] == ["other.txt", "ark.txt"]
    assert await search([], embedder, "zzz", 2) == []
    two.close()


async def test_an_empty_index_finds_nothing(open_index, embedder):
    assert await search([open_index()], embedder, "z", 3) == []


def test_vectors_that_do_not_fit_are_refused_and_nothing_is_stored(open_index):
    index = open_index()
    document = Document("a", b"d", (Chunk(first_line=1, last_line=1, text="x"),))
    for vectors, width in [(b"", 26), (b"\0" * 8, 0), (b"\0" * 9, 2), (b"\0" * 16, 2), (b"\0" * 40_000, 10_000)]:
        with pytest.raises(BadData):
            index.put([document], vectors, width)
    assert index.status().n_documents == 0


async def test_another_embedding_model_is_refused(open_index, embedder, root):
    index = open_index()
    await run(index, embedder)
    embedder.width = 13
    with pytest.raises(BadData, match="another embedding model"):
        await search([index], embedder, "z", 1)
    (root / "ark.txt").write_text("changed")
    with pytest.raises(BadData, match="another embedding model"):
        await run(index, embedder)


async def test_an_index_has_a_limit(open_index, embedder, monkeypatch):
    monkeypatch.setattr(index_module, "MAX_CHUNKS", 1)
    with pytest.raises(BadData, match="more than 1 chunks"):
        await run(open_index(), embedder)


def test_names_are_safe_and_differ_for_different_paths(tmp_path):
    one, other = name_of(tmp_path / "My Notes ☃"), name_of(tmp_path / "b" / "My Notes ☃")
    assert one != other
    assert one.startswith("my-notes-") and one.isascii() and "/" not in one
    assert name_of(tmp_path / "..").startswith("files-")
