"""Work that goes on while the next piece of it is made."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batch(NamedTuple, Generic[T]):
    """One piece of work. One that is not full is the last."""

    items: T
    is_full: bool


def overlapped(batches: Iterable[Batch[T]], act: Callable[[Batch[T]], R]) -> Iterator[R]:
    """What `act` makes of each batch, in order: it works in a thread on one while the caller's thread makes the next.

    Hashing and syncing then share the time. A batch that is not full gets no thread: small work is done sooner without.
    An error of either side ends both, and nothing runs on behind the caller's back.
    """
    with ThreadPoolExecutor(1, "covey-overlap") as thread:  # starts with the first task, if there is one
        pending: Callable[[], R] | None = None
        for batch in batches:
            if pending is not None:
                yield pending()
            pending = thread.submit(act, batch).result if batch.is_full else partial(act, batch)
        if pending is not None:
            yield pending()
