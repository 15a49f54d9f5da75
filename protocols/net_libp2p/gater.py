"""Whose connections are let in, and which ones go where there are too many: the connection gater, as libp2p calls it.

It decides alone; `network` closes what it names.
"""

from collections.abc import Collection, Iterable
from typing import Any, Final

import trio
from libp2p.rcmgr import Direction

from protocols.conduct import Conduct
from protocols.errors import DialFailed
from protocols.net_libp2p.addresses import to_id, to_peer
from protocols.net_libp2p.crowd import Crowd
from protocols.net_libp2p.host import MAX_CONNECTIONS, MIN_DIALLED
from protocols.net_libp2p.sockets import places_of, subnet_of
from protocols.strangers import MAX_OF_PEER, MAX_OF_STRANGERS, MAX_STRANGERS, let_go, reason_against
from storage.keys import PeerId


class Gater:
    """Who is protected, who is refused, and who is a stranger.

    Attributes:
        crowd: All who are not protected, who share what they may take up of this node's time.
    """

    def __init__(self, swarm: Any, conduct: Conduct, *, only_protected: bool) -> None:
        self.crowd: Final = Crowd()
        self._swarm = swarm
        self._conduct: Final = conduct
        self._only_protected = only_protected
        self._protected: frozenset[Any] = frozenset()  # in libp2p's form
        self._refused: frozenset[Any] = frozenset()

    def protect(self, peers: Iterable[PeerId]) -> None:
        """Keep to these peers, and to no others from now on."""
        self._protected = frozenset(map(to_id, peers))
        for connection in self._swarm.get_connections():
            self.sort_in(connection)

    def sort_in(self, connection: Any) -> None:
        """Have a connection count to what strangers take up together, or not: however many come, friends are served."""
        muxed = connection.muxed_conn
        muxed.join(None if self._is_kept(connection) else self.crowd.member(muxed.peer_id))

    def is_protected(self, peer: PeerId) -> bool:
        """Does this node keep to the peer?"""
        return to_id(peer) in self._protected

    def refuse(self, peers: Iterable[PeerId]) -> frozenset[Any]:
        """Let none of these peers in, and no others than these. Returns: them, in libp2p's form."""
        self._refused = frozenset(map(to_id, peers))
        return self._refused

    def check(self, peer: PeerId) -> None:
        """May this node dial the peer? Raises: DialFailed."""
        if to_id(peer) in self._refused:
            raise DialFailed(f"{peer} is banned here. To speak with it again: covey peer unban {peer}")
        if not self.is_protected(peer) and (reason := self._conduct.reason_against(peer, trio.current_time())):
            raise DialFailed(f"{peer} is {reason}. To speak with it at once: covey peer unban {peer}")
        if self._only_protected and not self.is_protected(peer):
            raise DialFailed(f"{peer} is none of the peers that this node keeps to (network.is_private)")

    def reason_against(self, connection: Any) -> str:
        """Why not to speak with a peer: it is banned, is not known, or strangers have their share of places."""
        peer_id = connection.muxed_conn.peer_id
        if peer_id in self._refused:
            return "banned"
        if self._only_protected and peer_id not in self._protected:
            return "not known"
        if len(self._swarm.get_connections(peer_id)) > MAX_OF_PEER:
            return "connected often enough"
        inbound = [each for each in self._swarm.get_connections() if each.direction is Direction.INBOUND]
        if connection in inbound and sum(not each.is_closed for each in inbound) > MAX_CONNECTIONS - MIN_DIALLED:
            return "one of too many that come by themselves"
        if not self._is_strangers(connection):
            return ""
        peer, places = to_peer(peer_id), places_of(connection)
        if peer is not None and (reason := self._conduct.reason_against(peer, trio.current_time(), places)):
            return reason
        strangers = [each for each in self._swarm.get_connections() if self._is_strangers(each)]
        subnets = [subnet_of(each) for each in strangers]
        return reason_against(subnets, subnet_of(connection), MAX_STRANGERS)

    def too_many(self, listening: Collection[PeerId]) -> list[Any]:
        """Connections to strangers that this node dialled, beyond what strangers may have; of those `listening`, last.

        Lookups dial whomever they are told of. Nobody else would ever end those; friends would find no place, whichever
        way they are dialled.
        """
        strangers = [each for each in self._swarm.get_connections() if not each.is_closed and not self._is_kept(each)]
        used = {each: each.muxed_conn.used_s for each in strangers if each.direction is Direction.OUTBOUND}
        heard = {each for each in used if to_peer(each.muxed_conn.peer_id) in listening}
        return let_go(used, heard, len(strangers) - MAX_OF_STRANGERS, trio.current_time())

    def _is_strangers(self, connection: Any) -> bool:
        return connection.direction is Direction.INBOUND and not self._is_kept(connection)

    def _is_kept(self, connection: Any) -> bool:
        return connection.muxed_conn.peer_id in self._protected
