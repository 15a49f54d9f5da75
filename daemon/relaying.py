"""Relays: carry for peers that nobody can dial, and, where this node is one of them, be reached over trusted peers."""

from collections.abc import Callable, Collection, Sequence
from typing import Final

import structlog
import trio

from protocols.autonat.outlook import Outlook, Reach
from protocols.errors import ProtocolRefused, RelayRefused, Remote
from protocols.net import Link, Network
from protocols.relay.circuits import FRIEND, STRANGER, Relay, Terms
from protocols.relay.shell import relaying
from protocols.relay.wire import HOP
from storage.catalog.peers import PeerBook
from storage.keys import PeerId

RELAYS: Final = 2  # where this node reserves
LOOK_S: Final = 5.0
REFUSED_S: Final = 900.0  # before a peer is asked again that does not relay, or has no place
DENIED_S: Final = 60.0  # and one whose owner does not trust us yet
FAILED_S: Final = 30.0
REACHED_S: Final = 3600.0  # a node that somebody dialled from the internet is in the open for so long
ASK_LIMIT_S: Final = 30.0
NOBODY_RELAYS: Final = (
    "others cannot dial this node, and no peer that it dialled and trusts relays: set network.relay to server on one "
    "that can be dialled, and trust each other (covey peer trust)"
)

log = structlog.get_logger(__name__)


class Reservations:
    """At whom to reserve, and when again? No clock, no IO. A peer that refused is left alone for a while."""

    def __init__(self) -> None:
        self._renew_s: dict[PeerId, float] = {}
        self._rest_s: dict[PeerId, float] = {}  # nobody of these is asked before
        self._refusals: dict[PeerId, str] = {}  # of relays that are connected
        self._reached_s = -REACHED_S

    def due(
        self, links: Sequence[Link], trusted: frozenset[PeerId], now_s: float, reach: Reach = Reach.UNKNOWN
    ) -> list[PeerId]:
        """Whom to ask now: relays held whose time is half up, and new ones while there are too few.

        Who can be dialled (`reach`) needs none; while nobody says, that somebody from outside came says so.
        """
        if any(link.is_from_outside for link in links):
            self._reached_s = now_s
        dialled = [link.peer for link in links if link.is_dialled and not link.is_relayed and link.peer in trusted]
        self.keep(dialled)
        for gone in self._refusals.keys() - set(dialled):
            del self._refusals[gone]
        self._rest_s = {peer: until_s for peer, until_s in self._rest_s.items() if until_s > now_s}
        again = [peer for peer, renew_s in self._renew_s.items() if renew_s <= now_s and peer not in self._rest_s]
        if self._is_reached(now_s, reach):
            return []  # what is held lapses
        new = [peer for peer in dict.fromkeys(dialled) if peer not in self._renew_s and peer not in self._rest_s]
        return again + new[: max(0, RELAYS - len(self._renew_s))]

    def keep(self, relays: Collection[PeerId]) -> None:
        """No others relay for us now. One that came back, before anybody saw that it was gone, knows of nothing."""
        self._renew_s = {peer: renew_s for peer, renew_s in self._renew_s.items() if peer in relays}

    def held(self, peer: PeerId, hold_s: float, now_s: float) -> None:
        """`peer` relays for us for so long."""
        self._renew_s[peer] = now_s + hold_s / 2
        self._refusals.pop(peer, None)

    def failed(self, peer: PeerId, error: Remote | None, now_s: float) -> None:
        """`peer` does not relay for us, or (None) did not answer."""
        self._renew_s.pop(peer, None)
        self._refusals.pop(peer, None)
        rest_s = FAILED_S
        if isinstance(error, ProtocolRefused):
            rest_s = REFUSED_S
        elif isinstance(error, RelayRefused):
            rest_s = DENIED_S if error.is_denied else REFUSED_S
            self._refusals[peer] = str(error)
        self._rest_s[peer] = now_s + rest_s

    def why_none(self, now_s: float, reach: Reach = Reach.UNKNOWN) -> str | None:
        """Why no relay brings others here, and what to do; None where one does, or none is known to be needed."""
        if self._renew_s or self._is_reached(now_s, reach):
            return None
        if self._refusals:
            return "; ".join(self._refusals.values())
        return NOBODY_RELAYS if reach is Reach.NO else None

    def _is_reached(self, now_s: float, reach: Reach) -> bool:
        return reach is Reach.YES or (reach is Reach.UNKNOWN and now_s < self._reached_s + REACHED_S)


def serve_as_relay(wish: str, network: Network, book: PeerBook, unix_s: Callable[[], float]) -> Relay | None:
    """Carry for others as `network.relay` says: for trusted peers, or (public) for strangers too, who get little.

    Returns: what is carried for whom; None for a node that relays nothing.
    """
    if wish not in ("server", "public"):
        return None

    def terms_of(peer: PeerId) -> Terms | None:
        if peer in book.flock():
            return FRIEND
        return STRANGER if wish == "public" else None

    relay = Relay()
    network.serve(HOP, relaying(network, relay, terms_of, unix_s))
    return relay


async def keep_reserved(
    network: Network,
    book: PeerBook,
    unix_s: Callable[[], float],
    outlook: Outlook,
    core: Reservations,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Reserve at trusted peers that relay, as long as nobody from outside can dial this node, until cancelled."""
    task_status.started()
    while True:
        trusted = await trio.to_thread.run_sync(book.flock)
        reach = outlook.reach(trio.current_time())
        core.keep(network.relays())
        for peer in core.due(network.connections(), trusted, trio.current_time(), reach):
            try:
                with trio.fail_after(ASK_LIMIT_S):
                    hold_s = await network.reserve(peer, unix_s())
            except (Remote, trio.TooSlowError) as error:
                core.failed(peer, error if isinstance(error, Remote) else None, trio.current_time())
                if not isinstance(error, ProtocolRefused):
                    log.info("relay_failed", peer=str(peer), error=str(error))
            else:
                core.held(peer, hold_s, trio.current_time())
                log.info("relay_reserved", peer=str(peer), hold_s=round(hold_s))
        await trio.sleep(LOOK_S)
