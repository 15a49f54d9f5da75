"""Values and the links between them, whatever the codec of their blocks."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta

from daemon.api.operation import Operation, Params, Progress, Result, reporting
from daemon.api.operations.block import BlockPath, HashName, IsPinned, Stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.api.progress import Report
    from daemon.app import Node
    from storage.cid import Cid

TELL_EVERY_BLOCKS: Final = 256
Reference = Annotated[
    str,
    Meta(max_length=4096, description="CID or CID/path: keys, indices and names of links, across blocks."),
]


class Read(Params, frozen=True):
    """What to read. Blocks on the way that are not here are fetched, one by one."""

    reference: Reference
    timeout_s: Annotated[float, Meta(gt=0, le=86_400, description="Give up when no block came for so long.")] = 30.0


class Resolved(Result, frozen=True):
    """The block that a path leads to, and the rest of the path: that inside of it."""

    cid: str
    path: str


class Put(Params, frozen=True):
    """A value to store as one block. Only this node sees it, until it is shared."""

    path: BlockPath
    input_codec: Annotated[
        Literal["dag-json", "dag-cbor"], Meta(description="What the file is: DAG-JSON as people type it, or DAG-CBOR.")
    ] = "dag-json"
    store_codec: Annotated[Literal["dag-cbor", "dag-json", "dag-pb"], Meta(description="The codec of the block.")] = (
        "dag-cbor"
    )
    hash: HashName = "sha2-256"
    is_pinned: IsPinned = True


class Which(Params, frozen=True):
    """Which DAG, by its root."""

    cid: Annotated[str, Meta(max_length=2048, description="The root.")]


class OfCodec(Result, frozen=True):
    """What a DAG holds of one codec."""

    codec: str
    n_blocks: int
    size_bytes: int


class Stat(Result, frozen=True, tag_field="type", tag="stat"):
    """What of a DAG is here, each block counted once. `n_missing` are linked and not here; they may link to more."""

    cid: str
    n_blocks: int
    size_bytes: int
    n_missing: int
    codecs: list[OfCodec]


async def get(node: "Node", params: Read) -> AsyncIterator[bytes]:
    """The value that a path names, as DAG-JSON."""
    from functools import partial

    import trio

    from daemon.content import walk_path
    from daemon.errors import Unfit
    from storage.codecs import dag_json
    from storage.errors import InvalidBlock, TooLarge

    with node.store.lease():
        walk = await walk_path(node, params.reference, timeout_s=params.timeout_s, needs_value=True)
    try:
        text = await trio.to_thread.run_sync(partial(dag_json.encode, walk.value))
    except (InvalidBlock, TooLarge) as error:
        raise Unfit(f"it has no form in DAG-JSON: {error}. The block: covey block get {walk.cid}") from None
    yield text


async def resolve(node: "Node", params: Read) -> Resolved:
    """Where a path leads: the last block, which may be elsewhere, and what is left of the path."""
    from daemon.content import walk_path

    with node.store.lease():
        walk = await walk_path(node, params.reference, timeout_s=params.timeout_s, needs_value=False)
    return Resolved(cid=str(walk.cid), path="/".join(walk.names))


async def put(node: "Node", params: Put) -> Stored:
    """Read a value, write it as a block, and store that."""
    import trio

    return await trio.to_thread.run_sync(_put, node, params)


def _put(node: "Node", params: Put) -> Stored:
    """Raises: BadInput, TooLarge, Unfit."""
    from pathlib import Path

    from daemon.content import keep_block, read_for_block
    from daemon.errors import BadInput
    from storage.codecs import CODECS, dag_cbor, dag_json, dag_pb
    from storage.errors import InvalidBlock

    data = read_for_block(Path(params.path))
    codec = next(codec for codec in CODECS.values() if codec.name == params.store_codec)
    try:
        value = dag_json.read(data) if params.input_codec == "dag-json" else dag_cbor.decode(data)
        block = codec.encode(dag_pb.from_value(value) if codec is dag_pb.CODEC else value)
        codec.links(block)
    except InvalidBlock as error:
        raise BadInput(str(error)) from None
    cid = keep_block(node, block, codec.code, params.hash, is_pinned=params.is_pinned)
    return Stored(cid=str(cid), n_bytes=len(block))


@reporting
async def stat(node: "Node", params: Which, report: "Report") -> Stat:
    """Walk a DAG as far as it is here; nothing is fetched."""
    from daemon.api.progress import in_thread
    from daemon.errors import NotFoundHere
    from storage.cid import Cid

    cid = Cid.parse(params.cid)
    if node.store.unnoticed().size(cid) is None:
        raise NotFoundHere(f"{cid} is not here. To fetch it: covey pin add {cid}")
    return await in_thread(lambda on_bytes: _count(node, cid, on_bytes), f"walking {cid}", None, report)


def _count(node: "Node", cid: "Cid", on_bytes: "Callable[[int], None]") -> Stat:
    """Raises: TooLarge, InvalidBlock, UnknownCodec, Corrupt."""
    from collections import Counter

    from storage.dag import reach
    from storage.multicodec import codec_name

    n_blocks, n_bytes, n_missing = Counter[int](), Counter[int](), 0
    untold = 0
    for index, reached in enumerate(reach(node.store.unnoticed(), cid)):
        if reached.n_bytes is None:
            n_missing += 1
        else:
            n_blocks[reached.cid.codec] += 1
            n_bytes[reached.cid.codec] += reached.n_bytes
            untold += reached.n_bytes
        if index % TELL_EVERY_BLOCKS == 0:
            on_bytes(untold)
            untold = 0
    return Stat(
        cid=str(cid),
        n_blocks=n_blocks.total(),
        size_bytes=n_bytes.total(),
        n_missing=n_missing,
        codecs=[
            OfCodec(codec=codec_name(code), n_blocks=count, size_bytes=n_bytes[code])
            for code, count in n_blocks.most_common()
        ],
    )


OPERATIONS = (
    Operation(
        noun="dag",
        verb="get",
        summary="Print the value at CID/path as DAG-JSON.",
        params=Read,
        result=bytes,
        handler=get,
        is_stream=True,
        is_json_text=True,
        arguments=("reference",),
    ),
    Operation(
        noun="dag",
        verb="put",
        summary="Store a value as one block; print its CID.",
        params=Put,
        result=Stored,
        handler=put,
        arguments=("path",),
    ),
    Operation(
        noun="dag",
        verb="resolve",
        summary="Print the CID that CID/path leads to, and what is left.",
        params=Read,
        result=Resolved,
        handler=resolve,
        arguments=("reference",),
    ),
    Operation(
        noun="dag",
        verb="stat",
        summary="Count the blocks and bytes of a DAG, and what is missing.",
        params=Which,
        result=Progress | Stat,
        handler=stat,
        is_stream=True,
        arguments=("cid",),
    ),
)
