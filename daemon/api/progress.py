"""Long operations: run the work beside the stream, and tell how far it is a few times a second, not at each block."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import trio

from daemon.api.operation import Progress

TELL_EVERY_S: Final = 0.2

T = TypeVar("T")
Report = Callable[[Progress], None]


async def telling(work: Callable[[Report], Awaitable[T]]) -> AsyncGenerator[Progress | T, None]:
    """Run `work(report)`; yield the newest report now and then, and at last the result. Leave it by `aclosing`."""
    news: list[Progress] = []
    results: list[T] = []
    failures: list[Exception] = []
    is_done = trio.Event()

    def report(progress: Progress) -> None:
        news[:] = [progress]

    async def run() -> None:
        try:
            results.append(await work(report))
        except Exception as error:  # noqa: BLE001 - raised below: here it would cancel whoever has the last report in hand
            failures.append(error)
        is_done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        while not is_done.is_set():
            with trio.move_on_after(TELL_EVERY_S):
                await is_done.wait()
            if news and not failures:
                yield news.pop()
    if failures:
        raise failures[0]
    yield results[0]


async def in_thread(
    job: Callable[[Callable[[int], None]], T], step: str, n_total: int | None, report: Report, unit: str = "bytes"
) -> T:
    """Run `job(on_done)` in a thread, where `on_done(n)` says that n more are done; a cancelled one ends there."""
    n_done = 0

    def on_done(n_more: int) -> None:
        nonlocal n_done
        trio.from_thread.check_cancelled()
        n_done += n_more
        report(Progress(step=step, n_done=n_done, n_total=n_total, unit=unit))

    return await trio.to_thread.run_sync(partial(job, on_done))
