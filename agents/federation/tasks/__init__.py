"""What participants train, one file a task: by its settings in the plan, and on data that never leave them.

A task is a `Task` with a tag of its own in a file of this folder, or one that another distribution names as an entry
point in the group `covey.tasks`. A plan holds its settings, such as {"task": "softmax", "n_features": 64, ...}.
"""

import pkgutil
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple

import msgspec

from agents.errors import AgentError

GROUP: Final = "covey.tasks"


class BadTask(AgentError):
    """The task cannot be done as it is asked for. A plan holds its settings; `covey fl join --data` names the data."""

    code = "bad_task"


class Training(NamedTuple):
    """What a task wants of the engine: go on training the adapter in the file `initial`, into the folder `out`."""

    base: str
    data: Path
    kind: Literal["auto", "text", "chat"]
    initial: Path
    out: Path
    rank: int
    alpha: float
    targets: tuple[str, ...]
    n_steps: int
    batch: int
    context_tokens: int
    learning_rate: float
    seed: int


Engine = Callable[[Training], Awaitable[tuple[int, float]]]
"""Runs a training; gives the number of tokens and the loss. Raises: AgentError."""


class Work(NamedTuple):
    """One round of one participant. The update, new minus base, goes to `out`, which is not there yet.

    `seed` is the round's own and this participant's: who trains again from it makes the same update. `engine` runs a
    training in the engine's process, for tasks that need one; None where there is no engine.
    """

    base: Path
    data: Path | None
    seed: bytes
    out: Path
    engine: Engine | None = None


class Made(NamedTuple):
    """What came of it: how many samples and steps, and the loss on the own data afterwards."""

    n_samples: int
    n_steps: int
    loss: float | None


class Task(msgspec.Struct, frozen=True, tag_field="task", forbid_unknown_fields=True, kw_only=True):
    """Base of all tasks: settings, as they stand in a plan, and what is done with them."""

    needs_data: ClassVar[bool] = True

    def initial(self, out: Path) -> None:
        """Write the tensors of the first round. Raises: BadTask where they have to be given."""
        raise BadTask("this task cannot make its first tensors: give a file of them with --initial")

    def check(self, data: Path) -> None:
        """Raises: BadTask, OSError for data that cannot be trained on."""

    async def train(self, work: Work) -> Made:
        """Train. Raises: BadTask, OSError, EngineFailed."""
        raise NotImplementedError


@cache
def tasks() -> dict[str, type[Task]]:
    """Every task, by the name that a plan calls it."""
    found: dict[str, type[Task]] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        for item in vars(import_module(f"{__name__}.{module}")).values():
            if isinstance(item, type) and issubclass(item, Task) and item is not Task:
                _add(found, item)
    for point in entry_points(group=GROUP):
        _add(found, point.load())
    return found


def _add(found: dict[str, type[Task]], item: type[Task]) -> None:
    tag = str(item.__struct_config__.tag)
    if found.setdefault(tag, item) is not item:
        raise ValueError(f"two tasks are called {tag}: {found[tag].__module__} and {item.__module__}")


def task_of(settings: Mapping[str, Any]) -> Task:
    """The task of a plan. Raises: BadTask."""
    name, known = settings.get("task"), tasks()
    if not isinstance(name, str) or name not in known:
        raise BadTask(f"there is no task {str(name)[:40]!r} here; there are: {', '.join(sorted(known))}")
    try:
        return msgspec.convert(dict(settings), known[name])
    except msgspec.ValidationError as error:
        raise BadTask(f"the settings of {name} are not valid: {error}") from None
