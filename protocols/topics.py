"""Names of topics, their key in the DHT, and the fan-out of what arrives to this node's own subscribers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
import trio

from protocols.errors import Local
from protocols.net import TOPIC_CHANNEL_MESSAGES, Broadcast, TopicMessage, Validator
from storage.cid import Cid

KINDS: Final = ("adapters", "workspaces", "rounds")
VERSION: Final = 1
MAX_SCOPE_CHARS: Final = 128

_SCOPE: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_SCOPE_CHARS}}}")

log = structlog.get_logger(__name__)


def topic_name(kind: str, scope: str) -> str:
    """`/covey/<kind>/1/<scope>`; a scope is the text of a CID or peer id. Raises: Local."""
    if kind not in KINDS:
        raise Local(f"{kind!r} is not a kind of topic: {', '.join(KINDS)}")
    if not _SCOPE.fullmatch(scope):
        raise Local(f"{scope[:40]!r} cannot be a topic's scope: 1 to {MAX_SCOPE_CHARS} of A-Z a-z 0-9 . _ -")
    return f"/covey/{kind}/{VERSION}/{scope}"


def rendezvous_key(topic: str) -> Cid:
    """The key under which subscribers of `topic` provide themselves in the DHT: the raw CID of its name."""
    return Cid.of(topic.encode())


class Subscriptions:
    """Who on this node listens to which topic, and what they let in. Both network adapters deliver through it."""

    def __init__(self, capacity: int = TOPIC_CHANNEL_MESSAGES) -> None:
        self._capacity = capacity
        self._listeners: dict[str, Broadcast[TopicMessage]] = {}
        self._validators: dict[str, list[Validator]] = {}

    @contextmanager
    def join(self, topic: str, is_valid: Validator | None) -> Iterator[trio.MemoryReceiveChannel[TopicMessage]]:
        """Listen to `topic` while the block runs."""
        validators = self._validators.setdefault(topic, [])
        if is_valid is not None:
            validators.append(is_valid)
        listeners = self._listeners.setdefault(topic, Broadcast(self._capacity))
        try:
            with listeners.listen() as channel:
                yield channel
        finally:
            if is_valid is not None:
                validators.remove(is_valid)
            if not listeners.n_listeners:
                self._listeners.pop(topic, None)
                self._validators.pop(topic, None)

    def topics(self) -> list[str]:
        """The topics that somebody here listens to."""
        return list(self._listeners)

    def accepts(self, message: TopicMessage) -> bool | None:
        """Does every listener's validator let `message` in? See `Validator`; one that fails gives None."""
        said = {_judge(is_valid, message) for is_valid in self._validators.get(message.topic, ())}
        return False if False in said else None if None in said else True

    def deliver(self, message: TopicMessage) -> None:
        """Hand `message`, already accepted, to every listener of its topic."""
        if message.topic in self._listeners:
            self._listeners[message.topic].send(message)


def _judge(is_valid: Validator, message: TopicMessage) -> bool | None:
    try:
        return is_valid(message)
    except Exception as error:  # noqa: BLE001 - a peer's message must not end the service that reads it
        log.error("topic_validator_failed", topic=message.topic, sender=str(message.sender), error=repr(error))
        return None
