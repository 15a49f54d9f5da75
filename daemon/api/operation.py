"""What an operation is, and the table of all of them.

An operation is data: its name, the struct of its parameters, what it gives back, and the function that does it. The
HTTP face, the command line and CONTROL.md are all made from the table. A new one is a new entry in a file of
daemon/api/operations/ (one file a noun); importing such a file must stay cheap, for the command line does it too:
heavy imports belong inside the handlers.
"""

import importlib
import pkgutil
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import cache, partial, wraps
from types import MappingProxyType, ModuleType
from typing import Any, Final, TypeVar

import msgspec

_NAME: Final = re.compile(r"[a-z][a-z_]{0,31}")


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parameters: unknown ones are refused."""


class Nothing(Params, frozen=True):
    """No parameters."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all results."""


class Done(Result, frozen=True):
    """It is done; `text` says what."""

    text: str


class Progress(Result, frozen=True, tag_field="type", tag="progress"):
    """How far a long operation is; its stream ends with the result. `unit` is `bytes`, `steps`, `files` ..."""

    step: str
    n_done: int
    n_total: int | None = None
    unit: str = "bytes"


P = TypeVar("P", bound=Params)
R = TypeVar("R", bound=Result)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a node can be asked to do.

    `handler` is `async (node, params) -> result`; with `is_stream` it is an async generator of `result`s instead, and
    where `result` is `bytes` the stream is the content itself, with `is_json_text` a JSON text. `arguments` names the
    parameters that the command line takes by position; `command` is how it is called there (by default noun and verb).
    A parameter whose `Meta(extra={"path": True})` says so is a path on this machine: the command line makes it absolute
    and takes `-` for stdin; with `"path_if_there"` only what exists is taken for a path, and `"default_from"` names the
    parameter whose last part, with a `"suffix"`, the command line takes where the path is not given; `"stdout"` names
    the operation that streams the bytes where that path is `-`. `begins` is what the command line says first where the
    result takes long and tells no progress; its parameters stand in braces. `interrupted` is what it says when its user
    interrupts it; what the last item of progress told stands in braces.
    """

    noun: str
    verb: str
    summary: str
    params: type[Params]
    result: Any
    handler: Callable[..., Any]
    is_stream: bool = False
    is_json_text: bool = False
    arguments: tuple[str, ...] = ()
    command: tuple[str, ...] | None = ()
    begins: str = ""
    interrupted: str = ""

    def __post_init__(self) -> None:
        """Raises: ValueError for a name that does not fit a path, an argument that is no parameter, a summary unset."""
        if not _NAME.fullmatch(self.noun) or not _NAME.fullmatch(self.verb):
            raise ValueError(f"{self.noun}/{self.verb}: names are small letters and underscores")
        unknown = set(self.arguments) - {field.name for field in msgspec.structs.fields(self.params)}
        if unknown:
            raise ValueError(f"{self.name}: {sorted(unknown)} are no parameters of it")
        if not self.summary:
            raise ValueError(f"{self.name}: say in `summary` what it is for")

    @property
    def name(self) -> str:
        """`noun/verb`: its place in the table and in the URL."""
        return f"{self.noun}/{self.verb}"

    @property
    def words(self) -> tuple[str, ...] | None:
        """How the command line calls it; None where it has a command made by hand, or none."""
        return (self.noun, self.verb) if self.command == () else self.command


def reporting(
    work: Callable[[Any, P, Callable[[Progress], None]], Awaitable[R]],
) -> Callable[[Any, P], AsyncIterator[Progress | R]]:
    """The handler of a long operation, out of `async (node, params, report) -> result`: a stream of the newest reports
    now and then, and at last the result.
    """

    @wraps(work)
    async def handler(node: Any, params: P) -> AsyncIterator[Progress | R]:
        from daemon.api.progress import telling

        async with aclosing(telling(partial(work, node, params))) as items:
            async for item in items:
                yield item

    return handler


def table_of(modules: Iterable[ModuleType]) -> Mapping[str, Operation]:
    """Every operation of the modules' `OPERATIONS` by name. Raises: ValueError for two of one name or command."""
    table: dict[str, Operation] = {}
    commands: dict[tuple[str, ...], str] = {}
    for module in modules:
        for operation in module.OPERATIONS:
            if operation.name in table:
                raise ValueError(f"two operations are called {operation.name} (the second in {module.__name__})")
            table[operation.name] = operation
            words = operation.words
            if words and commands.setdefault(words, operation.name) != operation.name:
                raise ValueError(f"{operation.name} and {commands[words]} both want the command {' '.join(words)}")
    return MappingProxyType(dict(sorted(table.items())))


@cache
def operations() -> Mapping[str, Operation]:
    """The table: every file in daemon/api/operations/."""
    from daemon.api import operations as package

    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return table_of(importlib.import_module(f"{package.__name__}.{name}") for name in names)
