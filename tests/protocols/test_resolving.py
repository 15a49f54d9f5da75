"""Names of hosts, looked up in threads of their own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import trio

from protocols.resolving import MAX_LOOKUPS, look_up_in

WAIT_S = 20


@contextmanager
def unanswered() -> Iterator[threading.Event]:
    """What those that look names up wait for."""
    is_over = threading.Event()
    try:
        yield is_over
    finally:
        is_over.set()


async def give_up(job: partial[bool], n_lookups: int) -> None:
    """Look so many names up that nobody answers for, and wait for none of them."""
    async with trio.open_nursery() as nursery:
        for _ in range(n_lookups):
            nursery.start_soon(look_up_in, "names", job)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_names_wait_behind_those_of_their_own_line_alone() -> None:
    with unanswered() as is_over, trio.fail_after(WAIT_S):
        await give_up(partial(is_over.wait), MAX_LOOKUPS)
        assert await look_up_in("others", lambda: "here") == "here"
        with trio.move_on_after(0.01) as waiting:
            await look_up_in("names", lambda: "here")
        assert waiting.cancelled_caught
        is_over.set()
        assert await look_up_in("names", lambda: "here") == "here"


def test_what_is_given_up_as_a_run_ends_keeps_no_place_in_the_next() -> None:
    with unanswered() as is_over:
        trio.run(give_up, partial(is_over.wait), MAX_LOOKUPS)

        async def look_up() -> str:
            with trio.fail_after(WAIT_S):
                return await look_up_in("names", lambda: "here")

        assert trio.run(look_up) == "here"


async def test_what_a_lookup_raises_is_told() -> None:
    with pytest.raises(UnicodeError):
        await look_up_in("names", lambda: str(b"\xff", "utf-8"))
