"""Answers, of this node's model: the cache before it, and the peers that may ask it."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agents.adapters.inspect import WEIGHTS_FILE
from agents.adapters.select import Pinned, parse_policy
from agents.backend import is_backend
from agents.cache.answers import AnswerCache
from agents.cache.answers import Engine as CacheableEngine
from agents.cache.key import OWN
from agents.cache.seated import SeatedEngine
from agents.cache.stores import Answers, FileAnswers, MemoryAnswers
from agents.chat.ready import resolve
from agents.engine.client import Engine
from agents.errors import UnknownName
from agents.models import Desk, find_model, is_name
from daemon.config import CacheConfig, Config
from daemon.paths import Home
from storage.catalog.models import ModelRow
from storage.keys import PeerId

if TYPE_CHECKING:
    from agents.adapters.ports import Ports
    from agents.chat.events import Adapter
    from daemon.app import Node

CACHE_FILE: Final = "answers.db"
_MB: Final = 1_000_000


def who_answers(node: "Node", name: str | None, wish: str) -> "tuple[ModelRow, Adapter | None]":
    """The model of that name, and its adapter that `wish` asks for.

    Without a name it is the usual model, unless an adapter is named that is for another one here. Of a name that was
    trained here and is not published yet, that is said. Raises: NoModel, UnknownName.
    """
    usual = node.config.engine.model
    if name is None and isinstance(parse_policy(wish), Pinned):
        models = sorted(node.catalog.models.list(), key=lambda row: (row.name != usual, row.name))
        for model in models:
            with suppress(UnknownName):
                return model, resolve(node.catalog, model, wish)
        if models:
            return models[0], resolve_wish(node, models[0], wish)  # which says what is wrong
    model = find_model(node.catalog, name, usual)
    return model, resolve_wish(node, model, wish)


def resolve_wish(node: "Node", model: ModelRow, wish: str) -> "Adapter | None":
    """As `resolve`; of a name that was trained here and is not published yet, that is said. Raises: UnknownName."""
    try:
        return resolve(node.catalog, model, wish)
    except UnknownName:
        if is_name(wish) and (node.home.training / wish / WEIGHTS_FILE).exists():
            text = f"{wish} was trained here, and only what is published answers: covey adapter publish {wish}"
            raise UnknownName(text) from None
        raise


def is_loaded(node: "Node", model: ModelRow) -> bool:
    """Would `model` answer without being loaded first?"""
    return (node.engine.pid is not None or is_backend(model)) and node.desk.holds(model)


def answer_cache(wish: CacheConfig, home: Home, unix_s: Callable[[], float]) -> AnswerCache:
    """The cache of answers that the settings ask for."""
    stores: list[Answers] = []
    if wish.is_enabled and wish.memory_mb:
        stores.append(MemoryAnswers(wish.memory_mb * _MB, wish.ttl_s))
    if wish.is_enabled and wish.disk_mb:
        stores.append(FileAnswers(home.root / CACHE_FILE, wish.disk_mb * _MB, wish.ttl_s))
    return AnswerCache(stores, max_distance=wish.semantic_distance, unix_s=unix_s)


def engine_before(
    answers: AnswerCache,
    engine: Engine,
    desk: Desk,
    model: ModelRow,
    *,
    scope: str = OWN,
    is_seeded: bool = False,
) -> CacheableEngine:
    """The engine with `model` in it, and the cache before it: the one to ask for answers."""
    return answers.before(SeatedEngine(engine, desk, model), model, scope=scope, is_seeded=is_seeded)


def answer_peers(config: Config, ports: "Ports", desk: Desk, engine: Engine, answers: AnswerCache) -> None:
    """Let the peers that may ask use the model of this node, where it is enabled. Each has a cache of its own."""
    if not config.ask.is_enabled:
        return
    from agents.ask.serve import Host, Terms, serve
    from protocols.ask.quota import Limits

    wish = config.ask
    limits = Limits(
        n_at_once=wish.n_at_once,
        n_per_minute=wish.n_per_minute,
        tokens_per_hour=wish.tokens_per_hour,
        tokens_per_day=wish.tokens_per_day,
        n_running=wish.n_running,
        n_queued=wish.n_queued,
    )
    terms = Terms(wish.who == "flock", limits, wish.max_tokens, wish.timeout_s, config.engine.model)

    def engine_for(peer: PeerId, model: ModelRow) -> CacheableEngine:
        return engine_before(answers, engine, desk, model, scope=str(peer))

    serve(Host(ports, desk, engine_for, terms), ports)
