"""CONTROL.md from the table of operations: `python -m daemon.api.document` writes it, a test checks it."""

import typing
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from daemon.api.faults import EXITS, STATUSES
from daemon.api.kinds import EVENT_KINDS
from daemon.api.operation import Operation, operations

TARGET: Final = Path(__file__).parents[1] / "CONTROL.md"

HEAD: Final = """# The control API

<!-- Made by `python -m daemon.api.document` from the table of operations. Do not edit it by hand. -->

The daemon listens on the Unix socket `$COVEY_HOME/control.sock` (0600, in a 0700 folder: whoever may open it is the
user). Where that path is too long for a socket, it lies in `$XDG_RUNTIME_DIR/covey/` or `/tmp/covey-UID/` under a hash
of the home. The command line is a client like any other; every operation is one request:

    curl --unix-socket $COVEY_HOME/control.sock -d '{}' http://covey/v1/node/status

- `POST /v1/<noun>/<verb>` with the parameters as one JSON object (no body means `{}`); unknown parameters are refused.
- A result is JSON. A **stream** is NDJSON, a line for each item; with `Accept: text/event-stream` it is server-sent
  events. Items of a long operation that have `step` and `n_done` tell how far it is; the last item is the result.
  A stream of bytes is `application/octet-stream`; one that breaks off closes the connection without its end.
- An error is `{"error": {"code", "text", "hint"}}` with a status; in a stream that has begun it is the last item.
  `code` is stable, `text` says what happened, `hint` what to do next.
- Paths are those of this machine, absolute. Going away cancels the operation.
- A request is at most 8 MiB.
"""


def document() -> str:
    """The whole of CONTROL.md."""
    parts = [HEAD, _codes(), _exits(), _events(), "## Operations\n"]
    parts += [_operation(operation) for operation in operations().values()]
    return "\n".join(parts).rstrip() + "\n"


def _events() -> str:
    lines = ["## Events", ""]
    lines += [
        "`events/read` streams them. What strangers cause is told once an hour for each peer, kind and `code`; what",
        "peers cause is told 60 times a minute at most.",
        "",
    ]
    lines += ["| kind | what happened |", "| --- | --- |"]
    lines += [f"| `{kind}` | {text} |" for kind, text in EVENT_KINDS.items()]
    return "\n".join(lines) + "\n"


def _operation(operation: Operation) -> str:
    command = f"`covey {' '.join(operation.words)}`" if operation.words else "no command of its own"
    lines = [f"### POST /v1/{operation.name}", "", f"{operation.summary} Command line: {command}.", ""]
    fields = msgspec.structs.fields(operation.params)
    if fields:
        lines += ["| parameter | type | default | |", "| --- | --- | --- | --- |"]
        lines += [_row(field) for field in fields]
    else:
        lines.append("No parameters.")
    kind = "Streams" if operation.is_stream else "Returns"
    results = _structs(operation.result)
    name = "bytes" if operation.result is bytes else type_text(operation.result)
    lines += ["", f"{kind} {name}.", ""]
    for struct in results:
        lines += [f"- **{struct.__name__}**{_tag(struct)}: {_summary(struct)}{_field_list(struct)}"]
    return "\n".join(lines).rstrip() + "\n"


def _row(field: msgspec.structs.FieldInfo) -> str:
    default = "**required**" if field.required else f"`{msgspec.json.encode(field.default).decode()}`"
    return f"| `{field.name}` | {type_text(field.type).replace('|', 'or')} | {default} | {_description(field.type)} |"


def _field_list(struct: type[msgspec.Struct]) -> str:
    fields = ", ".join(f"`{field.name}` {type_text(field.type)}" for field in msgspec.structs.fields(struct))
    return f" {fields}." if fields else ""


def _summary(struct: type[msgspec.Struct]) -> str:
    return " ".join((struct.__doc__ or "").split())


def _tag(struct: type[msgspec.Struct]) -> str:
    config = struct.__struct_config__
    return f" (`{config.tag_field}` is `{config.tag}`)" if config.tag is not None else ""


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    """The structs in a type, each once, in order."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    found: dict[type[msgspec.Struct], None] = {}
    for part in typing.get_args(kind):
        found |= dict.fromkeys(_structs(part))
    return list(found)


def type_text(kind: Any) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return type_text(parts[0])
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (tuple, list, set, frozenset):
        return f"list of {type_text(parts[0])}"
    if origin is dict:
        return "object"
    if parts:
        return " or ".join(type_text(part) for part in parts if part is not type(None)) + (
            " or null" if type(None) in parts else ""
        )
    names = {str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "JSON"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _description(kind: Any) -> str:
    texts = []
    for part in typing.get_args(kind):
        if isinstance(part, msgspec.Meta):
            texts.append(part.description or "")
        elif typing.get_origin(part) is typing.Annotated:
            texts.append(_description(part))
    return " ".join(filter(None, texts))


def _codes() -> str:
    by_status: dict[int, list[str]] = {}
    for code, status in STATUSES.items():
        by_status.setdefault(status, []).append(f"`{code}`")
    rows = [f"| {status} | {', '.join(sorted(codes))} |" for status, codes in sorted(by_status.items())]
    return "\n".join(["## Errors\n", "| status | codes |", "| --- | --- |", *rows, "| 500 | any other |", ""])


def _exits() -> str:
    rows = [f"| {code} | {text} |" for code, text in EXITS.items()]
    return "\n".join(["## Exit codes of the command line\n", "| code | meaning |", "| --- | --- |", *rows, ""])


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
