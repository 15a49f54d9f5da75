"""Find out whether others can dial this node, and try for others: AutoNAT in a node."""

from typing import Final

import structlog
import trio

from daemon.events import EventFeed
from protocols.autonat.dialbacks import Dialbacks
from protocols.autonat.outlook import Outlook, Reach
from protocols.autonat.shell import answering, ask
from protocols.autonat.wire import PROTOCOL
from protocols.errors import ProtocolRefused, Remote
from protocols.net import Link, Network
from storage.catalog.peers import PeerBook
from storage.keys import PeerId

LOOK_S: Final = 5.0
ASK_LIMIT_S: Final = 40.0

log = structlog.get_logger(__name__)


def serve_dialbacks(is_wished: bool, network: Network) -> None:
    """Dial who asks for it, where the settings have it so."""
    if is_wished:
        network.serve(PROTOCOL, answering(network, Dialbacks(trio.current_time())))


async def keep_asking(
    network: Network,
    book: PeerBook,
    outlook: Outlook,
    feed: EventFeed,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Ask peers on the public internet to dial this node, now and then, until cancelled."""
    task_status.started()
    was = Reach.UNKNOWN
    while True:
        links = network.connections()
        due = outlook.due(links, trio.current_time())
        if due:
            friends = await trio.to_thread.run_sync(book.flock)
            async with trio.open_nursery() as nursery:
                for link in {link.peer: link for link in links if link.peer in due}.values():
                    nursery.start_soon(_ask, network, link, outlook, friends)
        now = outlook.reach(trio.current_time())
        if now is not was:
            log.info("reach_changed", reachable=str(now))
            feed.note("reach_changed", {"text": str(now)})
            was = now
        await trio.sleep(LOOK_S)


async def _ask(network: Network, link: Link, outlook: Outlook, friends: frozenset[PeerId]) -> None:
    is_reached, is_refused = None, False
    try:
        with trio.move_on_after(ASK_LIMIT_S):
            is_reached = await ask(network, link.peer)
    except ProtocolRefused:
        is_refused = True
    except Remote as error:
        log.info("dial_back_failed", peer=str(link.peer), error=str(error))
    if is_reached is None:
        outlook.silent(link.peer, is_refused, trio.current_time())
    else:
        outlook.heard(link, is_reached, friends, trio.current_time())
