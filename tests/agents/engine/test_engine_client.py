import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from agents.engine.calls import MAX_UNREAD_REPLIES
from agents.engine.client import open_engine
from agents.engine.messages import Embed, Finished, Generate, Import, Load, Ping, Stage, Token, Turn
from agents.errors import BadData, EngineDied, EngineFailed, EngineMissing

ASK = Generate(turns=(Turn("user", "hello"),))
ECHO = """
for value in requests():
    if value["type"] == "generate":
        send(Token(id=value["id"], text=value["turns"][0]["content"]))
        send(finished(value["id"]))
    elif value["type"] == "load":
        send(Loaded(id=value["id"], card=CARD, load_s=0.0))
    elif value["type"] == "embed":
        send(Embedded(id=value["id"], vectors=str(os.getpid()).encode(), width=1))
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # An orphan in a container may wait for ever for somebody to read its exit code.
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc").exists()


async def pid_by(engine) -> int:
    return int((await engine.one(Embed(texts=()))).vectors)


async def test_replies_come_in_order_and_end_with_the_final_one(fake_worker):
    async with open_engine(command=fake_worker(ECHO)) as engine:
        async with engine.call(ASK) as replies:
            seen = [reply async for reply in replies]
        assert [type(reply) for reply in seen] == [Token, Finished]
        assert seen[0].text == "hello"


async def test_no_worker_runs_before_the_first_request_and_none_after_the_block(fake_worker):
    async with open_engine(command=fake_worker(ECHO)) as engine:
        assert engine.pid is None
        await engine.one(ASK)
        pid = engine.pid
        assert pid is not None and is_alive(pid)
    assert not is_alive(pid)


async def test_answers_to_many_tasks_do_not_mix(fake_worker):
    async def ask(engine, text, out):
        async with engine.call(Generate(turns=(Turn("user", text),))) as replies:
            out[text] = [reply.text async for reply in replies if isinstance(reply, Token)]

    out: dict[str, list[str]] = {}
    async with open_engine(command=fake_worker(ECHO)) as engine, trio.open_nursery() as nursery:
        for n in range(100):
            nursery.start_soon(ask, engine, f"text {n}", out)
    assert out == {f"text {n}": [f"text {n}"] for n in range(100)}


async def test_leaving_early_sends_cancel_and_the_late_replies_reach_nobody(fake_worker):
    slow = """
for value in requests():
    if value["type"] == "generate" and value["turns"][0]["content"] == "slow":
        send(Token(id=value["id"], text="one"))
    elif value["type"] == "cancel":
        send(Token(id=value["id"], text="late"))
        send(finished(value["id"], "cancelled"))
    else:
        send(Token(id=value["id"], text="other"))
        send(finished(value["id"]))
"""
    async with open_engine(command=fake_worker(slow)) as engine:
        async with engine.call(Generate(turns=(Turn("user", "slow"),))) as replies:
            assert (await replies.__anext__()).text == "one"
        assert engine.n_calls == 0
        async with engine.call(ASK) as replies:
            assert [reply.text async for reply in replies if isinstance(reply, Token)] == ["other"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("next(requests()); os._exit(3)", "exited with code 3"),
        ("next(requests()); os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("next(requests()); raise SystemExit(0)", "exited with code 0"),
        ("next(requests()); print('no room left', file=sys.stderr); os._exit(1)", "no room left"),
        ("next(requests()); os.write(1, b'hello, I am no frame')", "garbage"),
        ("next(requests()); os.write(1, bytes([255]) * 8)", "garbage"),
        ("next(requests()); os.write(1, encode(finished(1))[:-3])", "middle of a reply"),
        ("next(requests()); os.write(1, encode(ModelCard and Cancel(id=1)))", "garbage"),
        ("next(requests()); os.close(1); time.sleep(60)", "killed by SIGKILL"),
    ],
)
async def test_however_a_worker_dies_the_request_in_hand_is_told(fake_worker, code, said):
    async with open_engine(command=fake_worker(code)) as engine:
        with trio.fail_after(60), pytest.raises(EngineDied, match=said):
            await engine.one(ASK)
        assert engine.pid is None


async def test_kill_9_is_survived_and_the_next_request_gets_a_new_worker_with_the_model(fake_worker):
    loads = """
model = None
for value in requests():
    if value["type"] == "load":
        model = value["folder"]
        send(Loaded(id=value["id"], card=CARD, load_s=0.0))
    elif value["type"] == "embed":
        send(Embedded(id=value["id"], vectors=str(os.getpid()).encode(), width=1))
    elif value["type"] == "stage":
        staged = Staged(id=value["id"], stage_s=0.0)
        send(staged if model == "/m" else Failed(id=value["id"], code="x", text=str(model)))
"""
    async with open_engine(command=fake_worker(loads)) as engine:
        await engine.one(Load(folder="/m"))
        first = await pid_by(engine)
        async with engine.call(ASK) as replies:
            os.kill(first, signal.SIGKILL)
            with pytest.raises(EngineDied, match="SIGKILL"):
                await replies.__anext__()
        await engine.one(Stage(adapter="/a"))
        assert await pid_by(engine) != first


async def test_every_request_in_hand_hears_of_the_death(fake_worker):
    told = []

    async def ask(engine):
        try:
            await engine.one(ASK)
        except EngineDied:
            told.append(1)

    async with (
        open_engine(command=fake_worker("for n, _ in enumerate(requests()):\n    if n == 4: os._exit(1)")) as engine,
        trio.open_nursery() as nursery,
    ):
        for _ in range(5):
            nursery.start_soon(ask, engine)
    assert len(told) == 5


async def test_a_worker_that_dies_at_its_start_is_started_again_with_growing_pauses(fake_worker):
    async with open_engine(command=fake_worker("os._exit(1)")) as engine:
        for _ in range(3):
            with pytest.raises(EngineDied):
                await engine.one(ASK)
        assert engine.wait_s > 1.0


async def test_failures_come_as_their_own_errors(fake_worker):
    fails = """
for value in requests():
    send(Failed(id=value["id"], code=value["turns"][0]["content"], text="line 3"))
"""
    async with open_engine(command=fake_worker(fails)) as engine:
        for code, error in [("bad_data", BadData), ("engine_missing", EngineMissing), ("unheard_of", EngineFailed)]:
            with pytest.raises(error, match="line 3"):
                await engine.one(Generate(turns=(Turn("user", code),)))


async def test_an_idle_worker_gives_its_memory_back(fake_worker):
    async with open_engine(command=fake_worker(ECHO), idle_s=0.05) as engine:
        first = await pid_by(engine)
        with trio.fail_after(10):
            while engine.pid is not None:
                await trio.sleep(0.01)
        assert await pid_by(engine) != first


async def test_a_worker_that_ignores_its_end_is_killed(fake_worker):
    deaf = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
send(Embedded(id=next(requests())["id"], vectors=str(os.getpid()).encode(), width=1))
while True: time.sleep(60)
"""
    with trio.fail_after(60):
        async with open_engine(command=fake_worker(deaf)) as engine:
            pid = await pid_by(engine)
    assert not is_alive(pid)


async def test_a_caller_that_does_not_read_loses_its_own_call_alone(fake_worker):
    flood = f"""
for value in requests():
    if value["type"] == "generate":
        for n in range({MAX_UNREAD_REPLIES} + 10):
            send(Token(id=value["id"], text="x"))
    elif value["type"] == "embed":
        send(Embedded(id=value["id"], vectors=b"1", width=1))
"""
    async with open_engine(command=fake_worker(flood)) as engine, engine.call(ASK) as replies:
        await engine.one(Embed(texts=()))
        with pytest.raises(EngineFailed, match="waiting to be read"):
            async for _ in replies:
                pass


async def test_a_request_that_is_too_large_is_refused_before_it_is_sent(fake_worker):
    async with open_engine(command=fake_worker(ECHO)) as engine:
        with pytest.raises(EngineFailed, match="too large"):
            await engine.one(Embed(texts=("x" * (33 << 20),)))
        await engine.one(ASK)


async def test_the_lines_of_stderr_reach_the_log(fake_worker):
    told, hears = trio.open_memory_channel[str](10)
    noisy = "print('loading', file=sys.stderr, flush=True)\nfor value in requests(): send(finished(value['id']))"
    async with open_engine(command=fake_worker(noisy), on_log=told.send_nowait) as engine:
        await engine.one(ASK)
        with trio.fail_after(10):
            assert await hears.receive() == "loading"


async def test_the_real_worker_answers_what_is_not_valid_and_lives_on():
    async with open_engine() as engine:
        with pytest.raises(EngineFailed, match="not valid"):
            await engine.one(Generate(turns=(Turn("user", "x"),), top_p=2.0))
        with pytest.raises(EngineFailed, match="not valid"):
            await engine.one(Import(source="", folder="/x", name="x"))
        assert engine.pid is not None


async def test_the_real_worker_ends_when_its_daemon_is_gone():
    async with open_engine() as engine:
        with pytest.raises(EngineFailed):
            await engine.one(Import(source="", folder="/x", name="x"))
        worker = engine._worker
        assert worker is not None
        await worker.process.stdin.aclose()  # what the kernel does to the pipes of a daemon that was killed
        with trio.fail_after(60):
            assert await worker.process.wait() == 0


async def test_a_call_that_meets_a_dead_worker_is_told_and_does_not_wait(fake_worker):
    async with open_engine(command=fake_worker(ECHO)) as engine:
        os.kill(await pid_by(engine), signal.SIGKILL)
        worker = engine._worker
        with trio.fail_after(10):
            while not worker.is_over:
                await trio.sleep(0.01)
            with pytest.raises(EngineDied, match="SIGKILL"):
                async with engine._call_on(worker, ASK):
                    pass


async def test_a_command_that_does_not_exist_is_an_error_of_the_engine():
    async with open_engine(command=("/no/such/program",)) as engine:
        with pytest.raises(EngineDied, match="could not be started"):
            await engine.one(ASK)


async def test_no_worker_outlives_a_daemon_that_is_killed():
    daemon = """
import trio
from agents.engine.client import open_engine
from agents.engine.messages import Import
from agents.errors import EngineFailed

async def main():
    async with open_engine() as engine:
        try:
            await engine.one(Import(source="", folder="/x", name="x"))
        except EngineFailed:
            print(engine.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
    process = await trio.lowlevel.open_process([sys.executable, "-c", daemon], stdout=subprocess.PIPE)
    with trio.fail_after(120):
        pid = int(await process.stdout.receive_some(100))
        assert is_alive(pid)
        process.kill()
        await process.wait()
        while is_alive(pid):
            await trio.sleep(0.01)
    await process.stdout.aclose()


PONGS = """
from threading import Thread
def pong(value, n_steps=0, cpu_s=0.0):
    send(Pong(id=value["id"], n_steps=n_steps, cpu_s=cpu_s))
"""


async def test_a_worker_that_is_stopped_in_its_tracks_is_ended_and_the_next_one_answers(fake_worker):
    async with open_engine(command=fake_worker(ECHO), hang_s=1.5) as engine:
        pid = await pid_by(engine)
        os.kill(pid, signal.SIGSTOP)
        with trio.fail_after(60), pytest.raises(EngineDied, match="no sign of life"):
            await engine.one(ASK)
        assert not is_alive(pid)
        await engine.one(ASK)
        assert engine.health().n_deaths == 1


async def test_a_worker_whose_reader_lives_and_whose_work_stands_still_is_ended(fake_worker):
    stands = """
for value in requests():
    if value["type"] == "ping": pong(value)
    elif value["type"] == "embed": send(Embedded(id=value["id"], vectors=b"1", width=1))
"""
    async with open_engine(command=fake_worker(PONGS + stands), hang_s=1.5) as engine:
        await pid_by(engine)
        with trio.fail_after(60), pytest.raises(EngineDied, match="stood still"):
            await engine.one(ASK)


async def test_long_work_that_goes_on_trips_no_watchdog(fake_worker):
    works = """
n = 0
for value in requests():
    if value["type"] == "ping":
        n += 1
        pong(value, n_steps=0, cpu_s=n * 10.0)
        if n == 14:
            send(finished(first))
    elif value["type"] == "embed":
        send(Embedded(id=value["id"], vectors=b"1", width=1))
    else:
        first = value["id"]
"""
    async with open_engine(command=fake_worker(PONGS + works), hang_s=1.5) as engine:
        await pid_by(engine)
        with trio.fail_after(60):
            assert isinstance(await engine.one(ASK), Finished)
        assert engine.health().n_deaths == 0


async def test_a_worker_that_dies_of_each_question_is_started_again_ever_later(fake_worker):
    dies = """
for value in requests():
    if value["type"] == "load": send(Loaded(id=value["id"], card=CARD, load_s=0.0))
    else: os._exit(1)
"""
    waits = []
    async with open_engine(command=fake_worker(dies)) as engine:
        await engine.one(Load(folder="/m"))
        for _ in range(3):
            with pytest.raises(EngineDied):
                await engine.one(ASK)
            waits.append(engine.wait_s)
    assert waits[0] == 0 < waits[1] < waits[2]


async def test_what_is_known_of_it_is_told_without_starting_it(fake_worker):
    deaths: list[str] = []
    code = "for value in requests():\n    if value['type'] == 'generate': os._exit(7)"
    async with open_engine(command=fake_worker(code), on_death=deaths.append) as engine:
        assert await engine.status() is None
        assert engine.health().pid is None and engine.health().n_starts == 0
        async with engine.call(Embed(texts=())):
            assert engine.health().calls == {"embed": 1}
        with pytest.raises(EngineDied):
            await engine.one(ASK)
        health = engine.health()
    assert health.n_deaths == len(deaths) == 1
    assert health.last_death == deaths[0] and "code 7" in deaths[0]


async def test_a_worker_that_its_user_stops_fails_what_is_in_hand_and_counts_as_no_death(fake_worker):
    async with open_engine(command=fake_worker(ECHO + "    # a generate with no turn hangs")) as engine:
        assert not engine.stop()
        pid = await pid_by(engine)
        async with engine.call(Import(source="x", folder="/x", name="x")) as replies:
            assert engine.stop()
            with pytest.raises(EngineDied, match="stopped by its user"):
                await anext(replies)
        assert engine.health().n_deaths == 0 and engine.wait_s == 0
        assert await pid_by(engine) != pid


async def test_the_end_of_the_daemon_is_no_death_of_the_engine(fake_worker):
    deaths: list[str] = []
    async with open_engine(command=fake_worker(ECHO), on_death=deaths.append) as engine:
        await engine.one(ASK)
    assert deaths == []


async def test_the_real_worker_gives_signs_of_life_while_its_main_thread_imports():
    async with open_engine(hang_s=20.0) as engine:
        with pytest.raises(EngineFailed):
            await engine.one(Import(source="", folder="/x", name="x"))
        assert engine.pid is not None
        worker = engine._worker
        async with engine._call_on(worker, Ping()) as replies:
            with trio.move_on_after(0.5):
                await anext(replies)
        assert worker.watchdog._n_steps >= 0
