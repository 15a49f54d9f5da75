"""How a node asks a peer which base models it offers: a name or a fingerprint in, the CIDs of manifests out.

One frame asks, the answer is a frame for each model that fits and that the asker may see, then the end of the stream.
An offer is a hint and signed by nobody: what it names is a manifest, which is.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final

from msgspec import Meta

from protocols.adapters import Name, Version
from protocols.artifacts import MAX_ARTIFACT_BYTES
from protocols.framing import read_frame, write_frame
from protocols.message import Message, decode, encode
from protocols.net import Network, Stream
from storage.cid import Cid
from storage.keys import PeerId

PROTOCOL: Final = "/covey/models/1.0.0"
MAX_ASK_BYTES: Final = 1 << 10
MAX_OFFER_BYTES: Final = 1 << 10
MAX_OFFERS: Final = 64


class Ask(Message, frozen=True, tag="ask_models", kw_only=True):
    """Which models do you offer of this name, for adapters with this base? All, where neither is said."""

    name: Name | None = None
    base: Cid | None = None


class Offer(Message, frozen=True, tag="model_offer", kw_only=True):
    """There is a model: `manifest` names its entry block, the rest repeats what the manifest says."""

    manifest: Cid
    name: Name
    version: Version
    n_bytes: Annotated[int, Meta(ge=0, le=MAX_ARTIFACT_BYTES)]
    base: Cid


async def ask(network: Network, peer: PeerId, question: Ask) -> list[Offer]:
    """Ask `peer` for what it offers. Raises: DialFailed, ProtocolRefused, StreamBroken, TooBig, Malformed."""
    offers: list[Offer] = []
    stream = await network.open_stream(peer, [PROTOCOL])
    try:
        await write_frame(stream, encode(question, MAX_ASK_BYTES), MAX_ASK_BYTES)
        await stream.finish()
        while len(offers) < MAX_OFFERS and (frame := await read_frame(stream, MAX_OFFER_BYTES)) is not None:
            offers.append(decode(frame, Offer, MAX_OFFER_BYTES))
    finally:
        await stream.aclose()
    return offers


async def answer(stream: Stream, offered: Callable[[Ask], Awaitable[Sequence[Offer]]]) -> None:
    """Answer with what `offered(question)` gives. Raises: what reading raises."""
    frame = await read_frame(stream, MAX_ASK_BYTES)
    if frame is None:
        return
    for offer in (await offered(decode(frame, Ask, MAX_ASK_BYTES)))[:MAX_OFFERS]:
        await write_frame(stream, encode(offer, MAX_OFFER_BYTES), MAX_OFFER_BYTES)
    await stream.finish()
