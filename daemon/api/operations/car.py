"""CARs: many blocks in one file."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from daemon.api.operation import Operation, Params, Progress, Result, reporting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemon.api.progress import Report
    from daemon.app import Node
    from storage import car
    from storage.cid import Cid

CarPath = Annotated[
    str, Meta(max_length=4096, description="A CAR file; - for stdin.", extra={"path": True, "stdin": True})
]

State = Literal["pinned", "whole", "incomplete", "unreadable"]


class Import(Params, frozen=True):
    """What to take in. Only this node sees it, until it is shared."""

    path: CarPath
    is_pinned: Annotated[bool, Meta(description="Keep every whole root when garbage is collected.")] = True
    require_roots: Annotated[
        bool, Meta(description="Fail unless each root is in the CAR, and all below it there or here.")
    ] = False


class Root(Result, frozen=True):
    """A root that the CAR names.

    `state` is `pinned`, `whole` (and not pinned), `incomplete` or `unreadable`: its links are in a form not known here.
    """

    cid: str
    state: State
    is_in_car: bool
    n_missing: int


class Imported(Result, frozen=True, tag_field="type", tag="imported"):
    """Every block of the CAR is verified and stored, durably.

    `n_duplicates` repeat one that stood before; `n_unreached` are below no root, so nothing keeps them.
    """

    version: int
    n_blocks: int
    size_bytes: int
    n_new: int
    n_duplicates: int
    n_unreached: int | None
    roots: list[Root]
    warnings: list[str]


class Read(Params, frozen=True):
    """What to write out."""

    reference: Annotated[str, Meta(max_length=4096, description="CID, CID/path/below, or /ipfs/CID/path.")]
    version: Annotated[Literal[1, 2], Meta(description="2 has an index at its end.")] = 1
    is_offline: Annotated[bool, Meta(description="Fetch nothing: fail where a block is not here.")] = False
    skip_missing: Annotated[bool, Meta(description="Fetch nothing, and leave out what is not here.")] = False
    timeout_s: Annotated[
        float, Meta(gt=0, le=86_400, description="Give up when no block came for so many seconds.")
    ] = 30.0


class Export(Read, frozen=True, kw_only=True):
    """What to write out, and where to."""

    out: Annotated[
        str,
        Meta(
            max_length=4096,
            description="Where to write it; - for stdout (default: the last part of the reference, with .car).",
            extra={"path": True, "default_from": "reference", "suffix": ".car", "stdout": "car/read"},
        ),
    ]


class Exported(Result, frozen=True, tag_field="type", tag="exported"):
    """The CAR is written. `missing` names up to 100 of the blocks that were left out."""

    cid: str
    out: str
    version: int
    n_blocks: int
    size_bytes: int
    n_missing: int
    missing: list[str]


class Inspect(Params, frozen=True):
    """What to look at."""

    path: CarPath


class Named(Result, frozen=True):
    """A root that the CAR names, and whether its block is in there."""

    cid: str
    is_in_car: bool


class Inspected(Result, frozen=True, tag_field="type", tag="inspected"):
    """The CAR is whole and every block matches its CID. `n_unlisted` blocks are not in its index, where it has one."""

    version: int
    size_bytes: int
    n_blocks: int
    n_duplicates: int
    has_index: bool
    n_unlisted: int | None
    roots: list[Named]


async def read(node: "Node", params: Read) -> AsyncIterator[bytes]:
    """The bytes that `car/export` would write."""
    import trio

    from storage import car

    with node.store.lease():
        plan = await _plan(node, params, lambda progress: None)
        parts = car.car_parts(node.store, plan, node.home.scratch)
        try:
            while part := await trio.to_thread.run_sync(next, parts, b""):
                yield part
        finally:
            with trio.CancelScope(shield=True):  # threads of it may be at work: milliseconds
                await trio.to_thread.run_sync(parts.close)  # type: ignore[attr-defined]


@reporting
async def import_(node: "Node", params: Import, report: "Report") -> Imported:
    """Verify and store every block, then pin the roots that are whole.

    What comes before a bad block stays, unpinned.
    """
    from pathlib import Path

    from daemon.api.progress import in_thread
    from daemon.content import file_bytes
    from storage import car
    from storage.pins import PinState

    path = Path(params.path)
    n_bytes = file_bytes(path)

    def store(on_bytes: "Callable[[int], None]") -> "car.Imported":
        with node.store.lease(), path.open("rb", buffering=0) as file:
            found = car.import_car(
                node.store,
                file,
                file_bytes=n_bytes,
                needs_whole_roots=params.require_roots,
                scratch=node.home.scratch,
                on_progress=on_bytes,
            )
            for root in found.roots if params.is_pinned else ():
                if root.is_whole:
                    node.pins.add(root.cid, state=PinState.COMPLETE)
            return found

    found = await in_thread(store, f"importing {path.name}", n_bytes, report)
    return Imported(
        version=found.version,
        n_blocks=found.n_blocks,
        size_bytes=found.n_bytes,
        n_new=found.n_new,
        n_duplicates=found.n_duplicates,
        n_unreached=found.n_unreached,
        roots=[_root(root, is_pinned=params.is_pinned) for root in found.roots],
        warnings=list(_warnings(found.roots)),
    )


def _root(root: "car.RootFound", *, is_pinned: bool) -> Root:
    return Root(
        cid=str(root.cid), state=_state(root, is_pinned=is_pinned), is_in_car=root.is_in_car, n_missing=root.n_missing
    )


def _state(root: "car.RootFound", *, is_pinned: bool) -> State:
    if root.trouble:
        return "unreadable"
    if root.n_missing:
        return "incomplete"
    return "pinned" if is_pinned else "whole"


def _warnings(roots: "list[car.RootFound]") -> "Iterator[str]":
    for root in roots:
        if root.trouble:
            yield f"{root.cid} is not pinned: {root.trouble}"
        elif root.n_missing:
            lacks = f"lacks {root.n_missing} block{'' if root.n_missing == 1 else 's'}"
            yield f"{root.cid} {lacks}, so it is not pinned; to fetch the rest and keep it: covey pin add {root.cid}"


@reporting
async def export(node: "Node", params: Export, report: "Report") -> Exported:
    """Fetch what is missing, and write a DAG to a file that is not there yet: whole or not at all.

    Depth-first, parents before children, each block once: one DAG gives the same bytes everywhere.
    """
    from daemon.api.progress import in_thread
    from daemon.asked import new_target
    from storage import car

    target = new_target(params.out)
    with node.store.lease():
        plan = await _plan(node, params, report)
        n_bytes = await in_thread(
            lambda on_bytes: car.export_file(node.store, plan, target, scratch=node.home.scratch, on_bytes=on_bytes),
            f"writing {target.name}",
            plan.data_bytes,
            report,
        )
    return Exported(
        cid=str(plan.root),
        out=params.out,
        version=plan.version,
        n_blocks=plan.n_blocks,
        size_bytes=n_bytes,
        n_missing=plan.n_missing,
        missing=[str(cid) for cid in plan.missing],
    )


async def _plan(node: "Node", params: Read, report: "Report") -> "car.Plan":
    from functools import partial

    import trio

    from daemon.content import fetch_reference
    from storage import car

    if params.is_offline or params.skip_missing:
        root = await trio.to_thread.run_sync(_resolve, node, params.reference)
    else:
        root, _ = await fetch_reference(node, params.reference, timeout_s=params.timeout_s, report=report)
    plan = partial(
        car.plan_export,
        node.store,
        root,
        version=params.version,
        skips_missing=params.skip_missing,
        scratch=node.home.scratch,
        on_block=trio.from_thread.check_cancelled,
    )
    return await trio.to_thread.run_sync(plan)


def _resolve(node: "Node", reference: str) -> "Cid":
    from daemon.content import parse
    from storage.unixfs import resolve

    cid, names = parse(reference)
    for name in names:
        cid = resolve(node.store, cid, name)
    return cid


@reporting
async def inspect(node: "Node", params: Inspect, report: "Report") -> Inspected:
    """Read a CAR from end to end, hash every block and compare its index. Nothing is stored."""
    from pathlib import Path

    from daemon.api.progress import in_thread
    from daemon.content import file_bytes
    from storage import car

    path = Path(params.path)
    n_bytes = file_bytes(path)

    def look(on_bytes: "Callable[[int], None]") -> Inspected:
        with (
            path.open("rb", buffering=0) as file,
            car.CarReader(file, file_bytes=n_bytes, scratch=node.home.scratch) as reader,
        ):
            for block in car.verified(reader):
                on_bytes(len(block.data))
            return Inspected(
                version=reader.version,
                size_bytes=reader.n_bytes,
                n_blocks=reader.entries.n_entries,
                n_duplicates=reader.entries.n_entries - reader.entries.n_distinct(),
                has_index=reader.n_unlisted is not None,
                n_unlisted=reader.n_unlisted,
                roots=[
                    Named(cid=str(root), is_in_car=not reader.is_absent(root)) for root in dict.fromkeys(reader.roots)
                ],
            )

    return await in_thread(look, f"reading {path.name}", n_bytes, report)


OPERATIONS = (
    Operation(
        noun="car",
        verb="import",
        summary="Store every block of a CAR file, verified; keep its roots.",
        params=Import,
        result=Progress | Imported,
        handler=import_,
        is_stream=True,
        arguments=("path",),
    ),
    Operation(
        noun="car",
        verb="export",
        summary="Write content to a CAR file, fetching what is missing.",
        params=Export,
        result=Progress | Exported,
        handler=export,
        is_stream=True,
        arguments=("reference",),
    ),
    Operation(
        noun="car",
        verb="read",
        summary="The bytes of content as a CAR, fetching what is missing.",
        params=Read,
        result=bytes,
        handler=read,
        is_stream=True,
        arguments=("reference",),
        command=None,
    ),
    Operation(
        noun="car",
        verb="inspect",
        summary="Check a CAR file: its blocks, roots and index.",
        params=Inspect,
        result=Progress | Inspected,
        handler=inspect,
        is_stream=True,
        arguments=("path",),
    ),
)
