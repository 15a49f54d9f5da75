"""Single blocks, as bytes."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from daemon.api.operation import Operation, Params, Result
from daemon.api.operations.pin import Pin

if TYPE_CHECKING:
    from daemon.app import Node

BlockPath = Annotated[
    str, Meta(max_length=4096, description="A file; - for stdin.", extra={"path": True, "stdin": True})
]
BlockCid = Annotated[str, Meta(max_length=2048, description="The CID of the block.")]
CodecName = Literal["raw", "dag-pb", "dag-cbor", "dag-json"]
HashName = Annotated[
    Literal["sha2-256", "sha2-512", "blake3", "blake2b-256", "blake2b-512"],
    Meta(description="The hash function of the CID."),
]
IsPinned = Annotated[bool, Meta(description="Keep this one block when garbage is collected.")]


class Put(Params, frozen=True):
    """Bytes that are one block, and how they are named. Only this node sees it, until it is shared."""

    path: BlockPath
    codec: Annotated[CodecName, Meta(description="What the bytes are; they are held to it.")] = "raw"
    hash: HashName = "sha2-256"
    is_pinned: IsPinned = True


class Stored(Result, frozen=True):
    """The block is stored, durably."""

    cid: str
    n_bytes: int


class Get(Params, frozen=True):
    """Which block."""

    cid: BlockCid
    timeout_s: Annotated[float, Meta(gt=0, le=86_400, description="Give up when it did not come for so long.")] = 30.0


class Which(Params, frozen=True):
    """Which block."""

    cid: BlockCid


class Stat(Result, frozen=True):
    """A block that is here. `visibility` is none where the CID holds the bytes itself.

    `pins` are those of the block itself, not of what links to it.
    """

    cid: str
    n_bytes: int
    codec: str
    hash: str
    visibility: str | None
    pins: list[Pin]


async def put(node: "Node", params: Put) -> Stored:
    """Hold the bytes to their codec, and store them."""
    import trio

    return await trio.to_thread.run_sync(_put, node, params)


def _put(node: "Node", params: Put) -> Stored:
    """Raises: BadInput, TooLarge, Unfit."""
    from pathlib import Path

    from daemon.content import keep_block, read_for_block
    from daemon.errors import BadInput
    from storage.codecs import CODECS
    from storage.errors import InvalidBlock

    data = read_for_block(Path(params.path))
    codec = next(codec for codec in CODECS.values() if codec.name == params.codec)
    try:
        codec.links(data)  # decodes too, and every link is one
    except InvalidBlock as error:
        raise BadInput(f"the bytes are no block of {params.codec}: {error}") from None
    cid = keep_block(node, data, codec.code, params.hash, is_pinned=params.is_pinned)
    return Stored(cid=str(cid), n_bytes=len(data))


async def get(node: "Node", params: Get) -> AsyncIterator[bytes]:
    """The bytes of a block, from here or from a peer; not what it links to."""
    from daemon.content import read_block
    from storage.cid import Cid

    with node.store.lease():
        yield await read_block(node, Cid.parse(params.cid), params.timeout_s)


async def stat(node: "Node", params: Which) -> Stat:
    """What is known of a block that is here; nothing is fetched."""
    import trio

    return await trio.to_thread.run_sync(_stat, node, params.cid)


def _stat(node: "Node", text: str) -> Stat:
    """Raises: InvalidCid, NotFoundHere."""
    from daemon.content import seen_by
    from daemon.errors import NotFoundHere
    from storage.cid import Cid
    from storage.multicodec import codec_name, hash_name

    cid = Cid.parse(text)
    n_bytes = node.store.unnoticed().size(cid)
    if n_bytes is None:
        raise NotFoundHere(f"{cid} is not here. To fetch it: covey block get {cid}")
    pins = [pin for pin in node.pins.list() if pin.cid.as_v1() == cid.as_v1()]
    return Stat(
        cid=str(cid),
        n_bytes=n_bytes,
        codec=codec_name(cid.codec),
        hash=hash_name(cid.hash_code),
        visibility=seen_by(node, cid) if cid.inline is None else None,
        pins=[Pin(cid=str(pin.cid), name=pin.name, kind=pin.kind, state=pin.state) for pin in pins],
    )


OPERATIONS = (
    Operation(
        noun="block",
        verb="put",
        summary="Store bytes as one block; print its CID.",
        params=Put,
        result=Stored,
        handler=put,
        arguments=("path",),
    ),
    Operation(
        noun="block",
        verb="get",
        summary="Write a block's bytes to stdout, fetched where need be.",
        params=Get,
        result=bytes,
        handler=get,
        is_stream=True,
        arguments=("cid",),
    ),
    Operation(
        noun="block",
        verb="stat",
        summary="Show a block's size, codec, pins and who may see it.",
        params=Which,
        result=Stat,
        handler=stat,
        arguments=("cid",),
    ),
)
