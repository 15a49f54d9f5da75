"""GossipSub with signatures required, validators before relay, and delivery through our own fan-out."""

from typing import Any, Final

from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub

from protocols.net import MAX_TOPIC_MESSAGE_BYTES, TopicMessage
from protocols.net_libp2p.addresses import to_peer
from protocols.topics import Subscriptions

HEARTBEAT_S: Final = 1
MAX_RPC_BYTES: Final = 1 << 20
MAX_TOPICS_PER_PEER: Final = 512


def build_router() -> Any:
    """A GossipSub router with the usual degrees."""
    return GossipSub(
        protocols=[TProtocol("/meshsub/1.2.0"), TProtocol("/meshsub/1.1.0")],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=HEARTBEAT_S,
        # It drops more than 10 messages/s of a topic unseen, honest ones included; CPU bounds a node at about 100/s.
        spam_protection_enabled=False,
    )


class Gossip(Pubsub):  # type: ignore[misc]  # libp2p's types are not followed
    """Pubsub that hands messages to `Subscriptions` in place of channels of its own."""

    def __init__(self, host: Any, router: Any, subscriptions: Subscriptions) -> None:
        super().__init__(
            host,
            router,
            strict_signing=True,
            max_inbound_rpc_size=MAX_RPC_BYTES,
            max_subscriptions_per_rpc=MAX_TOPICS_PER_PEER,
            max_subscriptions_per_peer=MAX_TOPICS_PER_PEER,
        )
        self._subscriptions = subscriptions

    def judge(self, forwarder: Any, message: Any) -> bool:
        """The validator of every topic: runs before a message is delivered or passed on."""
        if message.from_id == self.my_id.to_bytes():
            return bool(forwarder == self.my_id)
        ours = _read(message)
        return ours is not None and self._subscriptions.accepts(ours)

    def notify_subscriptions(self, publish_message: Any) -> None:
        """Deliver a message that was accepted."""
        ours = _read(publish_message)
        if ours is not None and publish_message.from_id != self.my_id.to_bytes():
            self._subscriptions.deliver(ours)


def _read(message: Any) -> TopicMessage | None:
    """The message in the port's form; None for one that Covey would never have sent."""
    sender = to_peer(ID(message.from_id))
    if sender is None or len(message.topicIDs) != 1 or len(message.data) > MAX_TOPIC_MESSAGE_BYTES:
        return None
    return TopicMessage(message.topicIDs[0], sender, bytes(message.data))
