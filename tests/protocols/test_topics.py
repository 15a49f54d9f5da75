"""Names of topics and the fan-out to a node's own subscribers."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import Local
from protocols.net import Broadcast, TopicMessage
from protocols.topics import MAX_SCOPE_CHARS, Subscriptions, rendezvous_key, topic_name
from storage.cid import RAW, Cid
from storage.keys import Identity

SENDER = Identity(b"s" * 32).peer_id


def message(data: bytes, topic: str = "t") -> TopicMessage:
    return TopicMessage(topic, SENDER, data)


def test_a_topic_is_named_after_kind_version_and_scope_and_its_key_is_the_cid_of_the_name() -> None:
    name = topic_name("adapters", "bafkreigh2akiscaildc")
    assert name == "/covey/adapters/1/bafkreigh2akiscaildc"
    assert rendezvous_key(name) == Cid.of(name.encode(), RAW)


@pytest.mark.parametrize("scope", ["", "a/b", "a b", "ü", "a\n", "x" * (MAX_SCOPE_CHARS + 1)])
def test_a_scope_that_could_be_misread_is_refused(scope: str) -> None:
    with pytest.raises(Local):
        topic_name("rounds", scope)
    with pytest.raises(Local):
        topic_name(f"rounds/1/{scope}", "x")


@given(st.integers(1, 5), st.lists(st.integers(), max_size=20))
def test_a_full_channel_loses_its_oldest_items_and_never_the_newest(capacity: int, items: list[int]) -> None:
    broadcast = Broadcast[int](capacity)
    with broadcast.listen() as slow:
        for item in items:
            broadcast.send(item)
        kept = []
        try:
            while True:
                kept.append(slow.receive_nowait())
        except trio.WouldBlock:
            pass
    assert kept == items[-capacity:]


def test_a_listener_that_closed_its_channel_disturbs_nobody() -> None:
    broadcast = Broadcast[int](2)
    with broadcast.listen(7) as one, broadcast.listen() as other:
        one.close()
        broadcast.send(1)
        assert other.receive_nowait() == 1
    assert broadcast.n_listeners == 0


def test_a_message_needs_every_validator_and_reaches_every_listener_of_its_topic() -> None:
    subscriptions = Subscriptions()
    with (
        subscriptions.join("t", None) as one,
        subscriptions.join("t", lambda heard: heard.data != b"bad") as other,
        subscriptions.join("u", lambda heard: False),
    ):
        assert subscriptions.topics() == ["t", "u"]
        assert subscriptions.accepts(message(b"good"))
        assert not subscriptions.accepts(message(b"bad"))
        assert not subscriptions.accepts(message(b"good", "u"))
        subscriptions.deliver(message(b"good"))
        subscriptions.deliver(message(b"good", "unknown"))
        assert one.receive_nowait() == other.receive_nowait() == message(b"good")
    assert subscriptions.topics() == []
    assert subscriptions.accepts(message(b"bad"))


def test_a_validator_that_fails_lets_nothing_in_and_blames_nobody() -> None:
    subscriptions = Subscriptions()
    with subscriptions.join("t", lambda heard: bool(1 // 0)):
        assert subscriptions.accepts(message(b"x")) is None
        with subscriptions.join("t", lambda heard: False):  # and who is sure that it is bad is believed
            assert subscriptions.accepts(message(b"x")) is False
