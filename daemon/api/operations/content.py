"""Files and folders, by their CID."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta

from daemon.api.audience import Members, Who, audience
from daemon.api.operation import Operation, Params, Progress, Result, reporting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemon.api.progress import Report
    from daemon.app import Node
    from storage.cid import Cid

MAX_ENTRIES: Final = 10_000
MAX_NAMED: Final = 5
CHUNKERS: Final = (
    "Where files are cut: size-BYTES, rabin, rabin-AVG, rabin-MIN-AVG-MAX, buzhash, fastcdc-MIN-AVG-MAX; "
    "unset: the profile's."
)
Reference = Annotated[
    str, Meta(max_length=4096, description="CID, CID/path/below, or /ipfs/CID/path; of an artifact: its manifest.")
]
Patience = Annotated[float, Meta(gt=0, le=86_400, description="Give up when no block came for so many seconds.")]
Providers = Annotated[
    tuple[Annotated[str, Meta(max_length=512)], ...],
    Meta(max_length=16, description="Addresses of peers that have it."),
]


class Add(Params, frozen=True):
    """What to add. Only this node sees `private` content, trusted peers too see `flock`, everybody `public`.

    Unset, what is new is private, and what is here already stays as it is shared; `covey share` changes that, too.
    """

    path: Annotated[
        str, Meta(max_length=4096, description="A file or folder; - for stdin.", extra={"path": True, "stdin": True})
    ]
    visibility: Who | None = None
    members: Members = ()
    profile: Annotated[
        Literal["unixfs-v1-2025", "unixfs-v0-2015", "covey-weights"],
        Meta(
            description="How files become blocks: as `ipfs add` makes them, to the CID, or so that edits move little."
        ),
    ] = "unixfs-v1-2025"
    chunker: Annotated[str, Meta(max_length=64, description=CHUNKERS)] | None = None
    layout: (
        Annotated[
            Literal["balanced", "trickle"], Meta(description="How a file's blocks are linked; unset: the profile's.")
        ]
        | None
    ) = None
    raw_leaves: Annotated[bool | None, Meta(description="Chunks as blocks without a frame; unset: the profile's.")] = (
        None
    )
    cid_version: (
        Annotated[int, Meta(ge=0, le=1, description="0 or 1, which means raw leaves too; unset: the profile's.")] | None
    ) = None
    preserve_mode: Annotated[bool, Meta(description="Keep the modes of files and folders; changes CIDs.")] = False
    preserve_mtime: Annotated[bool, Meta(description="Keep when files were last changed; changes CIDs.")] = False
    only_hash: Annotated[bool, Meta(description="Tell the CID, and store nothing.")] = False
    is_pinned: Annotated[bool, Meta(description="Keep it when garbage is collected.")] = True
    also_kubo: Annotated[
        bool | None, Meta(description="Send it to the Kubo node of the settings, too; unset: what kubo.publish says.")
    ] = None


class Added(Result, frozen=True, tag_field="type", tag="added"):
    """The content is stored, durably, unless only its CID was asked for.

    `visibility` is wider than asked for where other shared content holds it too.
    """

    cid: str
    name: str
    size_bytes: int
    visibility: str
    warnings: list[str]
    is_stored: bool = True


class Get(Params, frozen=True):
    """What to fetch, and where to write it."""

    reference: Reference
    out: (
        Annotated[
            str,
            Meta(
                max_length=4096,
                description="Where to write it; - for a file on stdout "
                "(default: the last part of the reference, in this folder).",
                extra={"path": True, "default_from": "reference", "stdout": "content/cat"},
            ),
        ]
        | None
    ) = None
    provider: Providers = ()
    timeout_s: Patience = 30.0


class Got(Result, frozen=True, tag_field="type", tag="got"):
    """The content is here, verified; `reused_bytes` were here before.

    `visibility` says whom this node passes it on to: what is fetched is private until it is shared.
    """

    cid: str
    out: str | None
    fetched_bytes: int
    reused_bytes: int
    n_providers: int
    took_s: float
    visibility: str


class Read(Params, frozen=True):
    """What to read."""

    reference: Reference
    timeout_s: Patience = 30.0


class Cat(Read, frozen=True):
    """What to read, and which bytes of it."""

    offset: Annotated[int, Meta(ge=0, le=1 << 62, description="The first byte, from 0.")] = 0
    length: Annotated[int, Meta(ge=0, le=1 << 62, description="So many bytes; unset: to the end.")] | None = None
    provider: Providers = ()


class Entry(Result, frozen=True):
    """A name in a folder. `size_bytes` is what its maker states, everything below it included.

    `kind` is known where the entry's first block is here.
    """

    name: str
    cid: str
    size_bytes: int | None
    kind: Literal["file", "folder", "link"] | None = None


class Listing(Result, frozen=True):
    """A folder."""

    cid: str
    entries: list[Entry]


async def cat(node: "Node", params: Cat) -> AsyncIterator[bytes]:
    """The bytes of a file, or some of them."""
    import trio

    from daemon.content import fetch_reference, files_of
    from storage.unixfs import read_file

    reference = await files_of(node, params.reference, timeout_s=params.timeout_s, providers=params.provider)
    with node.store.lease():  # nothing of it is swept before it is read
        cid, _ = await fetch_reference(node, reference, timeout_s=params.timeout_s, providers=params.provider)
        chunks = read_file(node.store, cid, params.offset, params.length)
        while chunk := await trio.to_thread.run_sync(next, chunks, b""):
            yield chunk


async def ls(node: "Node", params: Read) -> Listing:
    """The names in a folder."""
    import trio

    from daemon.content import fetch_folder, files_of
    from daemon.errors import Unfit
    from storage.unixfs import list_dir

    reference = await files_of(node, params.reference, timeout_s=params.timeout_s)
    cid = await fetch_folder(node, reference, timeout_s=params.timeout_s)

    def entries() -> list[Entry]:
        listed: list[Entry] = []
        for entry in list_dir(node.store, cid):
            if len(listed) == MAX_ENTRIES:
                raise Unfit(f"{cid} has over {MAX_ENTRIES} entries, the most that are listed")
            listed.append(
                Entry(name=entry.name, cid=str(entry.cid), size_bytes=entry.dag_bytes, kind=_kind_of(node, entry.cid))
            )
        return listed

    return Listing(cid=str(cid), entries=await trio.to_thread.run_sync(entries))


def _kind_of(node: "Node", cid: "Cid") -> Literal["file", "folder", "link"] | None:
    from storage.cid import RAW
    from storage.errors import StorageError
    from storage.unixfs import stat

    if cid.codec == RAW:
        return "file"
    try:
        about = stat(node.store, cid)
    except StorageError:  # the block is not here, or is no UnixFS
        return None
    if about.target is not None:
        return "link"
    return "folder" if about.is_directory else "file"


@reporting
async def add(node: "Node", params: Add, report: "Report") -> Added:
    """Chunk, hash and store a file or folder."""
    from pathlib import Path

    import trio

    from daemon.api.progress import in_thread
    from daemon.content import bytes_below, seen_by
    from daemon.kubo import publish_beside
    from protocols.bitswap.shell import offer_below
    from storage.blockstore import Visibility
    from storage.pins import PinState
    from storage.unixfs import Keep, add_path, cid_of_path, profile_of
    from storage.unixfs.chunkers import chunker

    path, keep = Path(params.path), Keep(params.preserve_mode, params.preserve_mtime)
    profile = profile_of(params.profile).but(
        chunker=params.chunker, layout=params.layout, raw_leaves=params.raw_leaves, cid_version=params.cid_version
    )
    chunker(profile.chunker)  # a wrong name is told before anything is read
    level, members = await audience(node, params.visibility or "private", params.members)
    n_bytes = await trio.to_thread.run_sync(bytes_below, path)
    if params.only_hash:
        cid = await in_thread(lambda on_bytes: cid_of_path(path, profile, on_bytes, keep), "hashing", n_bytes, report)
        return Added(
            cid=str(cid), name=path.name, size_bytes=n_bytes, visibility="private", warnings=[], is_stored=False
        )

    def store(on_bytes: "Callable[[int], None]") -> "Cid":
        with node.store.lease():  # nothing of it is swept before it is pinned
            cid = add_path(node.store, path, profile, on_bytes, keep)
            if params.is_pinned:
                node.pins.add(cid, state=PinState.COMPLETE)
            if params.visibility is not None:
                node.roots.publish(cid, level, members)
        return cid

    cid = await in_thread(store, f"adding {path.name}", n_bytes, report)
    if level > Visibility.PRIVATE:
        await offer_below(node.exchange, cid)
        node.provider.provide_soon(cid)
    beside = await publish_beside(node, cid, level, is_asked=params.also_kubo, report=report)
    visibility = await trio.to_thread.run_sync(seen_by, node, cid)
    node.events.note("content_added", {"cid": str(cid), "size_bytes": n_bytes, "visibility": visibility})
    return Added(
        cid=str(cid),
        name=path.name,
        size_bytes=n_bytes,
        visibility=visibility,
        warnings=[*await trio.to_thread.run_sync(_warnings, path), *beside],
    )


def _warnings(path: "Path") -> list[str]:
    from daemon.content import outward_symlinks

    links = outward_symlinks(path)
    more = f" and {len(links) - MAX_NAMED} more" if len(links) > MAX_NAMED else ""
    named = ", ".join(map(repr, links[:MAX_NAMED])) + more
    return [f"symlinks that may lead outside, so that `covey get` will not write the folder: {named}"] if links else []


@reporting
async def get(node: "Node", params: Get, report: "Report") -> Got:
    """Bring content here, and write it out where that is asked for."""
    import trio

    from daemon.api.progress import in_thread
    from daemon.asked import new_target
    from daemon.content import fetch_reference, files_of, seen_by
    from storage.unixfs import export

    target = None if params.out is None else new_target(params.out)
    began_s = trio.current_time()
    reference = await files_of(node, params.reference, timeout_s=params.timeout_s, providers=params.provider)
    with node.store.lease():  # nothing of it is swept before it is written
        cid, progress = await fetch_reference(
            node, reference, timeout_s=params.timeout_s, providers=params.provider, report=report
        )
        if target is not None:
            await in_thread(
                lambda on_bytes: export(node.store, cid, target, on_bytes), f"writing {target.name}", None, report
            )
    return Got(
        cid=str(cid),
        out=params.out,
        fetched_bytes=progress.n_bytes,
        reused_bytes=progress.n_reused_bytes,
        n_providers=len(progress.bytes_from),
        took_s=trio.current_time() - began_s,
        visibility=await trio.to_thread.run_sync(seen_by, node, cid),
    )


OPERATIONS = (
    Operation(
        noun="content",
        verb="add",
        summary="Add a file or folder; print its CID, as `ipfs add` does.",
        params=Add,
        result=Progress | Added,
        handler=add,
        is_stream=True,
        arguments=("path",),
        command=("add",),
    ),
    Operation(
        noun="content",
        verb="get",
        summary="Fetch content by CID, verify it, and write it out.",
        params=Get,
        result=Progress | Got,
        handler=get,
        is_stream=True,
        arguments=("reference",),
        command=("get",),
    ),
    Operation(
        noun="content",
        verb="cat",
        summary="Write a file's bytes, or some of them, to stdout.",
        params=Cat,
        result=bytes,
        handler=cat,
        is_stream=True,
        arguments=("reference",),
        command=("cat",),
    ),
    Operation(
        noun="content",
        verb="ls",
        summary="List a folder.",
        params=Read,
        result=Listing,
        handler=ls,
        arguments=("reference",),
        command=("ls",),
    ),
)
