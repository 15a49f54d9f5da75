"""What tasks of rounds want of the engine, carried out by the node's trainer, and the base models they train on."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import trio

from agents.backend import is_backend
from agents.engine import messages
from agents.errors import EngineFailed
from agents.federation.tasks import BadTask, Base, Fitted, Fitting, Score, Trained, Training
from agents.models import Engine as Trainer
from agents.models import card_of
from agents.training.settings import Settings
from storage.catalog import Catalog
from storage.catalog.models import ModelRow

SPLIT_SEED: Final = 0
"""What is held out of a text follows from this in every round, not from the round's seed."""


def find_base(catalog: Catalog, text: str) -> Base:
    """The base model of that name or fingerprint. Raises: BadTask."""
    row = _row(catalog, text)
    return Base(card_of(row).base, row.name, Path(row.folder))


def _row(catalog: Catalog, text: str) -> ModelRow:
    models = [row for row in catalog.models.list() if not is_backend(row)]
    row = next((row for row in models if row.name == text or text in row.accepts), None)
    if row is None:
        raise BadTask(f"the base model {text} is not here; a peer who has it may share it: covey model pull {text}")
    return row


Keeping = Callable[[ModelRow, str], AbstractContextManager[None]]


class RoundEngine:
    """The node's trainer, as tasks use it. A round's training begins anew after a death: it can be done again.

    Args:
        keeping: has a model's folder stay while a round reads it, as `agents.models.Desk.keeping` does.
    """

    def __init__(self, catalog: Catalog, trainer: Trainer, keeping: Keeping) -> None:
        self._catalog = catalog
        self._trainer = trainer
        self._keeping = keeping

    async def train(self, wish: Training) -> Trained:
        """Train on from the round's adapter. Raises: BadTask, EngineFailed and its like."""
        row = _row(self._catalog, wish.base)
        with (
            tempfile.TemporaryDirectory(dir=wish.out.parent) as folder,
            self._keeping(row, "the training of a round"),
        ):
            initial = await trio.to_thread.run_sync(_whole, row, wish, Path(folder))
            request = messages.Train(
                model=row.folder,
                name="round",
                data=str(wish.data),
                run=str(Path(folder) / "run"),
                out=str(wish.out),
                initial=str(initial),
                merged=str(wish.merged) if wish.merged is not None else None,
                correction=str(wish.correction) if wish.correction is not None else None,
                settings=_settings(wish),
                noise=wish.noise,
                is_fresh=True,
            )
            n_samples, trained = 0, None
            async with self._trainer.call(request) as replies:
                async for reply in replies:
                    match reply:
                        case messages.TrainReady():
                            n_samples = reply.n_train
                        case messages.Trained():
                            trained = reply
            if trained is None:
                raise EngineFailed("the training of a round was stopped")
            return Trained(n_samples, trained.loss_after)

    async def measure(self, wish: Training) -> Score:
        """See how an adapter does. Raises: BadTask, EngineFailed and its like."""
        row = _row(self._catalog, wish.base)
        with (
            tempfile.TemporaryDirectory(dir=wish.initial.parent) as folder,
            self._keeping(row, "the training of a round"),
        ):
            initial = await trio.to_thread.run_sync(_whole, row, wish, Path(folder))
            request = messages.Measure(
                model=row.folder,
                data=str(wish.data),
                initial=str(initial),
                merged=str(wish.merged) if wish.merged is not None else None,
                settings=_settings(wish),
            )
            reply = await self._trainer.one(request)
        if not isinstance(reply, messages.Measured):
            raise EngineFailed("the engine did not measure")
        return Score(max(1, reply.n_examples), reply.loss, reply.accuracy)

    async def fit(self, wish: Fitting) -> Fitted:
        """Train a module, see how it does, or write what it begins with. Raises: EngineFailed and its like."""
        files: dict[str, Any] = {
            name: str(path)
            for name in ("initial", "data", "out", "correction")
            if (path := getattr(wish, name)) is not None
        }
        reply = await self._trainer.one(messages.Fit(factory=wish.factory, settings=wish.settings, **files))
        if not isinstance(reply, messages.Fitted):
            raise EngineFailed("the engine trained no module")
        return Fitted(reply.n_learned, reply.n_held_out, reply.loss, reply.accuracy)


def _whole(row: ModelRow, wish: Training, folder: Path) -> Path:
    """The adapter to begin with, with both halves."""
    if not wish.is_half:
        return wish.initial
    from agents.federation.tasks.lora import with_downs  # numpy comes with it

    with_downs(wish.initial, folder / "initial", Base(card_of(row).base, row.name, Path(row.folder)))
    return folder / "initial"


def _settings(wish: Training) -> Settings:
    # Rules that reckon with steps of sgd reckon with one rate for all of them.
    pace: dict[str, Any] = {"schedule": "constant", "n_warmup": 0} if wish.optimizer == "sgd" else {}
    return Settings(
        **pace,
        optimizer=wish.optimizer,
        momentum=wish.momentum,
        proximal_mu=wish.proximal_mu,
        form=None if wish.kind == "auto" else wish.kind,
        rank=wish.rank,
        alpha=wish.alpha,
        targets=wish.targets,
        n_steps=wish.n_steps,
        batch=wish.batch,
        context_tokens=wish.context_tokens,
        learning_rate=wish.learning_rate,
        held_out_frac=wish.held_out,
        checkpoint_every=wish.n_steps,
        seed=wish.seed,
        split_seed=SPLIT_SEED,
        frozen="a" if wish.is_half else wish.frozen,
    )
