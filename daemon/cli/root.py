"""The tree of commands, each imported when called for, and the one place where errors become lines and exit codes."""

import importlib
import os
import sys
from typing import Any, Final

import click

from daemon import __version__
from daemon.api import faults
from daemon.api.faults import Fault
from daemon.cli.text import clean, json_text
from daemon.errors import DaemonError
from daemon.paths import HOME_VARIABLE, home_from

# Commands made by hand: where they live. All others come from the table of operations.
BY_HAND: Final = {
    "init": "daemon.cli.process:init",
    "up": "daemon.cli.process:up",
    "down": "daemon.cli.process:down",
    "status": "daemon.cli.inspect:status",
    "id": "daemon.cli.inspect:identity",
    "logs": "daemon.cli.inspect:logs",
    "config": "daemon.cli.settings:config",
    "doctor": "daemon.cli.doctor:doctor",
    "chat": "daemon.cli.chat:chat",
    "ask": "daemon.cli.ask:ask",
    "demo": "daemon.demo.command:demo",
    "mcp": "daemon.cli.mcp:mcp",
}
# What each noun is about: its line in the help of `covey`. A noun that is not here is told by its commands alone.
NOUNS: Final = {
    "adapter": "LoRA adapters: publish, find and keep them.",
    "agent": "Agents that work in workspaces: host them, see their cards.",
    "artifact": "Models, datasets and checkpoints, with where they come from.",
    "block": "Single blocks: the bytes behind one CID.",
    "car": "CAR files: many blocks in one file, out and in.",
    "cid": "CIDs: what they say, and their other forms.",
    "dag": "Values and the links between them, whatever their codec.",
    "engine": "The process that holds the model.",
    "fl": "Federated experiments: train together, prove every round.",
    "kubo": "The Kubo node beside this one.",
    "model": "Base models on this machine.",
    "name": "Names (IPNS records) that are kept here.",
    "openai": "Models and adapters for programs that speak OpenAI's API.",
    "peer": "Peers: add, trust and forget them.",
    "pin": "Pins: what this node keeps.",
    "record": "Signed records of answers.",
    "repo": "The store: what it holds, is it sound, room on the disk.",
    "net": "The network: its state, speeds, where content came from.",
    "run": "Durable runs: plans that members of a workspace perform.",
    "sealed": "Content that only named peers can open.",
    "training": "Trainings: finished, under way, or to be gone on with.",
    "ws": "Workspaces: signed histories in which members work together.",
}
_ORDER: Final = ("init", "up", "down", "status", "id", "doctor", "config", "logs", "events", "demo", "chat", "ask")


class Commands(click.Group):
    """A group that knows its commands by name and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command: the node's own first, then the nouns."""
        every = set(BY_HAND) | {words[0] for words in _generated()}
        return [*(name for name in _ORDER if name in every), *sorted(every - set(_ORDER))]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in faults.EXITS.items()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command by that name, imported or generated now."""
        if cmd_name in BY_HAND:
            module, _, attribute = BY_HAND[cmd_name].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        words = {words: operation for words, operation in _generated().items() if words[0] == cmd_name}
        if not words:
            return None
        return _noun(cmd_name, words)


class _Noun(click.Group):
    """The commands of one noun. `list` is understood as `ls`, and shown nowhere: there is one name for a thing."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command by that name."""
        return super().get_command(ctx, "ls" if cmd_name == "list" else cmd_name)


def _generated() -> dict[tuple[str, ...], Any]:
    from daemon.api.operation import operations

    return {operation.words: operation for operation in operations().values() if operation.words}


def _noun(name: str, words: dict[tuple[str, ...], Any]) -> click.Command:
    from daemon.cli.generate import command_of

    if (name,) in words:
        return command_of(words[name,])
    verbs = ", ".join(sorted(key[1] for key in words))
    about = NOUNS.get(name, "")
    whole = f"{about} Commands: {verbs}." if about else f"Commands: {verbs}."
    short = about or (whole if len(whole) <= _MAX_SHORT_CHARS else f"{len(words)} commands: covey {name} -h")
    group = _Noun(name, help=whole, short_help=short, context_settings=_SETTINGS)
    for operation in words.values():
        group.add_command(command_of(operation))
    return group


_MAX_SHORT_CHARS: Final = 60  # what fits beside the names of commands
_SETTINGS: Final = {"help_option_names": ["-h", "--help"]}


@click.group(cls=Commands, context_settings=_SETTINGS)
@click.version_option(__version__, message="covey %(version)s")
@click.option("--home", metavar="DIR", help=f"The node's home folder (or set {HOME_VARIABLE}).")
@click.pass_context
def covey(ctx: click.Context, home: str | None) -> None:
    """Covey: share LoRA adapters, models and content with peers you trust, with no server in the middle.

    First time: covey demo. Your own node: covey up, then covey status.
    """
    ctx.obj = home_from({**os.environ, **({HOME_VARIABLE: home} if home else {})})


def run(arguments: list[str]) -> int:
    """Run a command line; return its exit code. Every error ends here as one line on stderr, or JSON with --json."""
    as_json = "--json" in arguments
    try:
        _refuse_unreadable(arguments)
        code = covey.main(arguments, prog_name="covey", standalone_mode=False)
        return code if isinstance(code, int) else faults.EXIT_OK
    except click.ClickException as error:
        if as_json:
            _complain(Fault("usage", error.format_message()), as_json=True)
        else:
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return faults.EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough (`covey events | head`). Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return faults.EXIT_OK
    except Exception as error:  # noqa: BLE001 - the end of the command line; a trace helps nobody there
        fault, code = _explain(error)
        _complain(fault, as_json=as_json)
        return code


def _refuse_unreadable(arguments: list[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            name = os.fsencode(argument).decode("utf-8", "backslashreplace")
            raise click.UsageError(f"{name} is not UTF-8; rename the file, or give the folder that it is in") from None


def _explain(error: Exception) -> tuple[Fault, int]:
    from daemon.cli.client import NotRunning, Refused

    if isinstance(error, NotRunning):
        return Fault("not_running", str(error)), faults.EXIT_NOT_RUNNING
    if isinstance(error, Refused):
        return error.fault, error.fault.exit_code
    fault = faults.fault_of(error)
    if fault.code == "internal":
        if os.environ.get("COVEY_TRACE"):
            raise error
        return Fault("internal", f"a bug in Covey: {error!r}", "See the trace with COVEY_TRACE=1."), faults.EXIT_FAILED
    return fault, faults.EXIT_FAILED if isinstance(error, DaemonError) else fault.exit_code


def _complain(fault: Fault, *, as_json: bool) -> None:
    if as_json:
        error = {"code": fault.code, "text": fault.text, "hint": fault.hint}
        print(json_text({"error": error}, sys.stderr), file=sys.stderr)
        return
    hint = f"\n  {clean(fault.hint)}" if fault.hint else ""
    print(f"covey: {clean(fault.text)}{hint}", file=sys.stderr)
