"""Python that a model wrote: it calculates, and reaches nothing; where no sandbox can be had, it is not run."""

import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import pytest
import trio

from agents.roster.declaration import BadAgent, Policy, read_declaration
from agents.tools import jail, python
from agents.tools.python import Python
from agents.tools.tool import Reach, ToolFailed, ToolRefused, use
from agents.tools.tool import Tool as Made

CALL = "import ctypes\nif ctypes.CDLL(None, use_errno=True)."
MAY = Reach(policy=Policy(may_run_python=True), key="key")

needs_jail = pytest.mark.skipif(bool(jail.why_not()), reason=f"no sandbox here: {jail.why_not()}")


async def run(code, **more):
    return await use(Made(name="python-run", about="", takes={"code": ""}, use=Python(**more)), {"code": code}, MAY)


@needs_jail
async def test_what_a_calculation_needs_is_there():
    code = """
import asyncio, datetime, decimal, hashlib, json, random, re, sqlite3, statistics, threading, uuid, zoneinfo
async def said():
    await asyncio.sleep(0.001)
    return "asyncio"
print(asyncio.run(said()))
thread = threading.Thread(target=print, args=("thread",))
thread.start(); thread.join()
with open("a.txt", "w") as file:
    file.write("held")
import os
os.mkdir("sub"); os.rename("a.txt", "sub/b.txt")
print(open("sub/b.txt").read(), statistics.mean([1, 2, 3]), hashlib.sha256(b"").hexdigest()[:8])
"""
    assert await run(code) == {"status": 0, "output": "asyncio\nthread\nheld 2 e3b0c442\n"}


@needs_jail
async def test_a_failure_is_told_without_where_things_lie_on_this_machine():
    found = await run("import os, json\nprint(os.getcwd())\njson.loads('{')")
    assert found["status"] == 1 and found["output"].startswith("scratch\nTraceback")
    assert "JSONDecodeError" in found["output"] and 'File "code", line 3' in found["output"]
    assert "jail.py" not in found["output"] and sys.base_prefix not in found["output"]
    assert (await run("def f(:"))["output"].endswith("SyntaxError: invalid syntax\n")
    assert (await run("raise SystemExit(5)"))["status"] == 5


@needs_jail
async def test_code_that_ends_as_who_found_no_sandbox_does_is_told_by_its_status():
    code = f"import os, sys\nprint('out'); sys.stdout.flush(); os._exit({jail.NO_JAIL})"
    assert await run(code) == {"status": jail.NO_JAIL, "output": "out\n"}
    assert (await run(f"raise SystemExit({jail.NO_JAIL})"))["status"] == jail.NO_JAIL


@needs_jail
@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import socket; socket.create_connection(('127.0.0.1', {port}))",
        "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '{unix}')",
        "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendmsg([b'x'], [], 0, '{unix}')",
        "open('{secret}').read()",
        "import os; os.listdir('{folder}')",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "open('/proc/{pid}/environ').read()",
        "import os; os.listdir(os.path.expanduser('/root'))",
        "import os; os.symlink('{secret}', 'link'); open('link').read()",
        "import os; os.link('{secret}', 'link'); open('link').read()",
        "open('{secret}', 'a')",
        "open('{folder}/new', 'w')",
        "import os; os.truncate('{secret}', 0)",
        "import os; os.unlink('{secret}')",
        "import os; os.rename('{secret}', 'mine')",
        "import os; os.chmod('{secret}', 0)",
        "import os; os.utime('{secret}')",
        "import os; os.chown('{secret}', 1, 1)",
        "import os; os.setxattr('{secret}', 'user.x', b'x')",
        "import os; os.fork()",
        CALL + "syscall(56, 17, 0, 0, 0, 0) < 0: raise PermissionError",
        CALL + "syscall(435, bytes(88), 88) < 0: raise PermissionError",
        "import os; os.posix_spawn('/bin/true', ['true'], {{}})",
        "import os; os.execv('/bin/true', ['true'])",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import multiprocessing as m; m.Process(target=print).start()",
        "import os; os.kill({pid}, 0)",
        "import signal; signal.pidfd_send_signal(0, 0)",
        "import fcntl; fcntl.fcntl(1, 8, {pid})",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (100, 100))",
        "import resource; resource.prlimit({pid}, resource.RLIMIT_CPU, (100, 100))",
        CALL + "syscall(101, 16, {pid}, 0, 0) < 0: raise PermissionError",
        CALL + "syscall(425, 8, 0) < 0: raise PermissionError",
        CALL + "unshare(0x10000000) < 0: raise PermissionError",
        CALL + "syscall(226, 0) < 0: raise PermissionError",
        CALL + "syscall(0x40000000 + 41, 2, 1, 0) < 0: raise PermissionError",
    ],
)  # fmt: skip
async def test_nothing_outside_is_reached_and_nothing_else_is_started(code, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    before = secret.stat()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "u"))
        heard.setblocking(False)
        places = {"port": server.getsockname()[1], "unix": tmp_path / "u", "secret": secret}
        found = await run(code.format(folder=tmp_path, pid=os.getpid(), **places) + "\nprint('reached')")
        with pytest.raises(BlockingIOError):
            heard.recv(1)
    assert found["status"] == 1 and "reached" not in found["output"], found
    assert any(word in found["output"] for word in ("PermissionError", "Operation not permitted", "not allowed")), found
    assert sorted(os.listdir(tmp_path)) == ["secret.txt", "u"]
    after = secret.stat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns) == (before.st_mode, before.st_size, before.st_mtime_ns)


@needs_jail
async def test_it_sees_nothing_of_the_daemons_environment(monkeypatch):
    monkeypatch.setenv("COVEY_HOME", "/somewhere")
    found = await run("import os, sys\nprint(sorted(os.environ), sys.argv, len(sys.path))")
    assert found["output"] == "['HOME', 'LANG', 'TMPDIR'] ['code'] 3\n"


@needs_jail
@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytes(1 << 20))", "MemoryError"),
        ("from threading import *\nwhile True: Thread(target=Event().wait, daemon=True).start()", "can't start new"),
        ("open('a', 'wb').truncate(1 << 40)", "File too large"),
        ("held = [open('a', 'w') for _ in range(99)]", "Too many open files"),
    ],
)  # fmt: skip
async def test_a_hog_ends_at_its_limit(code, end):
    with trio.fail_after(60):
        assert end in (await run(code))["output"]


@needs_jail
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import time; time.sleep(600)", r"took over 0\.5 s"),
        ("import signal as s\ns.pthread_sigmask(s.SIG_BLOCK, range(1, 64))\nwhile True: pass", r"took over 0\.5 s"),
        ("while True: print('x' * 9999)", "printed over"),
    ],
)  # fmt: skip
async def test_what_has_no_end_is_ended(code, why):
    with trio.fail_after(30), pytest.raises(ToolFailed, match=f"the code was ended: it {why}"):
        await run(code, limit_s=0.5 if "0" in why else 20.0)


@needs_jail
async def test_a_disk_hog_is_ended_and_its_scratch_is_gone(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(python, "MAX_SCRATCH_BYTES", 1 << 20)
    code = "import time\nfor n in range(4): open(str(n), 'wb').write(bytes(1 << 20))\ntime.sleep(60)"
    with trio.fail_after(30), pytest.raises(ToolFailed, match="the code was ended: it wrote over"):
        await run(code)
    assert not os.listdir(tmp_path)


@needs_jail
@pytest.mark.parametrize(
    ("limit", "code", "ends"),
    [
        ("CPU_S: Final = 10", "while True: pass", (signal.SIGXCPU, signal.SIGKILL)),
        ("CLOCK_S: Final = 60", "import time\nwhile True: time.sleep(9)", (signal.SIGKILL,)),
    ],
)
async def test_it_ends_by_the_kernels_word_though_its_parent_is_dead(tmp_path, limit, code, ends):
    text = Path(jail.__file__).read_text()
    assert text.count(limit) == 1
    (tmp_path / "jail.py").write_text(text.replace(limit, f"{limit.partition(' =')[0]} = 1"))
    (tmp_path / "scratch").mkdir()
    command = python.command(str(tmp_path / "scratch"))
    command[command.index(jail.__file__)] = str(tmp_path / "jail.py")
    with trio.fail_after(60):
        done = await trio.run_process(command, stdin=code.encode(), check=False)
    assert -done.returncode in ends


@needs_jail
async def test_output_is_bounded():
    found = await run("print('x' * 20_000)")
    assert len(found["output"]) == python.MAX_OUTPUT_CHARS + len("\n(cut)")


async def test_where_no_sandbox_can_be_had_it_is_refused():
    with pytest.raises(ToolRefused, match="no sandbox can be had here to run Python in: this kernel has none"):
        await run("print(1)", why_not=lambda: "this kernel has none")


@needs_jail
async def test_a_lock_that_fails_ends_the_process_before_any_code(monkeypatch):
    monkeypatch.setattr(python, "SYSTEM", ("/dev/null/nothing",))
    with pytest.raises(ToolRefused, match="no sandbox can be had"):
        await run("print(1)")


async def test_the_policy_says_who_may():
    tool = Made(name="python-run", about="", takes={"code": ""}, use=Python())
    with pytest.raises(ToolRefused, match="may_run_python"):
        await use(tool, {"code": "print(1)"}, Reach(policy=Policy(), key=""))
    with pytest.raises(BadAgent, match="may_run_python"):
        read_declaration(b'name = "a"\ntools = ["python-run"]')


@pytest.fixture
def nobody(tmp_path_factory):
    """This process as a user that file modes hold for."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_what_lies_in_a_folder_that_its_owner_may_not_look_into_counts_and_goes_too(nobody):
    scratch = Path(tempfile.mkdtemp())
    (scratch / "closed").mkdir()
    (scratch / "closed" / "a").write_bytes(b"x" * 100_000)
    (scratch / "closed" / "shut").mkdir(0o000)
    (scratch / "closed").chmod(0o300)
    n_files, n_bytes = python._size(str(scratch))
    assert n_files == 4 and n_bytes >= 100_000
    (scratch / "closed").chmod(0o000)
    python._cleared(str(scratch))
    assert not scratch.exists()


@needs_jail
async def test_codes_wait_for_one_another_so_that_together_they_take_no_more_than_the_machine_has():
    tool, spans = Python(n_most=1), []

    async def timed():
        code = "import time\nbegun = time.monotonic()\ntime.sleep(0.2)\nprint(begun, time.monotonic())"
        spans.append(tuple(map(float, (await tool({"code": code}, MAY))["output"].split())))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(timed)
    spans.sort()
    assert len(spans) == 3 and spans[0][1] <= spans[1][0] and spans[1][1] <= spans[2][0]
