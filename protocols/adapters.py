"""How adapters are described, announced and asked for.

A **manifest** is the content of a history entry of kind `adapter` whose scope is the fingerprint of the base model; it
links to the adapter's files. An **announcement** is a live message on the topic of that fingerprint; it names a
manifest, so that whoever listens can judge it before a byte of the adapter moves. **Catch-up** (`PROTOCOL`)
is for newcomers: one frame asks a peer for what it announces on some bases, the answer is a frame for each, freshly
signed, then the end of the stream. A peer answers for itself alone.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from protocols import envelope
from protocols.content import content_of, read_content
from protocols.envelope import Purpose, Signed
from protocols.errors import Malformed
from protocols.framing import read_frame, write_frame
from protocols.message import Message, decode, encode
from protocols.net import Network, Stream
from protocols.topics import topic_name
from storage.blockstore import Visibility
from storage.cid import Cid
from storage.keys import Identity, PeerId

PROTOCOL: Final = "/covey/adapters/1.0.0"
KIND: Final = "adapter"

MAX_MANIFEST_BYTES: Final = 64 << 10
MAX_ASK_BYTES: Final = 4 << 10
MAX_ANSWERS: Final = 256
MAX_BASES: Final = 64
MAX_ADDRESSES: Final = 8
MAX_VERSION: Final = (1 << 31) - 1
MAX_ADAPTER_BYTES: Final = 8 << 30
MAX_RANK: Final = 4096
MAX_TARGETS: Final = 64
MAX_TAGS: Final = 16
MAX_FACTS: Final = 32

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Version = Annotated[int, Meta(ge=1, le=MAX_VERSION)]
NBytes = Annotated[int, Meta(ge=1, le=MAX_ADAPTER_BYTES)]
Label = Annotated[str, Meta(max_length=128)]
Tag = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}\Z")]
Audience = Literal["members", "flock", "public"]
_AUDIENCES: Final[Mapping[Visibility, Audience]] = {Visibility.FLOCK: "flock", Visibility.PUBLIC: "public"}
Fact = Annotated[str, Meta(max_length=256)] | Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | float | bool


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base model that an adapter was trained on; the fingerprint decides, the rest is for people."""

    fingerprint: Cid
    name: Label
    architecture: Label


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an adapter is. `files` is a UnixFS directory; `version` grows under one publisher's name.

    `parent` is the entry of the adapter that this one was made from, or None. `training` and `metrics` are the
    publisher's word. `audience` is to whom a node that fetched it may pass it on: to nobody (`members`), to the peers
    that it trusts itself (`flock`), to everybody.
    """

    format: Literal[1] = 1
    name: Name
    version: Version
    base: Base
    files: Cid
    n_bytes: NBytes
    n_params: Annotated[int, Meta(ge=1, le=MAX_ADAPTER_BYTES)]
    rank: Annotated[int, Meta(ge=1, le=MAX_RANK)]
    alpha: Annotated[float, Meta(gt=0, le=1e6)]
    targets: Annotated[tuple[Label, ...], Meta(min_length=1, max_length=MAX_TARGETS)]
    parent: Cid | None = None
    training: Annotated[dict[Label, Fact], Meta(max_length=MAX_FACTS)] = {}
    metrics: Annotated[dict[Label, float], Meta(max_length=MAX_FACTS)] = {}
    tags: Annotated[tuple[Tag, ...], Meta(max_length=MAX_TAGS)] = ()
    licence: Label | None = None
    audience: Audience = "flock"
    created_unix_s: Annotated[int, Meta(ge=0, le=envelope.MAX_UNIX_S)]


class Announcement(Message, frozen=True, tag="adapter", kw_only=True):
    """There is an adapter: `manifest` names its entry block, the rest repeats what the manifest says.

    `addresses` tell where its publisher can be reached, without the /p2p part.
    """

    manifest: Cid
    name: Name
    version: Version
    n_bytes: NBytes
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=MAX_ADDRESSES)] = ()


class Ask(Message, frozen=True, tag="ask_adapters", kw_only=True):
    """What do you announce for these bases?"""

    bases: Annotated[tuple[Cid, ...], Meta(min_length=1, max_length=MAX_BASES)]


class Answer(Message, frozen=True, tag="announced", kw_only=True):
    """One announcement, as its envelope, for a base that was asked for."""

    base: Cid
    envelope: Annotated[bytes, Meta(max_length=envelope.MAX_ANNOUNCEMENT_BYTES)]


_MAX_ANSWER_BYTES: Final = envelope.MAX_ANNOUNCEMENT_BYTES + 256


def manifest_content(manifest: Manifest) -> dict[str, Any]:
    """The manifest as a DAG-CBOR value, links as `Cid`."""
    return content_of(manifest)


def read_manifest(content: Mapping[str, Any]) -> Manifest:
    """The manifest in an entry's content. Raises: Malformed."""
    return read_content(content, Manifest, "the manifest of an adapter", every_field=False)


def audience_of(level: Visibility) -> Audience:
    """To whom those who fetch what is shown at this level may pass it on."""
    return _AUDIENCES.get(level, "members")


def check_manifest(manifest: Manifest) -> Manifest:
    """The same manifest, when others will accept it. Raises: Malformed."""
    return read_manifest(manifest_content(manifest))


def topic_of(base: Cid) -> str:
    """The topic on which adapters for the base with this fingerprint are announced."""
    return topic_name("adapters", str(base))


def seal_announcement(
    identity: Identity, base: Cid, announcement: Announcement, next_sequence: Callable[[bytes], int], unix_s: float
) -> bytes:
    """Sign an announcement for the topic of `base`. Raises: TooBig, Local."""
    return envelope.seal_announcement(identity, _purpose(base), announcement, next_sequence, unix_s)


def open_announcement(data: bytes, base: Cid, sender: PeerId, unix_s: float) -> Signed[Announcement]:
    """Verify and read what `sender` announced on the topic of `base`.

    Raises: TooBig, Malformed, Expired, Forged (also when another than the sender signed it).
    """
    return envelope.open_announcement(data, _purpose(base), Announcement, sender, unix_s)


async def ask(network: Network, peer: PeerId, bases: Iterable[Cid]) -> list[tuple[Cid, bytes]]:
    """Ask `peer` for what it announces: bases and envelopes, which are yet to be opened.

    Raises: DialFailed, ProtocolRefused, StreamBroken, TooBig, Malformed.
    """
    wanted = tuple(sorted(bases))[:MAX_BASES]
    replies: list[tuple[Cid, bytes]] = []
    stream = await network.open_stream(peer, [PROTOCOL])
    try:
        await write_frame(stream, encode(Ask(bases=wanted), MAX_ASK_BYTES), MAX_ASK_BYTES)
        await stream.finish()
        while len(replies) < MAX_ANSWERS and (frame := await read_frame(stream, _MAX_ANSWER_BYTES)) is not None:
            reply = decode(frame, Answer, _MAX_ANSWER_BYTES)
            if reply.base not in wanted:
                raise Malformed(f"{peer} answered for a base that was not asked for")
            replies.append((reply.base, reply.envelope))
    finally:
        await stream.aclose()
    return replies


async def answer(stream: Stream, announced: Callable[[Cid, int], Awaitable[Sequence[bytes]]]) -> None:
    """Answer a newcomer with the envelopes that `announced(base, n_most)` gives. Raises: what reading raises."""
    frame = await read_frame(stream, MAX_ASK_BYTES)
    if frame is None:
        return
    question = decode(frame, Ask, MAX_ASK_BYTES)
    n_left = MAX_ANSWERS
    for base in sorted(set(question.bases)):
        envelopes = await announced(base, n_left)
        n_left -= len(envelopes)
        for data in envelopes:
            reply = Answer(base=base, envelope=data)
            await write_frame(stream, encode(reply, _MAX_ANSWER_BYTES), _MAX_ANSWER_BYTES)
    await stream.finish()


def _purpose(base: Cid) -> Purpose:
    return Purpose(protocol=PROTOCOL, topic=topic_of(base))
