"""Readers of the DHT: questions for values, and the answers to ours."""

from typing import Any, Final

from libp2p.kad_dht.pb.kademlia_pb2 import Message

from protocols.errors import Remote
from protocols.ipns import make_record
from protocols.name_records import NameRecords, key_of_name
from protocols.net_libp2p.values import Values, answer_value, note_closer, parsed
from storage.keys import Identity
from tests.campaigns.fuzz_reader import Reader

UNIX_S: Final = 1_800_000_000
_ME, _OTHER = Identity(b"\x01" * 32), Identity(b"\x02" * 32)
_KEY: Final = key_of_name(_OTHER.peer_id)


class _Table:
    """Stands where py-libp2p's DHT does: nobody is known, and what is told is not kept."""

    def __init__(self) -> None:
        self.host = self.routing_table = self

    def find_local_closest_peers(self, key: bytes, n: int) -> list[Any]:
        return []

    def _add_closer_peers_to_response(self, reply: Any, peers: list[Any], exclude_peer_id: Any) -> None:
        pass

    def get_peerstore(self) -> Any:
        return self

    def add_addrs(self, peer: Any, addresses: list[Any], life_s: int) -> None:
        pass


_TABLE: Final = _Table()
_VALUES: Final = Values(NameRecords(_ME.peer_id), lambda: UNIX_S)


def _message(kind: Any) -> Any:
    return Message(type=kind, key=_KEY)


def _put() -> bytes:
    message = _message(Message.MessageType.PUT_VALUE)
    message.record.key = _KEY
    message.record.value = make_record(_OTHER, "/ipfs/x", sequence=1, unix_s=UNIX_S)
    return bytes(message.SerializeToString())


def _answer() -> bytes:
    message = parsed(_put())
    message.type = Message.MessageType.GET_VALUE
    closer = message.closerPeers.add()
    closer.id, closer.connection = bytes(_ME.peer_id), Message.ConnectionType.CONNECTED
    closer.addrs.append(bytes.fromhex("047f000001060fa1"))
    return bytes(message.SerializeToString())


def _asked(data: bytes) -> object:
    _n_asked[0] += 1  # a minute each: no peer asks too much
    return answer_value(_TABLE, _VALUES, _OTHER.peer_id, parsed(data), 60.0 * _n_asked[0])


_n_asked: Final = [0]

READERS: Final = (
    Reader(
        "dht-value", _asked, (Remote,), (_put(), bytes(_message(Message.MessageType.GET_VALUE).SerializeToString()))
    ),
    Reader("dht-answer", lambda data: note_closer(_TABLE, parsed(data)), (Remote,), (_answer(),)),
)
