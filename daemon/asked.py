"""What operations share of reading what a user asks: whom to ask, what peers are called here, where to write to."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from daemon import wall
from daemon.errors import NotFoundHere
from protocols.addresses import host_of, is_loopback
from protocols.errors import DialFailed
from protocols.net import PeerInfo
from storage.keys import PeerId
from storage.staging import refuse_existing

if TYPE_CHECKING:
    from daemon.app import Node

DIAL_LIMIT_S: Final = 15.0
MAX_ASKED: Final = 32
ME: Final = "me"


async def whom(node: "Node", text: str | None) -> list[PeerId]:
    """Whom to ask: the one of that id, name or address, connected to if need be; without one, all who are connected.

    Raises: NotFoundHere, Unfit, Malformed; DialFailed, with the reason, where who is named cannot be reached.
    """
    from daemon.api.operations.peer import resolve

    if text is None:
        return node.network.peers()[:MAX_ASKED]
    peer = await resolve(node, text)
    if text.startswith("/"):
        info = PeerInfo.parse(text)
    else:
        info = PeerInfo(peer, await trio.to_thread.run_sync(node.catalog.peers.addresses, peer))
    try:
        with trio.fail_after(DIAL_LIMIT_S):
            await node.network.connect(info)
    except trio.TooSlowError:
        raise DialFailed(f"{peer} was not reached within {DIAL_LIMIT_S:g} s") from None
    # At once: what comes of this is counted on, and a node that dies now has to find that peer again.
    await trio.to_thread.run_sync(node.catalog.peers.heard, peer, info.addresses, wall.unix_s())
    return [peer]


def way_here(node: "Node") -> str:
    """What one who has not met this node gives for --from: an address, from elsewhere if it can be; else the id."""
    texts = node.network.addresses()
    outward = [text for text in texts if not is_loopback(host_of(text))]
    return next(iter([*outward, *texts]), str(node.identity.peer_id))


async def names(node: "Node") -> dict[PeerId, str]:
    """What peers are called here: `me`, and those that the user gave a name; of the others nothing is said."""
    return await trio.to_thread.run_sync(node.catalog.peers.names) | {node.identity.peer_id: ME}


def new_target(path: str) -> Path:
    """Where something is to be written: told before anything is fetched for it.

    Raises: NotFoundHere without a folder to write into; TargetExists.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise NotFoundHere(f"there is no folder {target.parent} to write into. Make it first: mkdir -p")
    refuse_existing(target)
    return target
