"""The store itself: what it holds and costs, is it sound, and room on the disk."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from daemon.api.operation import Nothing, Operation, Params, Progress, Result

if TYPE_CHECKING:
    from daemon.api.progress import Report
    from daemon.app import Node
    from storage.cid import Cid
    from storage.errors import StorageError
    from storage.verify import Checked

MAX_LISTED: Final = 1000


class Stat(Result, frozen=True):
    """What the store holds, what it takes of the disk, and what it may take."""

    n_blocks: int
    size_bytes: int
    n_damaged: int
    disk_bytes: int
    n_files: int
    quota_bytes: int
    quota_files: int
    free_bytes: int
    reserve_bytes: int
    n_pins: int
    n_published: int


class Collect(Params, frozen=True):
    """What to do about what nothing keeps."""

    dry_run: Annotated[bool, Meta(description="Only tell what would go.")] = False


class Collected(Result, frozen=True, tag_field="type", tag="collected"):
    """What nothing keeps is gone (`dry_run`: would go); `freed_bytes` is the room that came back on the disk.

    `problem` says why not all of it did: `left_bytes` are of no more use and still there. What was dropped stays so.
    """

    n_kept: int
    n_dropped: int
    dropped_bytes: int
    freed_bytes: int
    dry_run: bool
    left_bytes: int = 0
    problem: str | None = None


class Compact(Params, frozen=True):
    """Which packs are worth the work."""

    min_dead_percent: Annotated[int, Meta(ge=1, le=100, description="How much of a pack must be of no more use.")] = 10


class Compacted(Result, frozen=True, tag_field="type", tag="compacted"):
    """The room of what was deleted is back. Packs with damaged blocks stay: covey repo verify --repair.

    `problem` says why some of it is not: `left_bytes` are of no more use and still on the disk.
    """

    n_packs: int
    freed_bytes: int
    moved_bytes: int
    damaged_packs: list[int]
    left_bytes: int = 0
    problem: str | None = None


class Verify(Params, frozen=True):
    """What to read, and what to do about what is damaged."""

    sample: Annotated[
        str, Meta(pattern=r"^[0-9]{1,3}(\.[0-9]{1,4})?%?$", description="Read only so much, others each time: 5%.")
    ] = "100%"
    repair: Annotated[bool, Meta(description="Fetch damaged blocks again from peers.")] = False
    from_start: Annotated[bool, Meta(description="Begin anew where an earlier run was cut short.")] = False
    timeout_s: Annotated[float, Meta(gt=0, le=86_400, description="How long to look for each damaged block.")] = 30.0


class Damaged(Result, frozen=True, tag_field="type", tag="damaged"):
    """A block that the disk changed, or that is gone though it is kept. It counts as missing until it is here again.

    `belongs_to` names what is kept or published and needs it, with its path there; `hint` says what to do.
    """

    cid: str
    text: str
    is_repaired: bool
    belongs_to: list[str]
    hint: str


class Verified(Result, frozen=True, tag_field="type", tag="verified"):
    """How many blocks were read, and how many did not match their CIDs, or are gone though something needs them."""

    n_checked: int
    size_bytes: int
    n_damaged: int
    n_repaired: int
    resumed_after: str | None
    damaged: list[Damaged]


class Formats(Result, frozen=True):
    """The versions of what is on the disk, all of them what this Covey writes."""

    packs: int
    index: int
    catalog: int
    text: str


async def stat(node: "Node", _params: Nothing) -> Stat:
    """Counts and sizes."""
    import trio

    def look() -> Stat:
        counted, usage, quota = node.store.stat(), node.keeper.store.usage(), node.keeper.store.quota
        return Stat(
            n_blocks=counted.n_blocks,
            size_bytes=counted.n_bytes,
            n_damaged=node.keeper.store.n_damaged(),
            disk_bytes=usage.n_bytes,
            n_files=usage.n_files,
            quota_bytes=quota.n_bytes,
            quota_files=quota.n_files,
            free_bytes=usage.free_bytes,
            reserve_bytes=quota.min_free_bytes,
            n_pins=len(node.pins.list()),
            n_published=len(node.roots.list()),
        )

    return await trio.to_thread.run_sync(look)


async def gc(node: "Node", params: Collect) -> AsyncIterator[Progress | Collected]:
    """Drop what nothing keeps, and give its room back."""
    from functools import partial

    from daemon.api.progress import telling

    problems: list[StorageError] = []
    async with aclosing(telling(partial(_gc, node, params, problems))) as items:
        async for item in items:
            yield item
    if problems:
        raise problems[0]


async def compact(node: "Node", params: Compact) -> AsyncIterator[Progress | Compacted]:
    """Give back the room of what was deleted."""
    from functools import partial

    from daemon.api.progress import telling

    problems: list[StorageError] = []
    async with aclosing(telling(partial(_compact, node, params, problems))) as items:
        async for item in items:
            yield item
    if problems:
        raise problems[0]


async def verify(node: "Node", params: Verify) -> AsyncIterator[Progress | Verified]:
    """Read every block again; a run that is cut short goes on the next time."""
    from functools import partial

    from daemon.api.progress import telling
    from daemon.errors import Unfit
    from storage.errors import BlocksDamaged

    sample_frac = float(params.sample.rstrip("%")) / 100
    if not 0 < sample_frac <= 1:
        raise Unfit(f"a sample of {params.sample}: say how much, above 0% and up to 100%")
    n_left = 0
    async with aclosing(telling(partial(_verify, node, params, sample_frac))) as items:
        async for item in items:
            yield item
            n_left = item.n_damaged - item.n_repaired if isinstance(item, Verified) else 0
    if n_left:
        if not params.repair:
            raise BlocksDamaged(f"{n_left} of the blocks that were read are damaged and not repaired")
        raise BlocksDamaged(
            f"{n_left} damaged blocks could not be fetched from any peer. Bring back what they belong to, as told "
            "above; then look again: covey repo verify"
        )


async def migrate(node: "Node", _params: Nothing) -> Formats:
    """Bring the formats on the disk to those of this Covey: a start does it, so this tells which they are."""
    import trio

    from storage.catalog import MIGRATIONS
    from storage.packs.index import INDEX_VERSION
    from storage.packs.record import PACK_VERSION

    await trio.lowlevel.checkpoint()
    text = "everything is in the newest format; older indexes and catalogs are brought to it by the start"
    return Formats(packs=PACK_VERSION, index=INDEX_VERSION, catalog=len(MIGRATIONS), text=text)


async def _gc(node: "Node", params: Collect, problems: "list[StorageError]", report: "Report") -> Collected:
    import trio

    from daemon.keeper import Tidied

    def on_kept(n_kept: int) -> None:
        trio.from_thread.check_cancelled()
        report(Progress(step="looking at what is kept", n_done=n_kept, unit="blocks"))

    def on_pack(n_done: int, n_total: int) -> None:
        trio.from_thread.check_cancelled()
        report(Progress(step="giving the room back", n_done=n_done, n_total=n_total, unit="packs"))

    def work() -> Tidied:
        if params.dry_run:
            return Tidied().after(node.keeper.collect(is_rehearsal=True, on_kept=on_kept))
        return node.keeper.tidy(Compact().min_dead_percent / 100, on_kept, on_pack)

    done = await trio.to_thread.run_sync(work)
    if done.problem is not None:
        problems.append(
            type(done.problem)(
                f"{done.n_swept_blocks} blocks of {done.n_swept_bytes} bytes were dropped and"
                f" {max(0, done.freed_bytes)} bytes came back: {_stuck(done.problem, done.left_bytes)}"
            )
        )
    return Collected(
        n_kept=done.n_kept_blocks,
        n_dropped=done.n_swept_blocks,
        dropped_bytes=done.n_swept_bytes,
        freed_bytes=max(0, done.freed_bytes),
        dry_run=params.dry_run,
        left_bytes=done.left_bytes,
        problem=str(done.problem) if done.problem is not None else None,
    )


def _stuck(problem: "StorageError", left_bytes: int) -> str:
    """What stands in the way, and what to do."""
    return f"{problem} ({left_bytes} bytes of no more use are left). Free some room, then run `covey repo compact`"


async def _compact(node: "Node", params: Compact, problems: "list[StorageError]", report: "Report") -> Compacted:
    import trio

    def on_pack(n_done: int, n_total: int) -> None:
        trio.from_thread.check_cancelled()
        report(Progress(step="compacting", n_done=n_done, n_total=n_total, unit="packs"))

    done = await trio.to_thread.run_sync(node.keeper.store.compact, params.min_dead_percent / 100, on_pack)
    if done.problem is not None:
        problems.append(type(done.problem)(_stuck(done.problem, done.n_left_bytes)))
    return Compacted(
        n_packs=done.n_packs,
        freed_bytes=max(0, done.net_bytes),
        moved_bytes=done.n_moved_bytes,
        damaged_packs=list(done.damaged_packs),
        left_bytes=done.n_left_bytes,
        problem=str(done.problem) if done.problem is not None else None,
    )


async def _verify(node: "Node", params: Verify, sample_frac: float, report: "Report") -> Verified:
    import secrets

    import trio

    from storage.verify import resumes_after
    from storage.verify import verify as read_all

    is_whole = sample_frac == 1 and not params.from_start
    resumed = await trio.to_thread.run_sync(resumes_after, node.store) if is_whole else None

    def read() -> "tuple[int, int, list[Checked]]":
        n_checked = n_bytes = 0
        bad: list[Checked] = []
        seed = secrets.randbits(32)
        for checked in read_all(node.store, sample_frac=sample_frac, seed=seed, from_start=params.from_start):
            trio.from_thread.check_cancelled()
            n_checked += 1
            n_bytes += checked.n_bytes
            bad += [checked] if checked.problem else []
            report(Progress(step=f"reading ({len(bad)} damaged)", n_done=n_bytes))
        return n_checked, n_bytes, bad

    n_checked, n_bytes, todo = await trio.to_thread.run_sync(read)
    bad: list[Checked] = []
    repaired: set[Cid] = set()
    is_last = False
    while not is_last:  # what lies below a block that is gone shows only when that is back
        if sample_frac == 1:
            todo += await trio.to_thread.run_sync(_gone, node, [*bad, *todo], report)
        bad += todo
        mended = await _mended(node, todo, params.timeout_s, report) if params.repair else set()
        repaired |= mended
        todo, is_last = [], not mended
    damaged = await _told(node, bad, repaired, was_tried=params.repair, report=report) if bad else []
    if bad:
        node.events.note("blocks_damaged", {"n_blocks": len(bad), "n_repaired": len(repaired)})
    return Verified(
        n_checked=n_checked,
        size_bytes=n_bytes,
        n_damaged=len(bad),
        n_repaired=len(repaired),
        resumed_after=str(resumed) if resumed else None,
        damaged=damaged,
    )


async def _mended(node: "Node", bad: "list[Checked]", timeout_s: float, report: "Report") -> "set[Cid]":
    """Which of these blocks peers gave again."""
    mended = set()
    for n_done, checked in enumerate(bad):
        report(Progress(step="repairing", n_done=n_done, n_total=len(bad), unit="blocks"))
        if await _repair(node, checked.cid, timeout_s):
            mended.add(checked.cid)
    return mended


def _gone(node: "Node", known: "list[Checked]", report: "Report") -> "list[Checked]":
    """What pins and published roots need, is not here, and is not known yet."""
    import trio

    from storage.verify import verify_kept

    told = {checked.cid.multihash for checked in known}
    gone: list[Checked] = []
    for n_done, checked in enumerate(verify_kept(node.store, node.pins.list(), node.roots.list())):
        trio.from_thread.check_cancelled()
        if checked.problem and checked.cid.multihash not in told:
            told.add(checked.cid.multihash)
            gone.append(checked)
        report(Progress(step="looking at what is kept", n_done=n_done, unit="blocks"))
    return gone


async def _told(
    node: "Node", bad: "list[Checked]", repaired: "set[Cid]", *, was_tried: bool, report: "Report"
) -> list[Damaged]:
    """What is told of damaged blocks: what they belong to, and what to do."""
    from functools import partial

    import trio

    from daemon.damage import belongings

    listed = bad[:MAX_LISTED]
    report(Progress(step="looking for what they belong to", n_done=0, n_total=len(listed), unit="blocks"))
    find = partial(belongings, node, [one.cid for one in listed], was_tried=was_tried)
    belonging = await trio.to_thread.run_sync(find)
    return [
        Damaged(
            cid=str(one.cid),
            text=one.problem or "",
            is_repaired=one.cid in repaired,
            belongs_to=list(belonging[one.cid].lines),
            hint="" if one.cid in repaired else belonging[one.cid].hint,
        )
        for one in listed
    ]


async def _repair(node: "Node", cid: "Cid", timeout_s: float) -> bool:
    """Fetch one damaged block again; peers know it by its multihash, whatever its codec."""
    import trio

    from daemon.content import fetch_block
    from protocols.errors import Remote

    try:
        await fetch_block(node, cid, timeout_s)
    except Remote:
        return False
    return await trio.to_thread.run_sync(node.store.has, cid)


OPERATIONS = (
    Operation(
        noun="repo",
        verb="stat",
        summary="Tell what the store holds, and what it takes of the disk.",
        params=Nothing,
        result=Stat,
        handler=stat,
    ),
    Operation(
        noun="repo",
        verb="gc",
        summary="Drop the blocks that no pin and no published root keeps.",
        params=Collect,
        result=Progress | Collected,
        handler=gc,
        is_stream=True,
    ),
    Operation(
        noun="repo",
        verb="compact",
        summary="Give back the room of deleted blocks.",
        params=Compact,
        result=Progress | Compacted,
        handler=compact,
        is_stream=True,
    ),
    Operation(
        noun="repo",
        verb="verify",
        summary="Read every block, and find those that the disk changed.",
        params=Verify,
        result=Progress | Verified,
        handler=verify,
        is_stream=True,
    ),
    Operation(
        noun="repo",
        verb="migrate",
        summary="Tell the versions of the formats on the disk.",
        params=Nothing,
        result=Formats,
        handler=migrate,
    ),
)
