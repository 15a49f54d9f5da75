"""The daemon as a process: it starts, stops, refuses a second one, and comes back after kill -9."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.lock import daemon_pid
from daemon.paths import Home

ROOT = Path(__file__).parents[2]
COVEY = [sys.executable, "-m", "daemon.cli.main"]

pytestmark = pytest.mark.e2e


@pytest.fixture
def covey(tmp_path):
    environment = {**os.environ, "COVEY_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

    def run(*arguments, start=False, **more):
        if start:
            return subprocess.Popen(
                [*COVEY, *arguments],
                env=environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        return subprocess.run(
            [*COVEY, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=90, **more
        )

    run("init")
    for key, value in {"network.port": "0", "network.host": "127.0.0.1", "network.has_mdns": "false"}.items():
        assert run("config", "set", key, value).returncode == 0
    yield run
    run("down")


def started(process):
    told = json.loads(process.stdout.readline())
    assert told["pid"] == process.pid
    return told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly_in_time(covey, tmp_path, number):
    process = covey("up", "--json", start=True)
    started(process)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err  # its own watchdog would have ended it with another
    assert not (tmp_path / "home" / "control.sock").exists()
    assert "Traceback" not in err


def test_a_second_one_is_refused_with_one_line_and_the_first_goes_on(covey, tmp_path):
    process = covey("up", "--json", start=True)
    pid = started(process)["pid"]
    second = covey("up")
    assert second.returncode == 1
    assert (
        second.stderr == f"covey: a daemon already runs in {tmp_path / 'home'} (process {pid}). Stop it: covey down\n"
    )
    assert covey("up", "--detach").returncode == 1
    assert json.loads(covey("status", "--json").stdout)["pid"] == pid
    assert covey("down").returncode == 0
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_after_kill_nine_it_starts_again_with_all_that_was_acknowledged(covey, tmp_path):
    process = covey("up", "--json", start=True)
    peer = started(process)["peer"]
    (tmp_path / "letter").write_text("dear flock")
    cid = covey("add", str(tmp_path / "letter")).stdout.split()[0]
    process.kill()
    process.communicate(timeout=30)
    assert (tmp_path / "home" / "control.sock").exists()
    assert covey("status").returncode == 3
    up = covey("up", "--detach", "--json")
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout)["peer"] == peer
    assert covey("cat", cid).stdout == "dear flock"
    events = [json.loads(line) for line in covey("events", "--since", "0", "--json").stdout.splitlines()]
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert [event["kind"] for event in events].count("node_started") == 2


def test_detached_it_goes_on_without_its_parent_and_down_ends_it(covey, tmp_path):
    assert covey("up", "--detach").returncode == 0
    pid = json.loads(covey("status", "--json").stdout)["pid"]
    assert daemon_pid(Home(tmp_path / "home")) == pid
    assert covey("down").returncode == 0
    assert daemon_pid(Home(tmp_path / "home")) is None
    assert covey("down").returncode == 0
    assert covey("status").returncode == 3


def test_a_follower_of_events_sees_the_stop_and_ends(covey):
    process = covey("up", "--json", start=True)
    started(process)
    follower = covey("events", "--since", "0", "--follow", "--json", start=True)
    assert json.loads(follower.stdout.readline())["kind"] == "node_started"
    assert covey("down").returncode == 0
    process.communicate(timeout=30)
    assert process.returncode == 0  # no watchdog had to end it
    follower.communicate(timeout=30)


def test_a_wrong_setting_is_told_before_anything_starts(covey, tmp_path):
    with (tmp_path / "home" / "config.toml").open("a") as file:
        file.write("[netwrk]\n")
    for arguments in (["up"], ["up", "--detach"]):
        done = covey(*arguments)
        assert done.returncode == 1
        assert "netwrk is not a setting; did you mean network?" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_idle_daemon_is_small_and_has_no_torch_in_it(covey):
    assert covey("up", "--detach").returncode == 0
    told = json.loads(covey("status", "--json").stdout)
    assert told["rss_bytes"] < 110e6
    maps = Path(f"/proc/{told['pid']}/maps")
    if maps.exists():
        assert "torch" not in maps.read_text()
