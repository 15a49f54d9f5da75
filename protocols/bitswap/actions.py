"""What the core of wanting is told, and what it decides."""

from typing import NamedTuple

from protocols.bitswap.wire import Entry
from protocols.sources import Giver
from storage.cid import Cid


class Arrived(NamedTuple):
    """A block that came in. `cid` was computed from `data`, never taken from the peer; None: not hashed at all."""

    cid: Cid | None
    data: bytes


class Send(NamedTuple):
    """Put these entries on our wantlist at `peer`."""

    peer: Giver
    entries: tuple[Entry, ...]


class Got(NamedTuple):
    """A wanted block has arrived; its bytes match the CID, which is the one that was wanted.

    `wait_s`: since it was asked of this peer; 0 where it was not.
    """

    sessions: tuple[int, ...]
    peer: Giver
    cid: Cid
    data: bytes
    wait_s: float = 0.0


class Misbehaved(NamedTuple):
    """`peer` sent what nobody asked of it (`unwanted`), or other bytes than it owed (`tampered`)."""

    peer: Giver
    code: str


class NeedProviders(NamedTuple):
    """No peer that the session knows of can serve `cid` now. It stays wanted. Said once, until it was asked again."""

    session: int
    cid: Cid


Action = Send | Got | Misbehaved | NeedProviders


def sends(entries: dict[Giver, list[Entry]]) -> list[Action]:
    """Put these entries on our wantlists at these peers."""
    return [Send(name, tuple(batch)) for name, batch in entries.items()]
