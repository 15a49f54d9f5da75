"""The folder at the end: the adapter as PEFT has it, a model card, and the record of how it came about.

Nothing in it tells the time: the same training gives the same bytes, and so the same CID.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import safetensors.torch

from agents.adapters.inspect import CONFIG_FILE, TRAINING_FILE, WEIGHTS_FILE
from agents.adapters.peft_files import peft_config, write_json
from agents.engine.messages import ModelCard
from agents.engine.worker.folders import replace
from agents.engine.worker.training.loop import Training
from agents.training.card import CARD_FILE, model_card
from agents.training.runs import Run
from storage import unixfs
from storage.cid import Cid
from storage.unixfs import COVEY_WEIGHTS


class Outcome(NamedTuple):
    """A training that is over."""

    run: Run
    card: ModelCard
    training: Training
    loss_after: float
    n_train: int
    n_held_out: int

    @property
    def best_step(self) -> int:
        """The step whose parameters stay."""
        progress = self.training.progress
        return progress.best_step or progress.step


def write_adapter(out: Path, outcome: Outcome) -> Cid:
    """Write the adapter beside its place, then give it its name. Returns: the CID of its files."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.training")
    shutil.rmtree(staging, ignore_errors=True)  # of a training that was killed
    staging.mkdir()
    try:
        record = provenance(outcome)
        safetensors.torch.save_file(outcome.training.lora.tensors(), staging / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(staging / CONFIG_FILE, _config(outcome))
        write_json(staging / TRAINING_FILE, record)
        (staging / CARD_FILE).write_text(model_card(outcome.run, record))
        cid = unixfs.cid_of_path(staging, COVEY_WEIGHTS)
        replace(staging, out)  # an earlier training by this name goes: what was published of it stands elsewhere
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return cid


def provenance(outcome: Outcome) -> dict[str, Any]:
    """Everything that is needed to do it again. What is flat here goes into the manifest when it is published."""
    run, training = outcome.run, outcome.training
    progress = training.progress
    checkpoint = training.checkpoint
    assert checkpoint is not None, "the last step left one"
    return {
        "base": run.base,
        "base_name": run.model,
        "best_step": outcome.best_step,
        "checkpoint": str(checkpoint.cid),
        "covey": training.environment["covey"],
        "data": run.data,
        "data_name": run.data_name,
        "learning_rate": run.settings.learning_rate,
        "loss_after": outcome.loss_after,
        "loss_before": progress.loss_before,
        "n_examples": outcome.n_train,
        "n_held_out": outcome.n_held_out,
        "n_steps": progress.step,
        "n_tokens": progress.n_tokens,
        "seed": run.settings.seed,
        "torch": training.environment["torch"],
        "trained_on": run.trained_on,
        **({"initial": run.initial} if run.initial is not None else {}),
        "settings": msgspec.to_builtins(run.settings),
        "environment": training.environment,
        "losses": [[step, round(loss, 5)] for step, loss in progress.curve],
        "held_out_losses": [[0, progress.loss_before], *([done.step, done.loss] for done in progress.evaluations)],
    }


def _config(outcome: Outcome) -> dict[str, Any]:
    wish = outcome.run.settings
    return peft_config(
        outcome.card.name, wish.targets, wish.rank, wish.alpha, dropout=wish.dropout, use_rslora=wish.use_rslora
    )
