"""The backend of the configuration: an OpenAI-compatible server that answers in the place of the embedded engine."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from agents import backend
from agents.engine.client import Engine, open_engine
from agents.errors import AgentError
from agents.models import card_of
from daemon import wall
from daemon.config import BackendConfig, Config
from daemon.errors import BadConfig
from daemon.paths import Home
from storage.catalog import Catalog

if TYPE_CHECKING:
    from agents.engine.messages import ModelCard
    from agents.engine.remote.server import ServerSettings
    from daemon.app import Node

MAX_TOKEN_BYTES: Final = 8192
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 60.0
TELL_LIMIT_S: Final = 30.0


def settle(config: Config, home: Home, catalog: Catalog) -> Config:
    """Note the backend's model in the catalog; the settings in force, in which it is the usual one. Raises: BadConfig.

    Until the server has answered, no more is known of the model than what an earlier answer said.
    """
    wish = config.backend
    if not wish.url:
        backend.forget_backends(catalog)
        return config
    from agents.engine.remote.server import card_of as card_there
    from agents.engine.remote.wire import Entry

    settings = server_settings(wish, catalog)
    name = backend.name_of(catalog, wish.model)
    backend.forget_backends(catalog, {name})
    known = catalog.models.get(name)
    if known is None or known.source != f"{backend.SOURCE}{wish.url}" or wish.base:
        card = card_there(settings, Entry(id=wish.model))
        backend.note_backend(catalog, home.models, wish.url, card, wall.unix_s())
    return msgspec.structs.replace(config, engine=msgspec.structs.replace(config.engine, model=name))


def server_settings(wish: BackendConfig, catalog: Catalog) -> "ServerSettings":
    """The settings as the engine takes them, with the token. Raises: BadConfig."""
    from agents.engine.remote.server import ServerSettings

    if not wish.model:
        raise BadConfig("backend.model: say which of the server's models answers: covey config set backend.model NAME")
    base, card = _base(wish, catalog)
    return ServerSettings(
        url=wish.url,
        kind=wish.kind,
        model=wish.model,
        token=_token(wish),
        base=base,
        card=card,
        adapters_path=wish.adapters_path,
        n_adapters=wish.n_adapters,
        context_tokens=wish.context_tokens,
        silence_s=wish.silence_timeout_s,
    )


@asynccontextmanager
async def engine_opened(config: Config, home: Home, catalog: Catalog, **options: Any) -> AsyncIterator[Engine]:
    """The node's engine, with the backend where one is configured. Raises: BadConfig, BackendRefused."""
    if not config.backend.url:
        async with open_engine(**options) as engine:
            yield engine
        return
    from agents.engine.remote.backed import open_backed_engine

    settings = await trio.to_thread.run_sync(server_settings, config.backend, catalog)
    folder = backend.folder_of(home.models, config.engine.model)
    async with open_backed_engine(settings, folder, **options) as backed:
        yield backed


async def run_acquaintance(node: "Node", *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Ask the server about its model until it has answered, note what it says, and hear of adapters for it."""
    from agents.engine.remote.backed import BackedEngine

    assert isinstance(node.engine, BackedEngine), "there is a backend"
    task_status.started()
    url, wait_s, is_told = node.config.backend.url, FIRST_WAIT_S, False
    while True:
        try:
            with trio.fail_after(TELL_LIMIT_S):
                card = await node.engine.server.card()
            break
        except (AgentError, trio.TooSlowError) as error:
            if not is_told:
                node.events.note("backend_missing", {"url": url, "text": str(error) or "it does not answer in time"})
            is_told = True
        await trio.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
    await trio.to_thread.run_sync(backend.note_backend, node.catalog, node.home.models, url, card, wall.unix_s())
    node.events.note("backend_found", {"url": url, "model": card.name, "fingerprint": card.fingerprint})
    await node.adapters.listen()


def _base(wish: BackendConfig, catalog: Catalog) -> "tuple[str, ModelCard | None]":
    """The fingerprint that `backend.base` names, and the card of a model here that it names. Raises: BadConfig."""
    from storage.cid import Cid
    from storage.errors import InvalidCid

    if not wish.base:
        return "", None
    for row in catalog.models.list():
        if wish.base in (row.name, *row.accepts) and not backend.is_backend(row):
            return row.fingerprint, card_of(row)
    try:
        return str(Cid.parse(wish.base)), None
    except InvalidCid:
        raise BadConfig(f"backend.base: {wish.base!r} is neither a model here nor a fingerprint") from None


def _token(wish: BackendConfig) -> str:
    """Raises: BadConfig for a token that cannot be read."""
    if wish.token_env:
        raw = os.environ.get(wish.token_env, "")
        if not raw:
            raise BadConfig(f"backend.token_env: there is no variable {wish.token_env} in the daemon's environment")
        source = wish.token_env
    elif wish.token_file:
        source = wish.token_file
        try:
            with Path(wish.token_file).expanduser().open("rb") as file:
                raw = file.read(MAX_TOKEN_BYTES + 1).decode("latin-1").strip()
        except OSError as error:
            raise BadConfig(f"backend.token_file: cannot read {wish.token_file}: {error.strerror}") from None
    else:
        return ""
    if not raw or len(raw) > MAX_TOKEN_BYTES or not raw.isascii() or not raw.isprintable():
        raise BadConfig(f"backend: {source} holds no token: one line of ASCII is needed")
    return raw
