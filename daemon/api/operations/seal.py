"""Content that only named peers can read: sealed, opened, and its recipients."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta

from daemon.api.audience import Members, Who, audience
from daemon.api.operation import Done, Operation, Params, Progress, Result, reporting
from daemon.api.operations.peer import resolve_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from daemon.api.progress import Report
    from daemon.app import Node
    from storage.cid import Cid
    from storage.keys import PeerId
    from storage.sealed import Made, Sealed

MAX_ENTRIES: Final = 10_000
ME: Final = "me"
Peers = Annotated[
    tuple[Annotated[str, Meta(max_length=512)], ...],
    Meta(max_length=256, description="Peers by id or name, or role:ROLE@WORKSPACE; commas between."),
]
SomePeers = Annotated[
    tuple[Annotated[str, Meta(max_length=512)], ...],
    Meta(min_length=1, max_length=256, description="Peers by id or name, or role:ROLE@WORKSPACE."),
]
CidText = Annotated[str, Meta(max_length=512, description="The root of sealed content.")]
Reference = Annotated[str, Meta(max_length=4096, description="CID of sealed content, or CID/path/inside.")]
Offset = Annotated[int, Meta(ge=0, le=1 << 42, description="Of a file: begin with this byte.")]
Length = Annotated[int, Meta(ge=0, le=1 << 42, description="Of a file: so many bytes at most.")]
Patience = Annotated[float, Meta(gt=0, le=86_400, description="Give up when no block came for so many seconds.")]

KEEPS: Final = (
    "Whoever is revoked keeps what he could read: he may have the plaintext or the key, the old root opens to him "
    "wherever a copy of it is"
)
KEEPS_SAME_KEY: Final = f"{KEEPS}, and the ciphertext still has the key that he knows. To encrypt anew: --rekey"
KEEPS_NEW_KEY: Final = f"{KEEPS}. The new root has a new key, which he does not know"


class Seal(Params, frozen=True):
    """What to seal, to whom, and who may fetch the ciphertext."""

    path: Annotated[
        str, Meta(max_length=4096, description="A file or folder; - for stdin.", extra={"path": True, "stdin": True})
    ]
    to: Peers = ()
    visibility: Who = "private"
    members: Members = ()
    pad: Annotated[bool, Meta(description="Hide the exact size; costs a few per cent.")] = True
    is_erasable: Annotated[
        bool, Meta(description="Keep this node's key in a file of its own, for covey sealed erase.")
    ] = False


class NewRoot(Result, frozen=True, tag_field="type", tag="sealed"):
    """Sealed content; `recipients` are peer ids. `note` says what to know, and what to do next."""

    cid: str
    recipients: list[str]
    visibility: str
    n_bytes: int
    note: str


class Unseal(Params, frozen=True):
    """What to open, and where to write it."""

    reference: Reference
    out: (
        Annotated[
            str,
            Meta(
                max_length=4096,
                description="Where to write it (default: the last part of the reference, here); - for stdout.",
                extra={"path": True, "default_from": "reference", "stdout": "sealed/cat"},
            ),
        ]
        | None
    ) = None
    offset: Offset = 0
    length: Length | None = None
    timeout_s: Patience = 30.0


class Unsealed(Result, frozen=True, tag_field="type", tag="unsealed"):
    """It is opened, checked, and written, where that was asked for."""

    cid: str
    out: str | None
    n_bytes: int


class Read(Params, frozen=True):
    """Which file to read, and how much of it."""

    reference: Reference
    offset: Offset = 0
    length: Length | None = None
    timeout_s: Patience = 30.0


class List(Params, frozen=True):
    """Which sealed content to look into."""

    reference: Reference
    timeout_s: Patience = 30.0


class Entry(Result, frozen=True):
    """What is in sealed content: its path inside, and its permissions in octal."""

    kind: Literal["file", "folder", "symlink"]
    path: str
    size_bytes: int | None
    mode: str | None


class Which(Params, frozen=True):
    """Sealed content."""

    cid: CidText
    timeout_s: Patience = 30.0


class Recipient(Result, frozen=True):
    """Who can open it. `name` is what you call the peer."""

    peer: str
    name: str | None
    is_self: bool


class Change(Params, frozen=True):
    """Sealed content, and peers."""

    cid: CidText
    peers: SomePeers
    timeout_s: Patience = 30.0


class Revoke(Change, frozen=True):
    """Sealed content, and peers who are to be recipients no longer."""

    rekey: Annotated[bool, Meta(description="Encrypt everything anew, under a key that they do not know.")] = False


async def cat(node: "Node", params: Read) -> AsyncIterator[bytes]:
    """The bytes of a sealed file, each chunk checked before it goes out."""
    from functools import partial

    import trio

    from daemon.content import parse
    from daemon.sealed import open_here

    cid, names = parse(params.reference)
    opened = await trio.to_thread.run_sync(partial(open_here, node, cid, params.timeout_s))
    entry = await trio.to_thread.run_sync(opened.find, "/".join(names))
    pieces = opened.read(entry, params.offset, params.length)
    while piece := await trio.to_thread.run_sync(next, pieces, b""):
        yield piece


async def ls(node: "Node", params: List) -> list[Entry]:
    """What is in sealed content."""
    from itertools import islice

    import trio

    from daemon.content import parse
    from daemon.errors import Unfit
    from daemon.sealed import open_here

    cid, names = parse(params.reference)

    def listed() -> list[Entry]:
        opened = open_here(node, cid, params.timeout_s)
        top = opened.find("/".join(names)).path
        below = [entry for entry in islice(opened.entries(), 1 << 20) if entry.path[: len(top)] == top]
        if len(below) > MAX_ENTRIES:
            raise Unfit(f"{params.reference} has {len(below)} entries; {MAX_ENTRIES} is the most that are listed")
        return [
            Entry(
                kind=entry.kind,
                path=entry.name,
                size_bytes=entry.n_bytes if entry.kind == "file" else None,
                mode=None if entry.kind == "symlink" else f"{entry.mode:03o}",
            )
            for entry in below
        ]

    return await trio.to_thread.run_sync(listed)


async def recipients(node: "Node", params: Which) -> list[Recipient]:
    """Who can open sealed content. Only they are told."""
    import trio

    from daemon.sealed import open_here
    from storage.cid import Cid

    cid = Cid.parse(params.cid)

    def listed() -> list[Recipient]:
        names, me = node.catalog.peers.names(), node.identity.peer_id
        found = open_here(node, cid, params.timeout_s).recipients
        return [Recipient(peer=str(peer), name=names.get(peer), is_self=peer == me) for peer in found]

    return await trio.to_thread.run_sync(listed)


async def add(node: "Node", params: Change) -> NewRoot:
    """Let more peers open it: a new root over the same ciphertext. The old root stays as it is."""
    import trio

    from daemon.sealed import open_here, replace_root
    from storage.cid import Cid
    from storage.sealed import with_recipients

    cid, peers = Cid.parse(params.cid), await _resolved(node, params.peers)

    def change() -> "tuple[Made, int]":
        opened = open_here(node, cid, params.timeout_s)
        with node.store.lease():
            made = with_recipients(node.store, opened, [*opened.recipients, *peers])
            replace_root(node, cid, made, new=peers)
        return made, opened.n_bytes

    made, n_bytes = await trio.to_thread.run_sync(change)
    return await _told(node, made, n_bytes, "The new root is for the new recipients; the old one stays for the others.")


async def erase(node: "Node", params: Which) -> Done:
    """Destroy this node's key of content that was sealed to be erasable."""
    from functools import partial

    import trio

    from daemon.errors import NotFoundHere
    from daemon.sealed import erase_key
    from storage.cid import Cid

    cid = Cid.parse(params.cid)
    was_kept, n_others = await trio.to_thread.run_sync(partial(erase_key, node, cid, params.timeout_s))
    if not was_kept:
        raise NotFoundHere(
            f"no key of {cid} is kept here: it was not sealed here with --erasable, or is erased already"
        )
    who = f"its {n_others} recipients" if n_others else "nobody, wherever its blocks are"
    return Done(text=f"erased this node's key of {cid}: now it opens to {who}")


@reporting
async def seal(node: "Node", params: Seal, report: "Report") -> NewRoot:
    """Encrypt a file or folder to peers, in one pass, and store it."""
    from pathlib import Path

    import trio

    from daemon.api.progress import in_thread
    from daemon.content import bytes_below
    from daemon.sealed import keep_and_show, keyring
    from storage.sealed import seal_path

    path, to = Path(params.path), await _resolved(node, params.to)
    listed = params.members or (params.to if params.visibility == "members" else ())
    level, members = await audience(node, params.visibility, tuple(one for one in listed if one != ME))
    n_bytes = await trio.to_thread.run_sync(bytes_below, path)
    everybody = to if params.is_erasable else [*to, node.identity.peer_id]

    def work(on_bytes: "Callable[[int], None]") -> "Made":
        with node.store.lease():
            made = seal_path(node.store, path, everybody, is_padded=params.pad, on_progress=on_bytes)
            if params.is_erasable:
                keyring(node).keep(made.root, made.key)
            keep_and_show(node, made, level, members)
        return made

    made = await in_thread(work, f"sealing {path.name}", n_bytes, report)
    others = ",".join(str(peer) for peer in to if peer != node.identity.peer_id)
    note = ""
    if params.visibility == "private" and others:
        note = f"To let its recipients fetch it: covey share {made.cid} --visibility members --members {others}"
    return await _told(node, made, n_bytes, note)


@reporting
async def unseal(node: "Node", params: Unseal, report: "Report") -> Unsealed:
    """Open sealed content and write it out, whole or not at all; fetch what is missing."""
    from functools import partial

    import trio

    from daemon.api.progress import in_thread
    from daemon.asked import new_target
    from daemon.content import fetch_reference, parse
    from daemon.sealed import open_here
    from storage.sealed import export_range, export_sealed

    target = None if params.out is None else new_target(params.out)
    cid, names = parse(params.reference)
    inside = "/".join(names)
    opened = await trio.to_thread.run_sync(partial(open_here, node, cid, params.timeout_s))
    is_range = params.offset > 0 or params.length is not None
    if not is_range and not inside:
        await fetch_reference(node, str(cid), timeout_s=params.timeout_s, report=report)
    n_written = 0

    def work(on_bytes: "Callable[[int], None]") -> None:
        nonlocal n_written

        def count(n_bytes: int) -> None:
            nonlocal n_written
            n_written += n_bytes
            on_bytes(n_bytes)

        if target is None:
            opened.find(inside)
        elif is_range:
            export_range(opened, opened.find(inside), target, params.offset, params.length, count)
        else:
            export_sealed(opened, inside, target, count)

    await in_thread(work, f"opening {inside or cid}", None, report)
    return Unsealed(cid=str(cid), out=params.out, n_bytes=n_written)


@reporting
async def revoke(node: "Node", params: Revoke, report: "Report") -> NewRoot:
    """Make a root that some recipients cannot open; with `rekey`, and a ciphertext that their key does not open."""
    from functools import partial

    import trio

    from daemon.api.progress import in_thread
    from daemon.sealed import keyring, let_go, open_here, replace_root
    from storage.cid import Cid
    from storage.sealed import reseal, with_recipients

    cid, gone = Cid.parse(params.cid), await _resolved(node, params.peers)
    opened = await trio.to_thread.run_sync(partial(open_here, node, cid, params.timeout_s))
    left = _left(node, opened, cid, gone)

    def work(on_bytes: "Callable[[int], None]") -> "Made":
        with node.store.lease():
            if params.rekey:
                made = reseal(node.store, opened, left, on_progress=on_bytes)
                if (kept := keyring(node)).get(opened.root) is not None:
                    kept.keep(made.root, made.key)
            else:
                made = with_recipients(node.store, opened, left)
            replace_root(node, cid, made, gone=gone)
            let_go(node, cid)
        return made

    step = "encrypting anew" if params.rekey else "making a new root"
    made = await in_thread(work, step, opened.n_bytes if params.rekey else None, report)
    return await _told(node, made, opened.n_bytes, KEEPS_NEW_KEY if params.rekey else KEEPS_SAME_KEY)


def _left(node: "Node", opened: "Sealed", cid: "Cid", gone: "Sequence[PeerId]") -> "list[PeerId]":
    """The recipients that stay. Raises: NotFoundHere, Unfit."""
    from daemon.errors import NotFoundHere, Unfit

    if node.identity.peer_id in gone:
        raise Unfit("this node itself is not revoked: to let go of the content, unpin it: covey pin rm CID")
    for peer in gone:
        if peer not in opened.recipients:
            raise NotFoundHere(f"{peer} is no recipient of {cid}. See: covey sealed recipients {cid}")
    return [peer for peer in opened.recipients if peer not in gone]


async def _resolved(node: "Node", texts: tuple[str, ...]) -> "list[PeerId]":
    me = [node.identity.peer_id] if ME in texts else []
    return list(dict.fromkeys([*me, *await resolve_all(node, [text for text in texts if text != ME])]))


async def _told(node: "Node", made: "Made", n_bytes: int, note: str) -> NewRoot:
    """Offer and announce a new root where others may see it, and tell of it."""
    import trio

    from daemon.content import seen_by
    from protocols.bitswap.shell import offer_below
    from storage.sealed.keys import recipients_of

    visibility = await trio.to_thread.run_sync(seen_by, node, made.cid)
    if visibility != "private":
        await offer_below(node.exchange, made.cid)
        node.provider.provide_soon(made.cid)
    node.events.note("content_sealed", {"cid": str(made.cid), "size_bytes": n_bytes, "visibility": visibility})
    return NewRoot(
        cid=str(made.cid),
        recipients=[str(peer) for peer in recipients_of(made.root, made.key)],
        visibility=visibility,
        n_bytes=n_bytes,
        note=note,
    )


def _operation(verb: str, summary: str, params: type[Params], result: Any, handler: Any, **more: Any) -> Operation:
    return Operation(
        noun="sealed", verb=verb, summary=summary, params=params, result=result, handler=handler, **more
    )  # fmt: skip


OPERATIONS = (
    _operation(
        "seal",
        "Encrypt a file or folder to peers; print its CID.",
        Seal,
        Progress | NewRoot,
        seal,
        is_stream=True,
        arguments=("path",),
        command=("seal",),
    ),
    _operation(
        "unseal",
        "Open what is sealed to this node, and write it out.",
        Unseal,
        Progress | Unsealed,
        unseal,
        is_stream=True,
        arguments=("reference",),
        command=("unseal",),
    ),
    _operation(
        "cat", "Write a sealed file's bytes to stdout.", Read, bytes, cat, is_stream=True, arguments=("reference",)
    ),
    _operation("ls", "List what is in sealed content.", List, list[Entry], ls, arguments=("reference",)),
    _operation(
        "recipients", "List who can open sealed content.", Which, list[Recipient], recipients, arguments=("cid",)
    ),
    _operation(
        "add", "Let more peers open it, without encrypting again.", Change, NewRoot, add, arguments=("cid", "peers")
    ),
    _operation(
        "revoke",
        "Make a root that a recipient cannot open.",
        Revoke,
        Progress | NewRoot,
        revoke,
        is_stream=True,
        arguments=("cid", "peers"),
    ),
    _operation("erase", "Destroy this node's key of erasable content.", Which, Done, erase, arguments=("cid",)),
)
