"""How far a long operation is: a bar on a terminal, else a line for each new step. On stderr; stdout is for results."""

import sys
import typing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from daemon.cli.render import bytes_text, title, value_text
from daemon.cli.text import clean

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

Json = Any
_FIELDS: Final = frozenset({"type", "step", "n_done", "n_total", "unit", "name"})


class Display:
    """Shows progress from its first item on, until it is left or a result is to be printed (`clear`)."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clear()

    def draw(self, item: Json) -> None:
        """Show an item of progress."""
        step = clean(item["step"])
        is_new = step not in self._tasks
        if not sys.stderr.isatty():
            if is_new:
                self._tasks[step] = 0  # type: ignore[assignment]  # no bar, no task of it
                print(f"{step} ...", file=sys.stderr, flush=True)
            return
        bar = self._bar = self._bar or _new_bar()
        if is_new:
            self._tasks[step] = bar.add_task(step, total=item.get("n_total"), amount="")
        bar.update(self._tasks[step], completed=item["n_done"], total=item.get("n_total"), amount=_amount(item))

    def clear(self) -> None:
        """Take the bar away: something else is to be printed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._tasks.clear()


def is_progress(item: Json) -> bool:
    """Is this item of a stream progress (`daemon.api.operation.Progress` or a kind of it), not a result?"""
    return isinstance(item, dict) and "step" in item and "n_done" in item


def may_progress(result: Any) -> bool:
    """Can a stream of `result`s tell progress? Then it ends with something else."""
    from daemon.api.operation import Progress

    return any(isinstance(kind, type) and issubclass(kind, Progress) for kind in typing.get_args(result))


def _new_bar() -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn())
    # By default rich would take stdout over too, and what is piped from it would end on the terminal.
    bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False)
    bar.start()
    return bar


def _amount(item: Json) -> str:
    done, total, unit = item["n_done"], item.get("n_total"), item.get("unit", "")
    write = bytes_text if unit == "bytes" else "{:,}".format
    amount = write(done) + (f" of {write(total)}" if total is not None else "")
    more = [
        f"{title(key)} {value_text(key, value)}"
        for key, value in item.items()
        if key not in _FIELDS and value is not None
    ]
    return ", ".join([f"{amount}" if unit == "bytes" else f"{amount} {clean(unit)}", *more])
