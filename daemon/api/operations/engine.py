"""The engine: the process that holds the model. How it is, and ending it."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from daemon.api.operation import Done, Nothing, Operation, Params, Result

if TYPE_CHECKING:
    from collections.abc import Collection

    from agents.engine.client import Engine
    from daemon.app import Node

MAX_TEXT_CHARS: Final = 2000
PROBE_S: Final = 3.0
"""A backend that says nothing for so long does not answer."""


class Watch(Params, frozen=True):
    """Once, or again and again."""

    is_watch: Annotated[bool, Meta(description="Go on until interrupted.")] = False
    every_s: Annotated[float, Meta(ge=0.2, le=3600, description="With --watch: how often.")] = 2.0


class Resident(Result, frozen=True):
    """An adapter in memory; `n_running` answers use it now."""

    name: str
    n_bytes: int
    rank: int
    n_running: int


class Beside(Result, frozen=True):
    """A process beside the engine: while it runs, and what its last one died of. `trainings` are those under way."""

    pid: int | None
    uptime_s: float | None
    rss_bytes: int | None
    trainings: list[str]
    calls: dict[str, int]
    n_deaths: int
    last_death: str | None
    last_death_s_ago: float | None


class BackendIs(Result, frozen=True):
    """The server that answers in the engine's place: what is asked of it now, and the adapters that it was given.

    `model` is its model's name there, `name` the one here. `trouble` says why it does not answer; null where it does.
    """

    url: str
    kind: str
    model: str
    name: str | None
    n_running: int
    adapters: list[str]
    trouble: str | None


class EngineIs(Result, frozen=True):
    """How the engine is, the `backend` that is configured in its place, and who works beside it.

    The `trainer` trains, the `workshop` brings models in, merges and exports them.

    `state` is `stopped` (the next request starts it), `waiting` (it died, and is started again in `wait_s`), `starting`
    or `loading` (no answer yet), `ready` or `busy`. `calls` counts what this node has asked it for and not got yet.
    What the engine itself says is null while it runs none, or says nothing.
    """

    state: str
    pid: int | None
    uptime_s: float | None
    rss_bytes: int | None
    model: str | None
    device: str | None
    dtype: str | None
    n_running: int | None
    n_waiting: int | None
    tokens_per_s: float | None
    resident_bytes: int | None
    cache_bytes: int | None
    cache_budget_bytes: int | None
    adapter_budget_bytes: int | None
    adapters: list[Resident]
    calls: dict[str, int]
    n_restarts: int
    n_deaths: int
    last_death: str | None
    last_death_s_ago: float | None
    wait_s: float
    trainer: Beside
    workshop: Beside
    backend: BackendIs | None


async def status(node: "Node", params: Watch) -> AsyncIterator[EngineIs]:
    """Ask it, without starting it."""
    import trio

    while True:
        yield await _look(node)
        if not params.is_watch:
            return
        await trio.sleep(params.every_s)


async def _look(node: "Node") -> EngineIs:
    import trio

    from daemon.measure import rss_bytes_of

    engine = node.engine
    said = await engine.status()
    health = engine.health()
    now_s = trio.current_time()
    resident = said.adapters if said else ()
    names = await trio.to_thread.run_sync(_names, node) if resident else {}
    if health.pid is None:
        state = "waiting" if health.wait_s else "stopped"
    elif "load" in health.calls:
        state = "loading"
    elif not health.has_answered:
        state = "starting"
    else:
        state = "busy" if health.calls else "ready"
    return EngineIs(
        state=state,
        pid=health.pid,
        uptime_s=None if health.started_s is None else now_s - health.started_s,
        rss_bytes=rss_bytes_of(health.pid) if health.pid else None,
        model=said.model if said else None,
        device=said.device if said else None,
        dtype=said.dtype if said else None,
        n_running=said.n_running if said else None,
        n_waiting=said.n_waiting if said else None,
        tokens_per_s=said.tokens_per_s if said else None,
        resident_bytes=said.resident_bytes if said else None,
        cache_bytes=said.cache_bytes if said else None,
        cache_budget_bytes=said.cache_budget_bytes if said else None,
        adapter_budget_bytes=said.adapter_budget_bytes if said else None,
        adapters=[
            Resident(
                name=names.get(one.folder, one.folder), n_bytes=one.n_bytes, rank=one.rank, n_running=one.n_running
            )
            for one in resident
        ],
        calls=health.calls,
        n_restarts=max(0, health.n_starts - 1),
        n_deaths=health.n_deaths,
        last_death=health.last_death[:MAX_TEXT_CHARS] if health.last_death else None,
        last_death_s_ago=None if health.last_death_s is None else now_s - health.last_death_s,
        wait_s=health.wait_s,
        trainer=_look_beside(node.trainer, now_s, node.training_now),
        workshop=_look_beside(node.workshop, now_s),
        backend=await _look_at_backend(node),
    )


async def _look_at_backend(node: "Node") -> BackendIs | None:
    """Asks the server for its models; no answer is made for that."""
    if not node.config.backend.url:
        return None
    import trio

    from agents.chat.answer import error_text
    from agents.engine.remote.backed import BackedEngine
    from agents.errors import AgentError

    assert isinstance(node.engine, BackedEngine), "there is a backend"
    server, trouble = node.engine.server, None
    try:
        with trio.fail_after(PROBE_S):
            await server.card()
    except AgentError as error:
        trouble = error_text(error)[:MAX_TEXT_CHARS]
    except trio.TooSlowError:
        trouble = f"it says nothing for {PROBE_S:g} s"
    names = await trio.to_thread.run_sync(_names_there, node) if server.adapters else {}
    return BackendIs(
        url=server.settings.url,
        kind=server.settings.kind,
        model=server.settings.model,
        name=node.config.engine.model,
        n_running=server.n_calls,
        adapters=[names.get(name, name) for name in server.adapters],
        trouble=trouble,
    )


def _look_beside(engine: "Engine", now_s: float, trainings: "Collection[str]" = ()) -> Beside:
    from daemon.measure import rss_bytes_of

    health = engine.health()
    return Beside(
        pid=health.pid,
        uptime_s=None if health.started_s is None else now_s - health.started_s,
        rss_bytes=rss_bytes_of(health.pid) if health.pid else None,
        trainings=sorted(trainings),
        calls=health.calls,
        n_deaths=health.n_deaths,
        last_death=health.last_death[:MAX_TEXT_CHARS] if health.last_death else None,
        last_death_s_ago=None if health.last_death_s is None else now_s - health.last_death_s,
    )


def _names(node: "Node") -> dict[str, str]:
    """What people call the adapters, by their folders."""
    return {row.folder: f"{row.name} v{row.version}" for row in node.catalog.adapters.query() if row.folder}


def _names_there(node: "Node") -> dict[str, str]:
    """What people call the adapters, by the names that a backend has for them."""
    from agents.engine.remote.loras import PREFIX

    named = {str(row.manifest): f"{row.name} v{row.version}" for row in node.catalog.adapters.query()}
    return named | {f"{PREFIX}{manifest}": name for manifest, name in named.items()}


async def stop(node: "Node", _params: Nothing) -> Done:
    """End it now."""
    was_there = node.engine.stop()
    return Done(text="stopped: the next request starts it again" if was_there else "it was not running")


OPERATIONS = (
    Operation(
        noun="engine",
        verb="status",
        summary="Show the engine's memory, queue, speed, adapters and deaths.",
        params=Watch,
        result=EngineIs,
        handler=status,
        is_stream=True,
    ),
    Operation(
        noun="engine",
        verb="stop",
        summary="End the engine, to get its memory back; answers fail.",
        params=Nothing,
        result=Done,
        handler=stop,
    ),
)
