"""Places for connections, those that are being made among them: libp2p counts them, and here the count comes out right.

libp2p 0.8.1 forgets to free the place of a dial that is cancelled in its handshake, which any of several addresses is
once another leads to the peer, and one that stays silent always. It has 1,000; when these are gone it halves them, and
a node is alone until its next start.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from libp2p.rcmgr.manager import ResourceManager


class _Place:
    """Free once it is closed, or nobody has it any more."""

    def __init__(self, free: Callable[[], None]) -> None:
        self._free: Callable[[], None] | None = free

    def close(self) -> None:
        """Free it, once."""
        free, self._free = self._free, None
        if free is not None:
            free()

    def __del__(self) -> None:
        self.close()


class Places(ResourceManager):  # type: ignore[misc]  # libp2p's types are not followed
    """As many as libp2p has by default, and never fewer."""

    def __init__(self) -> None:
        super().__init__(enable_circuit_breaker=False, enable_graceful_degradation=False)

    @property
    def n_taken(self) -> int:
        """How many are taken, by connections that stand and by those that are being made."""
        return int(self._current_connections)

    def open_connection(
        self, peer_id: Any = None, endpoint_ip: str | None = None, direction: str = "inbound"
    ) -> _Place | None:
        """A place; None where there is none."""
        peer = str(peer_id) if peer_id is not None else ""
        if not self.acquire_connection(peer, endpoint_ip=endpoint_ip, direction=direction):
            return None
        return _Place(partial(self.release_connection, peer, endpoint_ip=endpoint_ip, direction=direction))
