"""Long operations tell how far they are, and end with what they came to."""

import pytest
import trio

from daemon.api.operation import Done, Params, Progress, reporting


class Steps(Params, frozen=True):
    n_steps: int


@reporting
async def count(node, params, report):
    """Count."""
    for n_done in range(params.n_steps):
        report(Progress(step=node, n_done=n_done))
        await trio.sleep(1)
    return Done(text="counted")


async def test_a_long_operation_reports_now_and_then_and_ends_with_its_result(autojump_clock):
    told = [item async for item in count("counting", Steps(n_steps=3))]
    assert told == [*(Progress(step="counting", n_done=n) for n in range(3)), Done(text="counted")]
    assert count.__doc__ == "Count."


async def test_what_goes_wrong_in_a_long_operation_is_what_its_caller_gets(autojump_clock):
    @reporting
    async def fail(node, params, report):
        await trio.sleep(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        assert [item async for item in fail(None, Steps(n_steps=1))]


async def test_what_goes_wrong_while_a_report_is_being_read_is_told_after_it(autojump_clock):
    @reporting
    async def fail(node, params, report):
        report(Progress(step="a step", n_done=1))
        await trio.sleep(1)
        raise ZeroDivisionError

    told = []

    async def read_slowly():
        async with trio.as_safe_channel(fail)(None, Steps(n_steps=1)) as items:
            async for item in items:
                told.append(item.step)
                await trio.sleep(5)

    with pytest.raises(ZeroDivisionError):
        await read_slowly()
    assert told == ["a step"]
