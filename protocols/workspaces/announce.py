"""News of a workspace on its topic: a member says which entries nobody has linked to yet, so that others ask it."""

from collections.abc import Callable
from typing import Annotated, Final

from msgspec import Meta

from protocols import envelope
from protocols.envelope import Purpose, Signed
from protocols.message import Message
from protocols.topics import topic_name
from protocols.workspaces.sync import PROTOCOL
from storage.cid import Cid
from storage.keys import Identity, PeerId

MAX_HEADS: Final = 64


class News(Message, frozen=True, tag="workspace", kw_only=True):
    """The author has these entries, and all before them. `heads` are some of those that nothing links to."""

    heads: Annotated[tuple[Cid, ...], Meta(min_length=1, max_length=MAX_HEADS)]


def topic_of(workspace: Cid) -> str:
    """The topic of a workspace."""
    return topic_name("workspaces", str(workspace))


def seal_news(
    identity: Identity, workspace: Cid, news: News, next_sequence: Callable[[bytes], int], unix_s: float
) -> bytes:
    """Sign news for the topic of a workspace. Raises: TooBig, Local."""
    return envelope.seal_announcement(identity, _purpose(workspace), news, next_sequence, unix_s)


def open_news(data: bytes, workspace: Cid, sender: PeerId, unix_s: float) -> Signed[News]:
    """Verify and read what `sender` says on the topic of a workspace. Raises: TooBig, Malformed, Expired, Forged."""
    return envelope.open_announcement(data, _purpose(workspace), News, sender, unix_s)


def _purpose(workspace: Cid) -> Purpose:
    return Purpose(protocol=PROTOCOL, topic=topic_of(workspace))
