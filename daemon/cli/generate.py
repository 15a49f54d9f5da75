"""From the table of operations to commands: parameters become arguments and options, by their types."""

import os
import shutil
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal

import click
import msgspec

from daemon.api.operation import Operation, operations
from daemon.cli import client, forms
from daemon.cli.beside import BESIDE, NOTES
from daemon.cli.options import json_option
from daemon.cli.progress import Display, is_progress, may_progress
from daemon.cli.text import clean
from daemon.cli.values import Declared, bare, item
from daemon.paths import Home

COPY_BYTES: Final = 1 << 20


CarryOut = Callable[..., None]  # (home, operation, params, *, as_json)


def command_of(operation: Operation, carry_out: CarryOut | None = None) -> click.Command:
    """The command that runs `operation` on the daemon. `carry_out` does it where its result is shown in another way."""
    fields = {field.name: field for field in msgspec.structs.fields(operation.params)}
    parameters: list[click.Parameter] = [_argument(fields[name]) for name in operation.arguments]
    parameters += [_option(field) for name, field in fields.items() if name not in operation.arguments]
    words = operation.words or (operation.verb,)

    @click.pass_obj
    def run(home: Home, /, as_json: bool, **values: Any) -> None:
        given = {name: _sent(fields[name], value) for name, value in values.items() if _is_given(fields[name], value)}
        given |= _defaults_from(fields, given)
        chosen = _on_stdout(operation, fields, given)
        with _stdin_as_file(home, fields, given) as params:
            (carry_out or _run)(home, chosen, params, as_json=as_json)

    return _Command(
        words[-1],
        callback=run,
        params=[*parameters, json_option()],
        help=operation.summary,
        short_help=operation.summary,
        arguments=[(name, _description(fields[name])) for name in operation.arguments],
    )


class _Command(click.Command):
    """A command whose help tells of its arguments too; click's own does not."""

    def __init__(self, *args: Any, arguments: list[tuple[str, str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._arguments = arguments

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The arguments, then the options."""
        if self._arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(name.upper(), text) for name, text in self._arguments])
        super().format_options(ctx, formatter)


def beginning(operation: Operation, params: dict[str, Any]) -> str:
    """What is said before the operation is carried out; what was not given has its default there."""
    fields = msgspec.structs.fields(operation.params)
    defaults = {field.name: field.default for field in fields if field.default is not msgspec.NODEFAULT}
    return operation.begins.format(**defaults | params)


def _run(home: Home, operation: Operation, params: dict[str, Any], *, as_json: bool) -> None:
    if not operation.is_stream:
        if operation.begins and not as_json:
            click.echo(clean(beginning(operation, params)), err=True)
        result = client.call(home, operation.name, params)
        forms.show(result, as_json=as_json, name=operation.name)
        if operation.name in BESIDE and not as_json:
            for line in BESIDE[operation.name](partial(client.call, home), params, result):
                click.echo(line)
        return
    if operation.result is bytes:
        if as_json and not operation.is_json_text:
            raise click.UsageError("the result is bytes, not JSON: leave --json away")
        for chunk in client.stream_bytes(home, operation.name, params):
            sys.stdout.buffer.write(chunk)
        if operation.is_json_text:
            sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
        return
    has_result = not may_progress(operation.result)
    last: dict[str, Any] = {}
    shown: Any = None
    try:
        with Display() as display:
            for item in client.stream(home, operation.name, params, wait=client.while_read if has_result else None):
                has_result = has_result or not is_progress(item)
                if is_progress(item):
                    last = item
                if not as_json and is_progress(item):
                    display.draw(item)
                else:
                    display.clear()
                    forms.show(item, as_json=as_json, name=operation.name, before=shown)
                    shown = item
                    if operation.name in NOTES and not as_json:
                        for line in NOTES[operation.name](params, item):
                            click.echo(line, err=True)
    except client.Unread:
        raise BrokenPipeError from None
    except KeyboardInterrupt:
        if operation.interrupted and last:
            click.echo(clean(operation.interrupted.format(**last)), err=True)
        raise
    if params.get("is_follow") or not has_result:
        raise client.Refused(client.STOPPED)
    if shown is not None and not as_json:
        forms.conclude(shown, operation.name)


def _defaults_from(fields: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Paths that, when not given, are named in the working folder after another parameter."""
    named = {}
    for name, field in fields.items():
        meta = bare(field.type)[1]
        extra = (meta.extra if meta else None) or {}
        source = extra.get("default_from")
        if source in given and name not in given:
            named[name] = os.path.abspath(os.path.basename(given[source].rstrip("/")) + extra.get("suffix", ""))
    return named


def _on_stdout(operation: Operation, fields: dict[str, Any], params: dict[str, Any]) -> Operation:
    """Where a path to write to is `-`: the operation that streams the bytes instead, and has no such parameter."""
    for name in [name for name, value in params.items() if value == "-"]:
        instead = _extra(fields[name]).get("stdout")
        if instead:
            del params[name]
            return operations()[instead]
    return operation


@contextmanager
def _stdin_as_file(home: Home, fields: dict[str, Any], params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Where a path is `-`, what comes in on stdin, as a file of the moment in the home."""
    dashes = [name for name, value in params.items() if value == "-" and _extra(fields[name]).get("stdin")]
    if not dashes:
        yield params
        return
    with tempfile.TemporaryDirectory(dir=home.scratch if home.scratch.is_dir() else None) as folder:
        with open(os.path.join(folder, "stdin"), "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, COPY_BYTES)
        yield {**params, **dict.fromkeys(dashes, file.name)}


def _argument(field: msgspec.structs.FieldInfo) -> click.Argument:
    kind, _ = bare(field.type)
    nargs = -1 if typing.get_origin(kind) is tuple else 1
    return click.Argument([field.name], nargs=nargs, required=field.required, type=_type(field, is_item=nargs == -1))


def _description(field: msgspec.structs.FieldInfo) -> str:
    meta = bare(field.type)[1]
    return (meta.description if meta else None) or ""


def _option(field: msgspec.structs.FieldInfo) -> click.Option:
    kind, _ = bare(field.type)
    text = _description(field)
    name = f"--{field.name.rstrip('_').replace('_', '-')}"  # a word of Python's has an underscore behind it
    default = None if field.default is msgspec.NODEFAULT else field.default
    if kind is bool:
        flag = name.removeprefix("--is-").removeprefix("--has-").removeprefix("--")
        return click.Option([f"--{flag}/--no-{flag}", field.name], default=None, help=text, show_default=False)
    told = ",".join(map(str, default)) if isinstance(default, tuple) else default
    shown = f"  [default: {told}]" if default not in (None, "", ()) else ""
    help_text = text + (f" [{', '.join(typing.get_args(item(kind)))}; commas between]" if _is_choice_list(kind) else "")
    return click.Option(
        [name, field.name],
        required=field.required and not _extra(field).get("default_from"),
        help=(help_text + shown).strip(),
        type=_type(field),
    )


def _is_choice_list(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple and typing.get_origin(item(kind)) is Literal


def _type(field: msgspec.structs.FieldInfo, *, is_item: bool = False) -> click.ParamType[Any]:
    kind, _ = bare(field.type)
    if typing.get_origin(kind) is Literal:
        return click.Choice([choice for choice in typing.get_args(kind) if choice != ""])
    if _extra(field).get("path"):
        return click.Path()
    return Declared(typing.get_args(kind)[0] if is_item else field.type, _description(field))


def _extra(field: msgspec.structs.FieldInfo) -> dict[str, Any]:
    meta = bare(field.type)[1]
    return (meta.extra if meta else None) or {}


def _is_given(field: msgspec.structs.FieldInfo, value: Any) -> bool:
    return value is not None and not (value == () and not field.required)


def _sent(field: msgspec.structs.FieldInfo, value: Any) -> Any:
    kind, _ = bare(field.type)
    if typing.get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        return [_path(part.strip(), field) for part in parts if part.strip()]
    return _path(value, field)


def _path(value: Any, field: msgspec.structs.FieldInfo) -> Any:
    extra = _extra(field)
    if not (extra.get("path") or extra.get("path_if_there")):
        return value
    if value == "" or (value == "-" and not (extra.get("stdin") or extra.get("stdout"))):
        say = "a path cannot be empty" if value == "" else "- is not possible here; `covey cat` prints on stdout"
        raise click.BadParameter(say, param_hint=field.name)
    if value == "-":
        return value
    whole = os.path.abspath(os.path.expanduser(value))
    if os.path.exists(whole) and not (os.path.isfile(whole) or os.path.isdir(whole)):
        # The daemon would wait at a pipe, or read a device, for ever.
        instead = next((f"give - for {way}" for way in ("stdin", "stdout") if extra.get(way)), "name a file")
        raise click.BadParameter(f"{clean(value)} is neither a file nor a folder: {instead}", param_hint=field.name)
    return whole if extra.get("path") or os.path.exists(whole) else value
