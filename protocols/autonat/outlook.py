"""What a node makes of what others say who tried to dial it. No IO, no clock.

Anybody can lie about it, and gains little: a node that believes to be hidden asks for a relay that it does not need,
one that believes to be in the open has none. So strangers count once a network, and it takes several of them; a peer
that the user trusts is enough. A view that stands gives way only to more than twice as many who say
otherwise, NEEDED at least.
"""

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from protocols.net import Link
from storage.keys import PeerId

NEEDED: Final = 3  # strangers' networks that say the same, or one friend
MAX_VOTES: Final = 32
VOTE_S: Final = 3600.0  # how long what somebody said counts
LOOKING_S, SETTLED_S = 90.0, 900.0  # before the same peer is asked again: while nothing is known, and later
SILENT_S: Final = 300.0  # and one that gave no answer
REFUSED_S: Final = 3600.0  # and one that does not try for others
ASKED_AT_ONCE: Final = 3


class Reach(StrEnum):
    """Can others dial this node?"""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class _Vote(NamedTuple):
    is_reached: bool
    network: str  # empty for a friend
    at_s: float


class Outlook:
    """Whom to ask, and what follows from the answers."""

    def __init__(self) -> None:
        self._votes: dict[PeerId, _Vote] = {}  # the latest last
        self._rest_s: dict[PeerId, float] = {}  # nobody of these is asked before
        self._reach = Reach.UNKNOWN

    @property
    def n_votes(self) -> int:
        """How many answers are kept."""
        return len(self._votes)

    def reach(self, now_s: float) -> Reach:
        """What stands now."""
        self._votes = {peer: vote for peer, vote in self._votes.items() if vote.at_s + VOTE_S > now_s}
        yes, no = self._weight(True), self._weight(False)
        if not yes + no:
            self._reach = Reach.UNKNOWN
        elif yes >= NEEDED and yes > no * (2 if self._reach is Reach.NO else 1):
            self._reach = Reach.YES
        elif no >= NEEDED and no > yes * (2 if self._reach is Reach.YES else 1):
            self._reach = Reach.NO
        return self._reach

    def due(self, links: Sequence[Link], now_s: float) -> list[PeerId]:
        """Whom to ask now: connected peers on the public internet, for others see another network than dials cross."""
        self._rest_s = {peer: until_s for peer, until_s in self._rest_s.items() if until_s > now_s}
        hidden = {link.peer for link in links if link.is_relayed}
        able = [link.peer for link in links if link.peer not in hidden and _network(link)]
        return [peer for peer in dict.fromkeys(able) if peer not in self._rest_s][:ASKED_AT_ONCE]

    def heard(self, link: Link, is_reached: bool, friends: Collection[PeerId], now_s: float) -> None:
        """The peer of this link tried, and reached this node or did not."""
        self._votes.pop(link.peer, None)
        network = "" if link.peer in friends else _network(link)
        for peer in [peer for peer, vote in self._votes.items() if network and vote.network == network]:
            del self._votes[peer]
        self._votes[link.peer] = _Vote(is_reached, network, now_s)
        while len(self._votes) > MAX_VOTES:
            del self._votes[next(iter(self._votes))]
        self._rest_s[link.peer] = now_s + (LOOKING_S if self.reach(now_s) is Reach.UNKNOWN else SETTLED_S)

    def silent(self, peer: PeerId, is_refused: bool, now_s: float) -> None:
        """The peer does not try for others (`is_refused`), or not now."""
        self._rest_s[peer] = now_s + (REFUSED_S if is_refused else SILENT_S)

    def _weight(self, is_reached: bool) -> int:
        votes = [vote for vote in self._votes.values() if vote.is_reached is is_reached]
        return sum(1 if vote.network else NEEDED for vote in votes)


def _network(link: Link) -> str:
    """Where on the public internet a peer is; empty where it is not there."""
    endpoint = link.endpoint
    return "" if endpoint is None else endpoint.network
