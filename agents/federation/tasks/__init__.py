"""What participants train, one file a task: by its settings in the plan, and on data that never leave them.

A task is a `Task` with a tag of its own in a file of this folder, or one that another distribution names as an entry
point in the group `covey.tasks`. A plan holds its settings, such as {"task": "softmax", "n_features": 64, ...}.
"""

import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, Protocol, Self, get_args, get_origin

import msgspec
import trio

from agents.adapters.inspect import Fact
from agents.errors import AgentError
from agents.training.settings import ExampleNoise, FitSettings

if TYPE_CHECKING:
    from agents.federation.updates.tensors import Layout  # numpy comes with it

GROUP: Final = "covey.tasks"


class BadTask(AgentError):
    """The task cannot be done as it is asked for. A plan holds its settings; `covey fl join --data` names the data."""

    code = "bad_task"


class Base(NamedTuple):
    """A base model that is here. `fingerprint` is the one that every copy of it has."""

    fingerprint: str
    name: str
    folder: Path


FindBase = Callable[[str], Base]
"""Finds the base model of that name or fingerprint. Raises: BadTask where it is not here."""


def no_base(text: str) -> Base:
    """There is no base model at all."""
    raise BadTask(f"there is no base model {text} here")


class Training(NamedTuple):
    """What a task wants of the engine: go on training the adapter in the file `initial`, into the folder `out`.

    What is held out of the data is the same in every round, whatever the seed. With `is_half`, `initial` holds the B of
    each layer alone: A follows from the base, and is not learned. `frozen` is the half that is not learned, "a" or "b";
    `merged` a file of what is added to layers' weights first, `correction` one of what is added to every gradient. With
    sgd the rate is the same in every step. `noise` hides each example; what is held out, and which
    examples a step takes, follows from no seed then.
    """

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
    held_out: float
    seed: int
    is_half: bool = False
    frozen: Literal["", "a", "b"] = ""
    merged: Path | None = None
    noise: ExampleNoise | None = None
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = 0.0
    proximal_mu: float = 0.0
    correction: Path | None = None


class Fitting(NamedTuple):
    """What a task wants of the engine: train the module of a factory. See `agents.engine.messages.Fit`."""

    factory: str
    settings: FitSettings
    initial: Path | None = None
    data: Path | None = None
    out: Path | None = None
    correction: Path | None = None


class Fitted(NamedTuple):
    """How many rows were learned from and held out, and how it does on those, or on all where none are."""

    n_learned: int
    n_held_out: int
    loss: float
    accuracy: float | None


class Trained(NamedTuple):
    """How many examples were learned from, and the loss on what was held out."""

    n_samples: int
    loss: float


class Score(NamedTuple):
    """How tensors do on what was held out: of so many samples. What is None was not to be told."""

    n_samples: int
    loss: float | None
    accuracy: float | None


class Engine(Protocol):
    """Runs what tasks want in the engine's process."""

    async def train(self, wish: Training) -> Trained:
        """Train. Raises: AgentError."""
        ...

    async def measure(self, wish: Training) -> Score:
        """How the adapter `initial` does on what that training would hold out. Raises: AgentError."""
        ...

    async def fit(self, wish: Fitting) -> Fitted:
        """Train a module, see how it does, or write what it begins with. Raises: AgentError."""
        ...


class Work(NamedTuple):
    """One round of one participant. The update, new minus base, goes to `out`, which is not there yet.

    `seed` is the round's own and this participant's: who trains again from it makes the same update. `engine` runs a
    training in the engine's process, for tasks that need one; None where there is no engine. `rank` is what this
    participant chose to train, where the task lets it; 0 for the plan's. `noise` is asked of tasks that hide examples
    alone: by chance, so that no two trainings make the same update. `correction`, of tasks that correct drift alone, is
    a file of the base's layout that is added to every gradient.
    """

    base: Path
    data: Path | None
    seed: bytes
    out: Path
    engine: Engine | None = None
    number: int = 1
    rank: int = 0
    noise: ExampleNoise | None = None
    correction: Path | None = None


class Made(NamedTuple):
    """What came of it: how many samples and steps, and the loss on the own data afterwards."""

    n_samples: int
    n_steps: int
    loss: float | None


class Exam(NamedTuple):
    """A result to look at: `tensors`, on what of `data` was held out of the training."""

    tensors: Path
    data: Path
    engine: Engine | None = None


class Task(msgspec.Struct, frozen=True, tag_field="task", forbid_unknown_fields=True, kw_only=True):
    """Base of all tasks: settings, as they stand in a plan, and what is done with them."""

    hides_examples: ClassVar[bool] = False  # can it train with noise?
    has_examples_as_samples: ClassVar[bool] = False  # is an example one of `n_samples`?
    corrects_drift: ClassVar[bool] = False  # can it train with a correction?
    starts_engine: ClassVar[bool] = False  # does the engine make its first tensors, which takes seconds?

    @property
    def wanted_base(self) -> str | None:
        """The base model that who trains must have, by its fingerprint."""
        return None

    @property
    def is_plain_sgd(self) -> bool:
        """Are steps plain SGD on the own loss, as rules that reckon with single steps assume?"""
        return True

    def completed(self, find: FindBase) -> Self:
        """The settings as a plan holds them: what has a name of its own here, by what all know it. Raises: BadTask."""
        return self

    def initial(self, out: Path, find: FindBase = no_base) -> None:
        """Write the tensors of the first round. Raises: BadTask where they have to be given."""
        raise BadTask("this task cannot make its first tensors: give a file of them with --initial")

    async def first(self, out: Path, find: FindBase, engine: Engine | None) -> None:
        """The same, for tasks that need the engine for that. Raises: BadTask, EngineFailed and its like."""
        await trio.to_thread.run_sync(self.initial, out, find)

    def misfit(self, layout: "Layout") -> str:
        """Why tensors of this layout are none of the task's, or nothing."""
        return ""

    def check(self, data: Path) -> None:
        """Raises: BadTask, OSError for data that cannot be trained on."""

    def n_samples(self, data: Path) -> int:
        """How many samples there are to learn from; 0 where that is not known before. Raises: BadTask, OSError."""
        return 0

    def steps(self, n_examples: int) -> tuple[int, int]:
        """How many examples a step takes on average, and how many steps a round has, for who learns from so many.

        For a task that hides examples: what its noise costs follows from it, for all who know the plan.
        """
        raise NotImplementedError

    def check_rank(self, rank: int) -> None:
        """Raises: BadTask where a participant cannot train so few, or any number of its own."""
        raise BadTask("this task has no rank for participants to choose: leave out --rank")

    async def train(self, work: Work) -> Made:
        """Train. Raises: BadTask, OSError, EngineFailed."""
        raise NotImplementedError

    async def evaluate(self, exam: Exam) -> Score | None:
        """How tensors do; None where the task, or the data, has nothing to tell that by. Raises: as `train`."""
        return None

    def write_adapter(self, tensors: Path, folder: Path, facts: Mapping[str, Fact], find: FindBase = no_base) -> None:
        """Write a result as a PEFT folder, which is there and empty; `facts` say whence it comes. Raises: BadTask."""
        raise BadTask(f"a result of {self.__struct_config__.tag} is no adapter: write its tensors with --out")


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
        raise BadTask(f"the settings of {name} are not valid: {error}{_choices(known[name], str(error))}") from None


def _choices(kind: type[Task], error: str) -> str:
    """What could stand in the place of what does not fit."""
    settings = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    if "unknown field" in error:
        return f"; there are: {', '.join(settings)}"
    wrong = error.rpartition("`$.")[2].rstrip("`")
    if get_origin(settings.get(wrong)) is Literal:
        return f"; there are: {', '.join(get_args(settings[wrong]))}"
    return f". A list stands in a plan's file: {wrong} = [...]" if "Expected `array`" in error else ""
