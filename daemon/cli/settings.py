"""`covey config`: show, read and change the settings."""

import json

import click

from daemon import config as settings
from daemon.cli.options import json_option
from daemon.lock import daemon_pid
from daemon.paths import Home, make_home


@click.group()
def config() -> None:
    """Show and change the settings (config.toml)."""


@config.command()
@click.pass_obj
def show(home: Home, as_json: bool) -> None:
    """Print every setting in force, as TOML."""
    effective = settings.load(home.config)
    click.echo(settings.as_json(effective) if as_json else settings.show(effective), nl=as_json)


@config.command("get")
@click.argument("key")
@click.pass_obj
def get_(home: Home, key: str, as_json: bool) -> None:
    """Print one setting, e.g. covey config get network.port."""
    value = settings.get(settings.load(home.config), key)
    click.echo(json.dumps(value) if as_json or not isinstance(value, str) else value)


@config.command("set", context_settings={"ignore_unknown_options": True})  # -1 is a value, and none that fits
@click.argument("key")
@click.argument("value")
@click.pass_obj
def set_(home: Home, key: str, value: str, as_json: bool) -> None:
    """Change one setting, durably; comments in the file stay."""
    make_home(home)
    effective = settings.get(settings.edit(home.config, key, value), key)
    is_running = daemon_pid(home) is not None
    if as_json:
        click.echo(json.dumps({"key": key, "value": effective, "needs_restart": is_running}))
        return
    click.echo(f"{key} = {json.dumps(effective)}")
    if is_running:
        click.echo("the daemon reads it when it starts next: covey down && covey up", err=True)


for _command in (show, get_, set_):
    _command.params.append(json_option())
