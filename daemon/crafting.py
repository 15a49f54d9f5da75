"""Adapters as this node's agents train and publish them: by the operations that their user has too."""

from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec
import trio

from agents.tools.tool import ToolFailed
from daemon.agents import failing_a_step
from storage import durable

if TYPE_CHECKING:
    from daemon.app import Node

TOLD: Final = ("name", "cid", "loss_before", "loss_after", "n_steps", "n_tokens")


class NodeAdapters:
    """What agents/tools/adapters.py asks of a node."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def train(self, name: str, data: bytes, ending: str, n_steps: int) -> dict[str, Any]:
        """Train an adapter; one that was trained before is told of again. Raises: AgentError, OSError."""
        from daemon.api.operations import train as op
        from daemon.trainings import finished

        node = self._node
        before = await trio.to_thread.run_sync(finished, node, name)
        if before is not None:
            return {"name": name, "is_new": False, "loss_after": before.loss, "n_steps": before.n_steps}
        # One path for one name: a training that was cut short goes on with the same file.
        path = node.home.agents / "data" / f"{name}{ending}"
        await trio.to_thread.run_sync(partial(_keep, path, data))
        with failing_a_step():
            trained = await _last(op.train(node, op.Train(data=str(path), name=name, n_steps=n_steps)))
        if not isinstance(trained, op.Trained):
            raise ToolFailed(f"the training {name} was paused; it goes on when it is asked for again")
        await trio.to_thread.run_sync(partial(path.unlink, missing_ok=True))
        found = msgspec.to_builtins(trained)
        return {"is_new": True} | {key: found[key] for key in TOLD}

    async def publish(self, name: str, visibility: str) -> dict[str, Any]:
        """Sign it and announce it. Raises: AgentError, StorageError, OSError."""
        from daemon.api.operations import adapter as op

        if not (self._node.home.training / name).is_dir():
            raise ToolFailed(f"there is no adapter {name} that was trained here")
        to = cast(Literal["flock", "public"], visibility)
        with failing_a_step():
            found = msgspec.to_builtins(await op.publish(self._node, op.Publish(adapter=name, visibility=to)))
        return {key: found[key] for key in ("name", "version", "manifest", "visibility", "is_new")}


async def _last(items: Any) -> Any:
    """The last of what a stream of an operation's has to tell; None for nothing."""
    last = None
    async with aclosing(items):
        async for item in items:
            last = item
    return last


def _keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable.write_file(path, data)
