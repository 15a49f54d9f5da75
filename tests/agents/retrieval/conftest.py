"""An embedder whose vectors are letter counts: texts that share words are near each other."""

import math
import struct
from dataclasses import dataclass, field

import pytest
import trio

from agents.engine import messages

WIDTH = 26


@dataclass
class LetterEmbedder:
    texts: list[str] = field(default_factory=list)
    fails_after: int | None = None
    width: int = WIDTH

    async def one(self, request: messages.Request) -> messages.Reply:
        assert isinstance(request, messages.Embed)
        await trio.lowlevel.checkpoint()
        if self.fails_after is not None and len(self.texts) >= self.fails_after:
            raise RuntimeError("the engine was killed")
        self.texts += request.texts
        rows = b"".join(self.row(text) for text in request.texts)
        return messages.Embedded(id=1, vectors=rows, width=self.width)

    def row(self, text: str) -> bytes:
        counts = [1e-6 + text.lower().count(chr(97 + i)) for i in range(self.width)]
        length = math.sqrt(sum(count * count for count in counts))
        return struct.pack(f"<{self.width}f", *(count / length for count in counts))


@pytest.fixture
def embedder() -> LetterEmbedder:
    return LetterEmbedder()
