"""GossipSub with signatures required, validators before relay, and delivery through our own fan-out.

Half of what a delivery costs in py-libp2p is beside it: a signed record of the sender's addresses in every RPC, made
and verified anew; a note to all that a message of any size is not wanted twice; three locked reads for each RPC. Here
the record goes out with the first RPC alone and is verified when it changes; only large messages are worth the note;
and what came is cut into RPCs by our own framing.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any, Final

from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IOException, MessageTooLarge
from libp2p.peer.id import ID
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.pubsub import gossipsub, pubsub
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.utils import maybe_consume_signed_record

from protocols.errors import Malformed, TooBig
from protocols.framing import FrameReader
from protocols.net import MAX_TOPIC_MESSAGE_BYTES, TopicMessage
from protocols.net_libp2p.addresses import to_peer
from protocols.topics import Subscriptions

HEARTBEAT_S: Final = 1
MAX_RPC_BYTES: Final = 1 << 20
MAX_TOPICS_PER_PEER: Final = 512
READ_BYTES: Final = 64 << 10
MIN_NOTED_BYTES: Final = 1 << 10  # GossipSub 1.2: a smaller message costs less twice than the note that it is known
MAX_RECORDS: Final = 1024  # of peers that send theirs with every RPC


class Router(GossipSub):  # type: ignore[misc]  # libp2p's types are not followed
    """GossipSub that notes as known only what is worth a note."""

    async def _emit_idontwant_for_message(self, msg_id: bytes, topic_ids: Iterable[str]) -> None:
        message = self.mcache.get(msg_id)
        if message is None or len(message.data) >= MIN_NOTED_BYTES:
            await super()._emit_idontwant_for_message(msg_id, topic_ids)


def build_router() -> Any:
    """A GossipSub router with the usual degrees."""
    _patch()
    return Router(
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

    def get_hello_packet(self) -> Any:
        """See `Pubsub`: the first RPC to a peer, and the only one with our record."""
        packet = super().get_hello_packet()
        packet.senderRecord = env_to_send_in_RPC(self.host)[0]
        return packet

    async def write_msg(self, stream: Any, rpc_msg: Any) -> bool:
        """See `Pubsub`."""
        if not rpc_msg.senderRecord:
            rpc_msg.ClearField("senderRecord")  # an empty one would be refused
        return bool(await super().write_msg(stream, rpc_msg))

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


# --- in place of functions that no parameter reaches


def _patch() -> None:
    for module in (pubsub, gossipsub):
        module.env_to_send_in_RPC = lambda host: (b"", False)
        module.maybe_consume_signed_record = _Records().accept
    pubsub.read_varint_prefixed_bytes_limited = read_rpc


class _Records:
    """What each peer said of itself last, which need not be verified twice."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Any, Any], bytes] = OrderedDict()

    def accept(self, rpc: Any, host: Any, peer_id: Any) -> bool:
        """Is the record of an RPC, if it has one, the sender's own?"""
        if not rpc.HasField("senderRecord"):
            return True
        key, record = (host.get_id(), peer_id), bytes(rpc.senderRecord)
        if self._known.get(key) == record:
            return True
        if not maybe_consume_signed_record(rpc, host, peer_id):
            return False
        self._known[key] = record
        if len(self._known) > MAX_RECORDS:
            self._known.popitem(last=False)
        return True


async def read_rpc(stream: Any, max_bytes: int) -> bytes:
    """The next RPC of a stream; what came behind it waits on the stream for the next call. Raises: IOException."""
    if not hasattr(stream, "rpcs"):
        stream.rpcs, stream.rpc_reader = deque[bytes](), FrameReader(max_bytes)
    while not stream.rpcs:
        data = await stream.read(READ_BYTES)
        try:
            stream.rpcs.extend(stream.rpc_reader.feed(data))
        except TooBig as error:
            raise MessageTooLarge(str(error)) from None
        except Malformed as error:
            raise IOException(str(error)) from None
    return bytes(stream.rpcs.popleft())
