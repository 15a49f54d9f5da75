"""The codecs there are: what lies in `codecs/`, by the name a plan calls them."""

import pkgutil
from importlib import import_module
from typing import Final

import msgspec

from agents.federation.updates.compression import codecs
from agents.federation.updates.compression.codec import Codec

CODECS: Final = {
    str(item.__struct_config__.tag): item
    for module in sorted(info.name for info in pkgutil.iter_modules(codecs.__path__))
    for item in vars(import_module(f"{codecs.__name__}.{module}")).values()
    if isinstance(item, type) and issubclass(item, Codec) and item is not Codec
}


def codec_of(settings: object) -> Codec:
    """A codec from a plan, such as {"codec": "top_k", "part": 0.01}. Raises: ValueError."""
    name = settings.get("codec") if isinstance(settings, dict) else None
    if not isinstance(name, str) or name not in CODECS:
        raise ValueError(f"there is no codec {str(name)[:40]!r}; there are: {', '.join(sorted(CODECS))}")
    return msgspec.convert(settings, CODECS[name])
