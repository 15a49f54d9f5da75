"""`covey status`, `id` and `logs`: what the node is and what it does."""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, TextIO

import click

from daemon.cli import client, forms
from daemon.cli.options import json_option
from daemon.cli.text import clean, json_text
from daemon.errors import BadHome, DaemonError
from daemon.paths import Home

STATUS_LIMIT_S: Final = 10.0
_LOOK_S: Final = 0.2


@click.command
@click.pass_obj
def status(home: Home, as_json: bool) -> None:
    """Show how the node is: address, peers, content, services."""
    forms.show(client.call(home, "node/status", timeout_s=STATUS_LIMIT_S), as_json=as_json, name="node/status")


@click.command("id")
@click.pass_obj
def identity(home: Home, as_json: bool) -> None:
    """Show the node's peer id, and its addresses while it runs."""
    is_running = True
    try:
        answer = client.call(home, "node/status", timeout_s=STATUS_LIMIT_S)
        result = {"peer": answer["peer"], "addresses": answer["addresses"]}
    except client.NotRunning:
        result, is_running = {"peer": _peer_on_disk(home), "addresses": []}, False
    if as_json:
        forms.show(result, as_json=True)
        return
    for line in [result["peer"], *result["addresses"]]:
        click.echo(line)
    if not is_running:
        click.echo("the node does not run; its addresses are known while it does: covey up", err=True)


@click.command
@click.option("--follow", "-f", is_flag=True, help="Go on as lines are written.")
@click.option("--lines", "-n", "n_lines", default=100, show_default=True, help="How many of the last lines.")
@click.pass_obj
def logs(home: Home, follow: bool, n_lines: int, as_json: bool) -> None:
    """Show the daemon's log."""
    try:
        file = home.log.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise DaemonError(f"there is no log in {home.logs} yet. Start the daemon: covey up") from None
    with file:
        for line in deque(file, maxlen=max(n_lines, 0)):
            click.echo(log_line(line, as_json=as_json))
        if follow:
            for line in _grown(home, file):
                click.echo(log_line(line, as_json=as_json))


def log_line(line: str, *, as_json: bool) -> str:
    """A JSON line of the log for people, or as it is."""
    if as_json and not sys.stdout.isatty():
        return line.rstrip("\n")
    try:
        if as_json:
            return json_text(json.loads(line), sys.stdout)
        event = json.loads(line)
        head = f"{event.pop('time')[:19].replace('T', ' ')} {event.pop('level'):<7} {event.pop('event')}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return clean(line)
    trace = event.pop("exception", None)
    pairs = "".join(f" {key}={value}" for key, value in event.items())
    return clean(head + pairs) + (f"\n{clean(trace, keep_lines=True)}" if trace else "")


def _grown(home: Home, file: TextIO) -> Iterator[str]:
    """Lines as they are written; goes over to the new file when the log rotates."""
    while True:
        line = file.readline()
        if line:
            yield line
            continue
        time.sleep(_LOOK_S)
        with suppress(FileNotFoundError):  # in the middle of a rotation
            if os.fstat(file.fileno()).st_ino != home.log.stat().st_ino:
                file.close()
                file = home.log.open(encoding="utf-8", errors="replace")


def _peer_on_disk(home: Home) -> str:
    from storage.keys import Identity

    try:
        return str(Identity.load(home.key).peer_id)
    except FileNotFoundError:
        raise BadHome(f"there is no node in {home.root}. Make one: covey init") from None


for _command in (status, identity, logs):
    _command.params.append(json_option())
