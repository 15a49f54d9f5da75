"""What the tasks of one fetch share."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from protocols.bitswap.shell import Exchange, Session
from protocols.fetch.contest import Contest
from protocols.fetch.walk import Links, Walk
from protocols.net import PeerInfo
from protocols.sources import HttpSource
from storage.blockstore import Visibility
from storage.keys import PeerId

FindMore = Callable[[], Awaitable[Sequence[PeerInfo]]]
Announce = Callable[[], Awaitable[None]]


class Level(NamedTuple):
    """Who may see the blocks that come: at the level `show` those that `voucher` itself gives, or all without one."""

    show: Visibility = Visibility.PRIVATE
    voucher: PeerId | None = None


@dataclass(eq=False)
class Fetch:
    """The state that a fetch's tasks share."""

    exchange: Exchange
    session: Session
    walk: Walk
    links: Links
    level: Level
    known: dict[PeerId, PeerInfo]
    find_more: FindMore | None
    active_s: float  # when a block came last, or some of one
    announce: Announce | None = None
    stream: HttpSource | None = None  # that gives the whole of it, or is about to
    is_met: bool = False  # the stream came to what peers had given, and ended
    contest: Contest | None = None  # of that stream with the peers
    is_keeping: bool = False  # what arrived is being written
    kept: trio.Event = field(default_factory=trio.Event)  # some of it was
    shown: trio.Event = field(default_factory=trio.Event)  # the first block that others may have is in the store
    unreached: dict[PeerId, str] = field(default_factory=dict)  # who of the known, and why
    sources: set[HttpSource] = field(default_factory=set)  # that were asked
    patience: trio.CancelScope = field(default_factory=trio.CancelScope)  # around the wait for blocks
