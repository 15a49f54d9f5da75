"""The curves of a training, from what it left on disk, and their drawings."""

import json
from pathlib import Path
from typing import Final

from agents.adapters.inspect import FILES, TRAINING_FILE
from agents.training.curves import Curve, as_svg, as_text
from agents.training.runs import State
from storage.durable import write_file

Points = list[tuple[float, float]]
_X_NAME: Final = "steps"
_Y_NAME: Final = "loss in nats"


def curves_of_adapter(folder: Path) -> tuple[Points, Points]:
    """The losses that a finished adapter's record tells: in training, and on what was held out; empty without one."""
    try:
        with (folder / TRAINING_FILE).open("rb") as file:
            record = json.loads(file.read(FILES[TRAINING_FILE]))
        return _points(record.get("losses")), _points(record.get("held_out_losses"))
    except (OSError, ValueError, AttributeError):  # older ones have none, and folders may come from elsewhere
        return [], []


def curves_of_state(state: State) -> tuple[Points, Points]:
    """The losses of a training that is not over."""
    held_out = [(0.0, state.loss_before), *((float(done.step), done.loss) for done in state.evaluations)]
    return [(float(step), loss) for step, loss in state.curve], held_out


def draw(name: str, losses: Points, held_out: Points, *, is_text: bool, svg: str | None) -> str | None:
    """The curves as text, where that is asked for; into the file `svg`, where that is. Raises: StoreFull, OSError."""
    curves = [Curve("training", losses), Curve("held out", held_out, is_marks=True)]
    if svg is not None:
        write_file(Path(svg), as_svg(f"{name}: {_Y_NAME}", curves, _X_NAME, _Y_NAME).encode(), 0o644)
    return as_text(curves, _X_NAME, _Y_NAME) if is_text else None


def _points(value: object) -> Points:
    if not isinstance(value, list):
        return []
    return [(float(pair[0]), float(pair[1])) for pair in value if isinstance(pair, list) and len(pair) == 2]
