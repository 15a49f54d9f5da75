"""What a plan says of who takes part, beside its list of members, and what members say of themselves when they join."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

MAX_CLAIM: Final = 1 << 50
MAX_CHANCE: Final = 1 << 40
MAX_PLACES: Final = 1024
MAX_PASSED: Final = 8

Amount = Annotated[int, Meta(ge=0, le=MAX_CLAIM)]


class Has(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a member says that it can do, or what a plan needs: at least so much, and that device. Nobody can check it.

    0, or no device, is nothing said, and nothing asked for.

    device: as `covey engine status` names it: cpu, cuda, mps. memory_bytes: of the machine. n_samples: to learn from.
    tokens_per_s: that its engine was seen to do.
    """

    device: Annotated[str, Meta(pattern=r"^[a-z0-9]{0,16}\Z")] = ""
    memory_bytes: Amount = 0
    n_samples: Amount = 0
    tokens_per_s: Amount = 0


class Chances(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the draw of who is selected is weighed: by what members say that they have, up to `most`; 1 at least."""

    by: Literal["memory_bytes", "n_samples", "tokens_per_s"]
    most: Annotated[int, Meta(ge=2, le=MAX_CHANCE)]


class LetIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many a plan's members may let in whom it does not name: the author `direct`, each other member `each`.

    Each grant of this kind has a place of its own below that number, for one peer, ever. depth: how many times a grant
    of the author's may be passed on until it lets in somebody.
    """

    direct: Annotated[int, Meta(ge=0, le=MAX_PLACES)]
    each: Annotated[int, Meta(ge=0, le=MAX_PLACES)] = 0
    depth: Annotated[int, Meta(ge=0, le=MAX_PASSED)] = 0

    def most(self, n_members: int) -> int:
        """How many there can be, at most, beside so many members of the plan, its author among them."""
        below = [1]
        for _ in range(self.depth):
            below.append(below[-1] * self.each)
        return self.direct * sum(below) + (n_members - 1) * self.each * sum(below[:-1])
