"""`covey init`, `up` and `down`: the daemon as a process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from daemon import config as settings
from daemon.api import faults
from daemon.cli import client, forms
from daemon.cli.options import json_option
from daemon.errors import AlreadyRunning, DaemonError
from daemon.lock import daemon_pid
from daemon.paths import Home

START_LIMIT_S: Final = 60.0
STOP_PATIENCE_S: Final = 6.0  # twice the daemon's own limit
_LOOK_S: Final = 0.05


@click.command
@click.option(
    "--flock", type=click.Path(path_type=Path), metavar="FILE", help="Join the private flock of this key file."
)
@click.option("--new-flock", is_flag=True, help="Begin a private flock: make a key, for its other members to --flock.")
@click.pass_obj
def init(home: Home, flock: Path | None, new_flock: bool, as_json: bool) -> None:
    """Make this machine a node: a home folder and an identity. `covey up` does it too."""
    from daemon.setup import initialise, join_flock, read_flock_key

    if flock and new_flock:
        raise click.UsageError("a flock is either begun (--new-flock) or joined (--flock FILE)")
    if flock:
        read_flock_key(flock)  # before there is a home: one without its key would start as a node open to everybody
    identity, is_new = initialise(home)
    key = join_flock(home, flock) if flock or new_flock else None
    result = {"peer": str(identity.peer_id), "home": str(home.root), "is_new": is_new}
    if key:
        result |= {"flock": key.fingerprint, "flock_key": str(home.flock_key), "needs_restart": _is_running(home)}
    if as_json:
        forms.show(result, as_json=True)
        return
    click.echo(f"{'made a new node' if is_new else 'this node is there already'}: {identity.peer_id}")
    if key:
        click.echo(f"it is in the private flock {key.fingerprint}. Others join it with a copy of {home.flock_key},")
        click.echo("which no stranger may see: covey init --flock FILE")
    if key and _is_running(home):
        click.echo("the daemon joins it when it starts next: covey down && covey up", err=True)
        return
    click.echo(f"its home is {home.root}. Start it: covey up")


def _is_running(home: Home) -> bool:
    return daemon_pid(home) is not None


@click.command
@click.option("--detach", is_flag=True, help="Run in the background; return when the node is ready.")
@click.option("--detached", is_flag=True, hidden=True)
@click.pass_obj
def up(home: Home, detach: bool, detached: bool, as_json: bool) -> int:
    """Start the daemon, in the foreground or with --detach behind."""
    from daemon.setup import initialise

    identity, is_new = initialise(home)
    if is_new and not as_json:
        click.echo(f"made a new node in {home.root}", err=True)
    if detach:
        _start_in_background(home)
        _tell_ready(home, client.call(home, "node/status"), as_json=as_json)
        return faults.EXIT_OK
    from daemon.app import run_daemon

    def on_ready(status: dict[str, Any]) -> None:
        if not detached:
            _tell_ready(home, status, as_json=as_json, where="Stop it with Ctrl-C.")

    return run_daemon(home, identity, is_foreground=not detached, on_ready=on_ready)


@click.command
@click.pass_obj
def down(home: Home, as_json: bool) -> int:
    """Stop the daemon; return when it has ended."""
    from daemon.lock import daemon_pid

    pid = daemon_pid(home)
    if pid is None:
        _say({"was_running": False, "home": str(home.root)}, f"no daemon runs in {home.root}", as_json=as_json)
        return faults.EXIT_OK
    try:
        client.call(home, "node/stop", timeout_s=STOP_PATIENCE_S)
    except (client.NotRunning, OSError):
        os.kill(pid, signal.SIGTERM)  # it holds the lock and does not answer
    for _ in range(int(STOP_PATIENCE_S / _LOOK_S)):
        if daemon_pid(home) is None:
            _say({"was_running": True, "pid": pid}, f"stopped the daemon (process {pid})", as_json=as_json)
            return faults.EXIT_OK
        time.sleep(_LOOK_S)
    raise DaemonError(f"process {pid} did not stop in {STOP_PATIENCE_S:.0f} s. End it: kill -9 {pid}")


def _start_in_background(home: Home) -> None:
    from daemon.lock import daemon_pid

    pid = daemon_pid(home)
    if pid is not None:
        raise AlreadyRunning(f"a daemon already runs in {home.root} (process {pid}). Stop it: covey down")
    complaints = home.logs / "start.err"
    with complaints.open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "daemon.cli.main", "--home", str(home.root), "up", "--detached"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            cwd="/",
        )
    for _ in range(int(START_LIMIT_S / _LOOK_S)):
        time.sleep(_LOOK_S)
        if child.poll() is not None:
            raise DaemonError(f"the daemon ended while it started: {_complaint(complaints)}")
        try:
            client.call(home, "node/status")
        except (client.NotRunning, client.Refused):
            continue
        return
    raise DaemonError(f"the daemon is not ready after {START_LIMIT_S:.0f} s. See why: covey logs")


def _complaint(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    if not lines:  # on a full disk it cannot even say so
        is_full = not os.statvfs(path).f_bavail
        lines = [f"the disk of {path} is full: free some space" if is_full else "it gave no reason; see covey logs"]
    return next((line.removeprefix("covey: ") for line in lines if line.startswith("covey: ")), lines[-1])


def _tell_ready(home: Home, status: dict[str, Any], *, as_json: bool, where: str = "Stop it with: covey down") -> None:
    addresses = "\n".join(f"  {address}" for address in status["addresses"])
    port = settings.load(home.config).network.port
    if port and not as_json and not any(f"/tcp/{port}/" in address for address in status["addresses"]):
        click.echo(f"port {port} is taken by another program: a free one is used instead", err=True)
    _say(status, f"covey is up as {status['peer']}\n{addresses}\n{where}", as_json=as_json)


def _say(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(result) if as_json else text)


for _command in (init, up, down):
    _command.params.append(json_option())
