"""What all messages between the daemon and the engine's worker have in common; see `messages`."""

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

MAX_TEXT_CHARS = 4 << 20
Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
Path = Annotated[str, Meta(min_length=1, max_length=4096)]
Seed = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Message(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """Base of all messages."""

    is_final: ClassVar[bool] = False

    id: Annotated[int, Meta(ge=0)] = 0
