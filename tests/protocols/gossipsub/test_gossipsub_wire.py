"""GossipSub's bytes: as py-libp2p writes and reads them, and nothing but refusals for what is out of order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.pubsub.pb import rpc_pb2

from protocols.errors import Malformed, TooBig
from protocols.framing import FrameReader
from protocols.gossipsub import wire
from protocols.net import MAX_TOPIC_MESSAGE_BYTES
from storage.keys import Identity

ADA, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
TOPIC = "/covey/adapters/1/x"
IDS = [b"one", b"two"]


def unframed(packet: bytes) -> bytes:
    (found,) = FrameReader(wire.MAX_RPC_BYTES).feed(packet)
    return found


def theirs(packet: bytes) -> rpc_pb2.RPC:
    rpc = rpc_pb2.RPC()
    rpc.ParseFromString(unframed(packet))
    return rpc


def test_a_message_of_ours_is_signed_as_py_libp2p_checks_it_and_read_back_whole() -> None:
    from libp2p.pubsub.validators import signature_validator

    ours = wire.sign(ADA, TOPIC, 7, b"news")
    (message,) = theirs(wire.frame_message(ours.raw)).publish
    assert signature_validator(message)
    assert (message.data, list(message.topicIDs), message.seqno) == (b"news", [TOPIC], (7).to_bytes(8, "big"))
    (read,) = wire.read_rpc(unframed(wire.frame_message(ours.raw))).messages
    assert read == ours and read.is_signed()


def test_all_that_is_said_beside_messages_is_understood_by_both() -> None:
    assert theirs(wire.frame_subscriptions([TOPIC], True)).subscriptions[0].subscribe
    control = theirs(wire.frame_have(TOPIC, IDS)).control
    assert (control.ihave[0].topicID, len(control.ihave[0].messageIDs)) == (TOPIC, 2)
    for packet, field, said in (
        (wire.frame_have(TOPIC, IDS), "have", ((TOPIC, tuple(IDS)),)),
        (wire.frame_want(IDS), "want", tuple(IDS)),
        (wire.frame_graft(TOPIC), "grafts", (TOPIC,)),
        (wire.frame_prune(wire.Prune(TOPIC, 60)), "prunes", (wire.Prune(TOPIC, 60),)),
        (wire.frame_dont_want(IDS), "dont_want", tuple(IDS)),
        (wire.frame_subscriptions([TOPIC], False), "subscriptions", ((TOPIC, False),)),
    ):
        assert getattr(wire.read_rpc(unframed(packet)), field) == said
        assert theirs(packet).ByteSize() == len(unframed(packet))


def test_a_message_is_named_by_what_it_says_and_not_by_its_number() -> None:
    first, again = wire.sign(ADA, TOPIC, 1, b"x"), wire.sign(ADA, TOPIC, 2, b"x")
    assert first.id == again.id and first.usual_id != again.usual_id
    others = [wire.sign(BOB, TOPIC, 1, b"x"), wire.sign(ADA, TOPIC + "y", 1, b"x"), wire.sign(ADA, TOPIC, 1, b"y")]
    assert first.id not in [other.id for other in others]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seqno", b"1"),
        ("from_id", b""),
        ("key", BOB.peer_id[2:]),
        ("topicIDs", []),
        ("topicIDs", [TOPIC, "another"]),
        ("topicIDs", ["x" * (wire.MAX_TOPIC_CHARS + 1)]),
        ("data", bytes(MAX_TOPIC_MESSAGE_BYTES + 1)),
    ],
)
def test_what_no_covey_node_would_pass_on_is_no_message(field: str, value: object) -> None:
    message = rpc_pb2.Message()
    message.ParseFromString(wire.sign(ADA, TOPIC, 1, b"x").raw)
    message.ClearField(field)
    if isinstance(value, list):
        getattr(message, field).extend(value)
    else:
        setattr(message, field, value)
    rpc = wire.read_rpc(rpc_pb2.RPC(publish=[message]).SerializeToString())
    assert (rpc.messages, rpc.n_refused) == ((), 1)


def test_a_message_of_a_stranger_with_an_rsa_key_is_verified_by_the_key_that_it_brings() -> None:
    from libp2p.crypto.rsa import create_new_key_pair
    from libp2p.peer.id import ID

    keys = create_new_key_pair()
    other = create_new_key_pair().public_key.serialize()
    message = rpc_pb2.Message(
        from_id=ID.from_pubkey(keys.public_key).to_bytes(), seqno=bytes(8), data=b"x", topicIDs=[TOPIC]
    )
    message.signature = keys.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())

    def read(key: bytes) -> wire.Message:
        message.key = key
        return wire.read_rpc(rpc_pb2.RPC(publish=[message]).SerializeToString()).messages[0]

    assert read(keys.public_key.serialize()).is_signed()
    for key in (b"", other, b"\x08\x00\x12\x01x", b"\x08\x00\x12" + bytes(700)):
        assert read(key).is_foreign and not read(key).is_signed()
    message.data = b"y"
    assert not read(keys.public_key.serialize()).is_signed()


@pytest.mark.parametrize("field", ["data", "topicIDs", "seqno", "from_id", "signature"])
def test_a_changed_message_is_not_signed(field: str) -> None:
    message = rpc_pb2.Message()
    message.ParseFromString(wire.sign(ADA, TOPIC, 1, b"x").raw)
    message.ClearField("key")
    if field == "topicIDs":
        message.topicIDs[0] = "another"
    else:
        setattr(message, field, BOB.peer_id if field == "from_id" else bytes(8))
    (read,) = wire.read_rpc(rpc_pb2.RPC(publish=[message]).SerializeToString()).messages
    assert not read.is_signed()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\xff", Malformed),
        (b"\x0a\x05", Malformed),
        (b"\x0a\x03\x12\x01\xff", Malformed),
        (b"\x1a\x02\x0a\x00\x1a\x04\x12\x02\x0a\x00", Malformed),  # an empty id
        (b"\x1a\x05\x22\x03\x1a\x01x", Malformed),  # a backoff that is no number
        (b"\x0a\x04\x08\x01\x12\x00", Malformed),  # an empty topic
        (unframed(wire.frame_want([bytes(wire.MAX_ID_BYTES + 1)])), Malformed),
        (unframed(wire.frame_want([b"x"] * (wire.MAX_IDS + 1))), TooBig),
        (unframed(wire.frame_subscriptions(["t"] * (wire.MAX_SUBSCRIPTIONS + 1), True)), TooBig),
        (b"\x12\x00" * (wire.MAX_MESSAGES + 1), TooBig),
        (b"\x30\x00" * (wire.MAX_FIELDS + 1), TooBig),
        (bytes(wire.MAX_RPC_BYTES + 1), TooBig),
    ],
)
def test_what_is_out_of_order_or_too_much_is_refused(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        wire.read_rpc(data)


def test_fields_that_nobody_knows_are_skipped() -> None:
    assert wire.read_rpc(b"\x22\x03abc" + unframed(wire.frame_graft(TOPIC)) + b"\x30\x07").grafts == (TOPIC,)


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    try:
        wire.read_rpc(data)
    except (Malformed, TooBig):
        return


@given(st.integers(0, 200), st.integers(0, 255))
def test_no_damage_to_a_message_is_taken_for_the_message(at: int, byte: int) -> None:
    whole = unframed(wire.frame_message(wire.sign(ADA, TOPIC, 7, b"news").raw))
    damaged = whole[: at % len(whole)] + bytes([byte]) + whole[at % len(whole) + 1 :]
    try:
        found = wire.read_rpc(damaged).messages
    except (Malformed, TooBig):
        return
    for message in found:
        if message.is_signed():
            assert message[:4] == wire.sign(ADA, TOPIC, 7, b"news")[:4]
