"""How well a model does with an adapter on what is held out of the data. Nothing is learned, nothing is written."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch

from agents.engine.messages import Measure, Measured
from agents.engine.worker.models import LoadedModel, load_model
from agents.engine.worker.training.lowrank import LowRanks, add_merged
from agents.engine.worker.training.objective import Row, count_labels, preference_score, token_score
from agents.engine.worker.training.train import lay_out_data, same_threads, set_precision
from agents.errors import EngineFailed
from agents.training.records import detect, read_data
from agents.training.settings import Settings


def measure(request: Measure, is_cancelled: Callable[[], bool]) -> Measured:
    """Look at the held-out rows. Raises: BadData, BadAdapter, EngineFailed."""
    path, settings = Path(request.data), request.settings
    name, data = request.data_name or path.name, read_data(path)
    if settings.form is None:
        settings = msgspec.structs.replace(settings, form=detect(name, data)[0])
    with same_threads(None):
        loaded = load_model(Path(request.model))
        if request.merged is not None:
            add_merged(loaded, Path(request.merged), settings.targets)
        set_precision(loaded, settings)
        rows = lay_out_data(loaded, name, data, settings)[0].held_out
        lora = LowRanks(loaded, settings)
        lora.read(Path(request.initial))
        total, n_right, n_labels = 0.0, 0, 0
        with torch.no_grad():
            for at in range(0, len(rows), settings.batch):
                if is_cancelled():
                    raise EngineFailed("the measurement was cancelled")
                part = rows[at : at + settings.batch]
                loss, right = _score(loaded, part, lora, settings)
                total, n_right, n_labels = total + loss, n_right + right, n_labels + count_labels(part)
    n = max(1, n_labels)
    return Measured(id=request.id, loss=total / n, accuracy=n_right / n, n_labels=n_labels, n_examples=len(rows))


def _score(loaded: LoadedModel, rows: Sequence[Row], lora: LowRanks, settings: Settings) -> tuple[float, int]:
    """The summed loss, and how many tokens or pairs come first."""
    model, dtype = loaded.model, loaded.model.dtype
    if any(example.worse for row in rows for example in row):
        return preference_score(model, rows, loaded.device, dtype, lora.off, settings.dpo_beta)
    return token_score(model, rows, loaded.device, dtype)
