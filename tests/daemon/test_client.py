"""The daemon from Python: operations under trio and asyncio, and an agent that is a function of one's own."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tomllib
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from daemon.client import Client, NotRunning, Refused, agent, serve
from daemon.client.agent import toml

GUIDE = Path(__file__).parents[2] / "daemon" / "client" / "CLIENT.md"


@pytest.fixture
async def village(node_here):
    await node_here.post("ws/create", title="village")
    async with Client(node_here.node.home.root) as client:
        yield client


async def answering(nursery, client, one):
    """Have it answer from now on; returns the scope that ends it."""
    scope, attached = trio.CancelScope(), trio.Event()

    async def run():
        with scope:
            await serve(one, client, attached=attached.set)

    nursery.start_soon(run)
    with trio.fail_after(20):
        await attached.wait()
    return scope


async def ask(client, name, prompt):
    return (await client.call("agent/ask", workspace="village", agent=name, prompt=prompt, timeout_s=20.0))["answer"]


async def test_operations_are_called_and_streamed_and_refusals_have_codes(village):
    assert [row["title"] for row in await village.call("ws/ls")] == ["village"]
    async with aclosing(village.stream("events/read", last=5)) as events:
        assert "node_started" in [event["kind"] async for event in events]
    with pytest.raises(Refused) as refused:
        await village.call("agent/card", workspace="village", name="nobody")
    assert refused.value.code == "unknown_agent"


async def test_it_speaks_under_asyncio_too(village, node_here):
    async def titles():
        async with Client(node_here.node.home.root) as client:
            return [row["title"] for row in await client.call("ws/ls")]

    assert await trio.to_thread.run_sync(lambda: asyncio.run(titles())) == ["village"]


async def test_without_a_daemon_it_says_so(tmp_path):
    async with Client(tmp_path) as client:
        with pytest.raises(NotRunning, match="covey up"):
            await client.call("node/status")


async def test_a_function_is_an_agent_and_uses_tools_through_the_daemon(village, node_here, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("many birds")
    seen = []

    @agent(
        "village", role="reader", tools=["file-read"], policy={"folder": str(tmp_path / "docs")}, system='Be "kind".'
    )
    async def look_up(asked):
        seen.append(asked)
        if "returned this" in asked.prompt:
            return asked.prompt.splitlines()[-1]
        return '{"tool": "file-read", "input": {"path": "a.txt"}}'

    async with trio.open_nursery() as nursery:
        await answering(nursery, village, look_up)
        assert await ask(village, "look-up", "What is there?") == "many birds"
        nursery.cancel_scope.cancel()
    assert seen[0].turns[0][1].startswith('Be "kind".') and seen[0].prompt == "What is there?"
    assert len(seen) == 2 and seen[0].key == seen[1].key
    log = (await node_here.post("ws/log", workspace="village")).lines
    made = [entry for entry in log if entry["kind"] == "commit"][-1]["content"]["output"]["made"]
    assert made["model"]["kind"] == "attached" and made["calls"][0]["output"] == "many birds"


async def test_who_went_away_or_failed_is_asked_again_with_the_same_key(village):
    keys = []

    @agent("village")
    async def shy(asked):
        keys.append(asked.key)
        if len(keys) == 1:
            raise ValueError("not today")
        return "well"

    async with trio.open_nursery() as nursery:
        scope = await answering(nursery, village, shy)
        with pytest.raises(Refused, match="already"):
            await serve(shy, village)
        assert await ask(village, "shy", "?") == "well"
        assert len(keys) == 2 and keys[0] == keys[1]
        scope.cancel()
        async with trio.open_nursery() as asking:
            asking.start_soon(ask, village, "shy", "again?")
            await answering(nursery, village, shy)
        nursery.cancel_scope.cancel()
    assert len(keys) == 3


async def test_what_is_no_text_fails_the_step_and_ends_no_process(village):
    answers = iter([None, ValueError("file \udcff"), "an \ud800 end"])

    @agent("village")
    async def odd(_asked):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with trio.open_nursery() as nursery:
        await answering(nursery, village, odd)
        assert await ask(village, "odd", "?") == "an ? end"
        nursery.cancel_scope.cancel()
    async with aclosing(village.stream("events/read", last=100)) as events:
        why = [event["fields"]["text"] async for event in events if event["kind"] == "run_step_failed"]
    assert why == ["TypeError: an agent answers with a text, and not with NoneType", "ValueError: file ?"]


async def test_what_a_process_had_not_answered_when_it_ended_is_asked_again(village):
    keys, busy = [], trio.Event()

    @agent("village")
    async def mayfly(asked):
        keys.append(asked.key)
        busy.set()
        if len(keys) == 1:
            await trio.sleep_forever()
        return "well"

    async with trio.open_nursery() as nursery:
        scope = await answering(nursery, village, mayfly)
        async with trio.open_nursery() as asking:
            asking.start_soon(ask, village, "mayfly", "?")
            await busy.wait()
            scope.cancel()
            await answering(nursery, village, mayfly)
        nursery.cancel_scope.cancel()
    assert len(keys) == 2 and keys[0] == keys[1]


async def test_answers_that_nobody_waits_for_and_agents_of_other_kinds_are_refused(village, tmp_path):
    with pytest.raises(Refused) as late:
        await village.call("agent/reply", ticket="x", text="y")
    (tmp_path / "a.toml").write_text('name = "a"\nmodel = { kind = "scripted" }')
    await village.call("agent/add", workspace="village", file=str(tmp_path / "a.toml"))
    with pytest.raises(Refused) as other:
        await village.call("agent/attach", workspace="village", name="a")
    with pytest.raises(Refused) as nobody:
        await village.call("agent/attach", workspace="village", name="b")
    assert [one.value.code for one in (late, other, nobody)] == ["nothing_asked", "bad_agent", "unknown_agent"]


async def test_the_example_of_the_guide_answers(village, node_here, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (tmp_path / "shout.py").write_text(code)
    environment = os.environ | {"COVEY_HOME": str(node_here.node.home.root), "PYTHONPATH": str(GUIDE.parents[2])}
    process = await trio.lowlevel.open_process(
        [sys.executable, str(tmp_path / "shout.py")], stdout=subprocess.PIPE, env=environment
    )
    try:
        with trio.fail_after(60):
            assert (await process.stdout.receive_some()).startswith(b"attached")
            assert await ask(village, "shout", "hello") == "HELLO"
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await process.stdout.aclose()


def test_a_declaration_is_written_as_toml_reads_it():
    fields = {
        "name": "a", "system": 'It\'s "so"\n\tand \\ ü \x7f 🐦', "memory": 2, "capabilities": ["x", "y"],
        "policy": {"may_write": True, "servers": [{"name": "w", "timeout_s": 1.5}]},
    }  # fmt: skip
    assert tomllib.loads(toml(fields)) == fields
