"""A training as the daemon runs it: its checkpoints go into the store, and a death of the trainer is survived."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import msgspec
import structlog
import trio

from agents.engine import messages
from agents.engine.calls import Replies
from agents.engine.messages import Train, TrainCheckpoint, Trained, TrainPaused, TrainReady, TrainStep
from agents.errors import AgentError, EngineDied
from agents.models import card_of
from agents.training import keep, runs
from agents.training.runs import Checkpoint
from storage.cid import Cid
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.app import Node
    from storage.catalog.models import ModelRow

PAUSE_LIMIT_S: Final = 2.0
"""So long the trainer gets to leave a checkpoint where the user has gone; it writes one later too, if it lives."""
MAX_DEATHS: Final = 3
"""Of the trainer, without a checkpoint between them: then something is wrong that will not go away."""

log = structlog.get_logger(__name__)


class Busy(AgentError):
    """A training of that name is under way. See how far it is: covey training ls."""

    code = "already_training"


class Resumed(msgspec.Struct, frozen=True):
    """The trainer died, and the training goes on from its last checkpoint."""

    reason: str
    step: int


Told = TrainReady | TrainStep | TrainCheckpoint | Resumed | Trained | TrainPaused


async def run_training(node: "Node", request: Train, model: "ModelRow") -> AsyncGenerator[Told, None]:
    """Train, and go on after a death of the trainer; at last `Trained` or `TrainPaused`. Raises: AgentError."""
    n_deaths = 0
    with sole(node, request.name), node.desk.keeping(model, f"the training {request.name!r}"):
        while True:
            had_checkpoint = False
            try:
                async with aclosing(_attempt(node, request, model)) as items:
                    async for told in items:
                        had_checkpoint = had_checkpoint or isinstance(told, TrainCheckpoint)
                        yield told
                return
            except EngineDied as error:
                n_deaths = 1 if had_checkpoint else n_deaths + 1
                left = await trio.to_thread.run_sync(runs.checkpoints, Path(request.run))
                if n_deaths >= MAX_DEATHS or (n_deaths > 1 and not left):
                    raise
                node.events.note("training_interrupted", {"name": request.name, "text": str(error)})
                # What the first attempt began is gone on with: it is not begun anew.
                request = msgspec.structs.replace(request, data=None if left else request.data, is_fresh=not left)
                yield Resumed(str(error), left[0].step if left else 0)


async def _attempt(node: "Node", request: Train, model: "ModelRow") -> AsyncGenerator[Told, None]:
    architecture = card_of(model).architecture
    async with node.trainer.call(request) as answered:
        replies = cast("Replies", answered)  # a trainer is an engine of its own, never a server's
        is_over = False
        try:
            async for reply in replies:
                assert isinstance(reply, Told), "a training has no other replies"
                is_over = reply.is_final
                await _note(node, request, reply, architecture)
                yield reply
        except AgentError:
            is_over = True
            raise
        finally:
            if not is_over:
                await _pause(node, request, replies, architecture)


async def _pause(node: "Node", request: Train, replies: Replies, architecture: str) -> None:
    """Nobody listens any more: have the trainer stop, with a checkpoint."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + PAUSE_LIMIT_S):
        replies.cancel()
        try:
            async for reply in replies:
                await _note(node, request, reply, architecture)
        except AgentError as error:
            log.warning("training_not_paused", name=request.name, error=str(error))


async def _note(node: "Node", request: Train, reply: object, architecture: str) -> None:
    """Carry out what a reply means for the store."""
    ports = node.adapters.ports
    if isinstance(reply, TrainCheckpoint):
        checkpoint = Checkpoint(reply.step, Cid.parse(reply.cid), Path(reply.folder))
        try:
            await trio.to_thread.run_sync(partial(keep.hold, ports, Path(request.run), checkpoint, architecture))
        except (StorageError, AgentError, OSError) as error:  # it stands on the disk all the same
            node.events.note("checkpoint_not_held", {"name": request.name, "step": reply.step, "text": str(error)})
    elif isinstance(reply, TrainPaused):
        node.events.note("training_paused", {"name": request.name, "step": reply.step, "n_steps": reply.n_steps})
    elif isinstance(reply, Trained):
        await trio.to_thread.run_sync(keep.release, ports, request.name)


@contextmanager
def sole(node: "Node", name: str) -> "Iterator[None]":
    """Nobody else makes an adapter of that name during the block. Raises: Busy."""
    if name in node.training_now:
        raise Busy(f"the training {name!r} is under way. See how far it is: covey training ls")
    node.training_now.add(name)
    try:
        yield
    finally:
        node.training_now.discard(name)


def resumption(node: "Node", name: str, model: "ModelRow", *, is_forced: bool) -> Train:
    """What to ask of the trainer to go on with an unfinished run."""
    return messages.Train(
        model=model.folder,
        name=name,
        run=str(runs.run_folder(node.home.training, name)),
        out=str(node.home.training / name),
        is_forced=is_forced,
    )
