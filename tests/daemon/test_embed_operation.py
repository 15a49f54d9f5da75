"""Embedding as an operation: texts and lines of a file, in order, in parts; and the two about the face."""

from types import SimpleNamespace

import pytest

from agents.engine import messages
from agents.errors import EngineMissing
from daemon.api.operation import Nothing
from daemon.api.operations import embed as module
from daemon.api.operations.embed import Embed, embed
from daemon.api.operations.openai import WhichToken, status, token
from daemon.config import Config, EngineConfig
from daemon.errors import BadInput


class Engine:
    """The length of a text is its vector; every text of over five letters is cut."""

    def __init__(self):
        self.asked = []

    async def one(self, request):
        self.asked.append(request)
        import struct

        return messages.Embedded(
            vectors=b"".join(struct.pack("<f", len(text)) for text in request.texts),
            width=1,
            n_tokens=tuple(len(text) for text in request.texts),
            truncated=tuple(at for at, text in enumerate(request.texts) if len(text) > 5),
        )


@pytest.fixture
def node():
    return SimpleNamespace(engine=Engine(), config=Config(engine=EngineConfig(encoder="/encoders/mini")))


async def rows(node, **params):
    return [row async for row in embed(node, Embed(**params))]


async def test_texts_and_the_lines_of_a_file_come_in_order_and_in_parts(node, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    (tmp_path / "lines").write_text("three\r\nfour is long\n\n")
    made = await rows(node, texts=("a", "bb"), file=str(tmp_path / "lines"), max_tokens=9)
    assert [(row.index, row.vector, row.is_truncated) for row in made] == [
        (0, [1.0], False), (1, [2.0], False), (2, [5.0], False), (3, [12.0], True), (4, [0.0], False),
    ]  # fmt: skip
    assert [len(asked.texts) for asked in node.engine.asked] == [2, 2, 1]
    assert {(asked.folder, asked.max_tokens) for asked in node.engine.asked} == {("/encoders/mini", 9)}
    await rows(node, texts=("a",), encoder="/other")
    assert node.engine.asked[-1].folder == "/other"


async def test_what_cannot_be_embedded_is_told(node, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="nothing to embed"):
        await rows(node)
    (tmp_path / "raw").write_bytes(b"ab\xff")
    with pytest.raises(BadInput, match="byte 2"):
        await rows(node, file=str(tmp_path / "raw"))
    (tmp_path / "long").write_text("a" * 50)
    monkeypatch.setattr(module, "MAX_TEXT_CHARS", 10)
    with pytest.raises(BadInput, match="line 1: over 10 characters"):
        await rows(node, file=str(tmp_path / "long"))
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 20)
    with pytest.raises(BadInput, match="over 20 bytes"):
        await rows(node, file=str(tmp_path / "long"))
    node.config = Config()
    monkeypatch.setattr("agents.encoders.encoder_of", lambda setting: None)
    with pytest.raises(EngineMissing, match="pip install"):
        await rows(node, texts=("a",))


async def test_the_token_is_told_and_renewed_and_a_face_that_is_off_says_how_to_open_it(node_here):
    node = node_here.node
    first = (await token(node, WhichToken())).token
    assert (await token(node, WhichToken())).token == first
    assert (await token(node, WhichToken(is_new=True))).token != first
    told = await status(node, Nothing())
    assert (told.is_enabled, told.url) == (False, None) and "openai.is_enabled true" in told.hint
    assert node.home.openai_token.stat().st_mode & 0o777 == 0o600
