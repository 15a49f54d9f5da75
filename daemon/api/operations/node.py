"""The node itself."""

from typing import TYPE_CHECKING

from daemon.api.operation import Done, Nothing, Operation, Result

if TYPE_CHECKING:
    from daemon.app import Node


class Status(Result, frozen=True):
    """How the node is. `rss_bytes` is the memory that the daemon's process has in use; `gateway` its URL, where on;
    `flock` the fingerprint of the private flock's key, where it is in one.
    """

    version: str
    peer: str
    home: str
    pid: int
    uptime_s: float
    addresses: list[str]
    gateway: str | None
    flock: str | None
    n_peers: int
    n_blocks: int
    stored_bytes: int
    disk_bytes: int
    last_event: int
    rss_bytes: int


async def status(node: "Node", _params: Nothing) -> Status:
    """Ask each part how it is."""
    import os

    import trio

    from daemon import __version__
    from daemon.measure import rss_bytes

    held = await trio.to_thread.run_sync(node.store.stat)
    return Status(
        version=__version__,
        peer=str(node.identity.peer_id),
        home=str(node.home.root),
        pid=os.getpid(),
        uptime_s=trio.current_time() - node.started_s,
        addresses=node.network.addresses(),
        gateway=node.gateway,
        flock=node.network.flock,
        n_peers=len(node.network.peers()),
        n_blocks=held.n_blocks,
        stored_bytes=held.n_bytes,
        disk_bytes=held.disk_bytes,
        last_event=await trio.to_thread.run_sync(lambda: node.catalog.events.last_id),
        rss_bytes=rss_bytes(),
    )


async def stop(node: "Node", _params: Nothing) -> Done:
    """Begin to stop; the answer still goes out."""
    node.stop("asked over the control socket")
    return Done(text="stopping")


OPERATIONS = (
    Operation(
        noun="node",
        verb="status",
        summary="Show how the node is: its address, peers, content and memory.",
        params=Nothing,
        result=Status,
        handler=status,
        command=None,
    ),
    Operation(
        noun="node",
        verb="stop",
        summary="Stop the daemon.",
        params=Nothing,
        result=Done,
        handler=stop,
        command=None,
    ),
)
