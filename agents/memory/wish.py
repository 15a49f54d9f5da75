"""How much of its memory an agent is told before it thinks, as its declaration has it.

[memory]
episodes = 2        # what it did last, in any run
facts = 4           # of what it remembers, what fits the question best
working = 3         # what was done before in the same run, by whomever
is_shared = true    # facts of all agents of the workspace too
search = "both"     # words and meaning; or words alone
max_chars = 4000    # of all this together

A number alone (`memory = 2`) is that many episodes.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

MAX_EPISODES: Final = 64
MAX_FACTS: Final = 32
MAX_WORKING: Final = 64

Search = Literal["both", "words"]


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a step of the agent's model is told of its memory; nothing by default."""

    episodes: Annotated[int, Meta(ge=0, le=MAX_EPISODES)] = 0
    facts: Annotated[int, Meta(ge=0, le=MAX_FACTS)] = 0
    working: Annotated[int, Meta(ge=0, le=MAX_WORKING)] = 0
    is_shared: bool = False
    search: Search = "both"
    max_chars: Annotated[int, Meta(ge=256, le=16_000)] = 4000


Wish = Annotated[int, Meta(ge=0, le=MAX_EPISODES)] | Memory


def wish_of(declared: Wish) -> Memory:
    """The whole wish."""
    return Memory(episodes=declared) if isinstance(declared, int) else declared
