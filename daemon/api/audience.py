"""Who may see something, as operations take it: a level, and the peers that `members` means."""

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

if TYPE_CHECKING:
    from daemon.app import Node
    from storage.blockstore import Visibility
    from storage.keys import PeerId

Who = Annotated[
    Literal["private", "members", "flock", "public"],
    Meta(description="Who may see it: you, the named members, the peers that you trust, or everybody."),
]
Members = Annotated[
    tuple[Annotated[str, Meta(max_length=512)], ...],
    Meta(max_length=256, description="With members: peers by id or name, or role:ROLE@WORKSPACE"),
]


async def audience(node: "Node", who: str, members: tuple[str, ...]) -> "tuple[Visibility, list[PeerId]]":
    """The level and the members' ids. Raises: Unfit when the one is given without the other; NotFoundHere."""
    from daemon.api.operations.peer import resolve_all
    from daemon.errors import Unfit
    from storage.blockstore import Visibility

    if (who == "members") != bool(members):
        raise Unfit("name the members: --visibility members --members PEER,PEER")
    return Visibility[who.upper()], await resolve_all(node, members)
