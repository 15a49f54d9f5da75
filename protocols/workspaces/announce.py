"""News of a workspace on its topic: a member says which entries nobody has linked to yet, so that others ask it."""

from collections.abc import Callable
from typing import Annotated, Final

from msgspec import Meta

from protocols import envelope
from protocols.envelope import Purpose, Signed
from protocols.errors import Forged, TooBig
from protocols.message import Message
from protocols.topics import topic_name
from protocols.workspaces.sync import PROTOCOL
from storage.cid import Cid
from storage.keys import Identity, PeerId

MAX_ANNOUNCEMENT_BYTES: Final = 4 << 10  # as a whole envelope
MAX_HEADS: Final = 64
ANNOUNCEMENT_TTL_S: Final = 15 * 60


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
    purpose = _purpose(workspace)
    sequence = next_sequence(purpose.external_aad)
    data = envelope.seal(identity, purpose, news, sequence=sequence, unix_s=unix_s, ttl_s=ANNOUNCEMENT_TTL_S)
    if len(data) > MAX_ANNOUNCEMENT_BYTES:
        raise TooBig(f"an announcement of {len(data)} bytes; the limit is {MAX_ANNOUNCEMENT_BYTES}")
    return data


def open_news(data: bytes, workspace: Cid, sender: PeerId, unix_s: float) -> Signed[News]:
    """Verify and read what `sender` says on the topic of a workspace. Raises: TooBig, Malformed, Expired, Forged."""
    if len(data) > MAX_ANNOUNCEMENT_BYTES:
        raise TooBig(f"an announcement of {len(data)} bytes; the limit is {MAX_ANNOUNCEMENT_BYTES}")
    signed = envelope.open(data, _purpose(workspace), News, unix_s=unix_s)
    if signed.author != sender:
        raise Forged(f"{sender} sent an announcement that {signed.author} signed")
    return signed


def _purpose(workspace: Cid) -> Purpose:
    return Purpose(protocol=PROTOCOL, topic=topic_of(workspace))
